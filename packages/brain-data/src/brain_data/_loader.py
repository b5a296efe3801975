"""A DataLoader whose position is saved, and found again by its index."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
)

from ._device import copied_ahead
from ._loader_fetch import (
    Progress,
    Request,
    Requests,
    Rows,
    draws_nothing,
    explain_worker_failure,
    same,
)
from ._loader_state import (
    FORMAT,
    Position,
    check_same,
    check_world_size,
    compact,
    data_fingerprint,
    read,
    write,
)
from ._loader_stream import StreamPass, stream_position
from ._plan import Deal, EpochPlan, cut
from ._samplers import settings_of
from ._samplers_distributed import DistributedSamplerWrapper, plan_of
from ._seeding import global_seed, mix

logger = logging.getLogger(__name__)

_INHERITED = (
    "num_workers",
    "pin_memory",
    "pin_memory_device",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)


class SaveableDataLoader(DataLoader[Any]):
    """torch's `DataLoader` with a position that can be saved and gone back to at once.

    The position counts the batches that were handed out, never what workers have fetched ahead. It
    is an index into the epoch's plan, so resuming replays nothing; ``num_workers``,
    ``prefetch_factor`` and ``persistent_workers`` may differ after a restart. What a dataset or a
    collate function draws from torch, numpy or random is seeded by (seed, epoch, position): the
    same for any number of workers, 0 too, where the main process's generators are put back.

    Call `set_epoch` before each epoch, as for the samplers. An unfinished pass that is begun again
    starts at its first batch; only a loaded state goes on in the middle.

    Parameters
    ----------
    *args, **kwargs
        As for `torch.utils.data.DataLoader`; ``in_order=False`` is refused. For several ranks give a
        sampler or batch sampler in a `DistributedSamplerWrapper`.
    seed
        The seed of what is drawn while rows are fetched; by default SB_GLOBAL_SEED, or SpeechBrain's.
    device
        Copy each batch to this device before it is handed out; on CUDA the next batch is copied on a
        side stream while the present one computes.
    elastic
        On a number of ranks that does not reach the saved position, deal out what is left in other
        groups instead of raising.

    Raises
    ------
    ValueError
        If arguments exclude each other, or a loaded state belongs to other data or another plan.

    Examples
    --------
    >>> loader = SaveableDataLoader(range(10), batch_size=2)
    >>> batches = iter(loader)
    >>> next(batches), next(batches)
    (tensor([0, 1]), tensor([2, 3]))
    >>> again = SaveableDataLoader(range(10), batch_size=2)
    >>> again.load_state_dict(loader.state_dict())
    >>> next(iter(again))
    tensor([4, 5])
    """

    def __init__(
        self,
        *args: Any,
        seed: int | None = None,
        device: torch.device | str | None = None,
        elastic: bool = False,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("in_order") is False:
            raise ValueError(
                "in_order must be True for a position to mean anything, got False: "
                "use torch.utils.data.DataLoader for batches in any order"
            )
        super().__init__(*args, **kwargs)
        self.seed = global_seed() if seed is None else int(seed)
        self.device = None if device is None else torch.device(device)
        self.elastic = elastic
        self._epoch = 0
        self._resume: Position | dict[str, Any] | None = None
        self._pass: _Pass | StreamPass | None = None
        self._inner: DataLoader[Any] | None = None
        self._progress: Progress | None = None

    # ------------------------------------------------------------------ epochs

    @property
    def epoch(self) -> int:
        """The epoch that the next pass belongs to: the sampler's, where it has one."""
        for sampler in self._samplers():
            epoch = getattr(sampler, "epoch", None)
            if isinstance(epoch, int):
                return epoch
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, for its order and what is drawn in it.

        A loaded position stays where its epoch is this one, and is dropped where it is another.
        """
        if epoch != self.epoch:
            self._pass = None
            if isinstance(self._resume, dict) or (
                self._resume is not None and self._resume.epoch is not None
            ):
                self._resume = None
        self._epoch = epoch
        for part in (*self._samplers(), self.dataset):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    # --------------------------------------------------------------- iterating

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its private class
        """Begin a pass, at the loaded position or at the first batch."""
        resume, self._resume = self._resume, None
        if isinstance(self.dataset, IterableDataset):
            self._pass = StreamPass(self, resume if isinstance(resume, dict) else None)
            return self._pass.begin()
        if not isinstance(resume, Position) or resume.epoch not in (None, self.epoch):
            resume = None
        self._pass = current = _Pass(self, resume)
        batches = iter(self._inner_loader())
        # After torch's own draw from the global generator, as where torch iterates by itself.
        current.prepare()
        if self.device is not None:
            batches = copied_ahead(batches, self.device)
        return _HandOut(current, batches, self._progress)

    def _inner_loader(self) -> DataLoader[Any]:
        """torch's loader, with a sampler that starts at the position."""
        if self._inner is not None and self.persistent_workers:
            return self._inner
        # The context may hand out other shared memory than the default one; three numbers a
        # worker are inherited by any of them.
        self._progress = Progress(self.num_workers) if self.num_workers else None
        rows = Rows(self.dataset, self.collate_fn, batched=self._batched, progress=self._progress)
        self._inner = DataLoader(
            rows,  # type: ignore[arg-type]  # stands for the user's dataset, see Rows
            batch_size=None,
            sampler=Requests(self._begin_requests, self.__len__),
            collate_fn=same,
            **self._inherited(),
        )
        return self._inner

    def _inherited(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in _INHERITED if hasattr(self, name)}
        if not options.get("pin_memory_device"):
            options.pop("pin_memory_device", None)  # its mere mention warns from torch 2.9 on
        return options

    def _begin_requests(self) -> Iterator[Request]:
        assert isinstance(self._pass, _Pass)  # made before the inner loader is iterated
        return self._pass.requests()

    # ------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return the position: plain JSON under 1 kB, the same on all ranks.

        It counts the batches handed out so far in the present pass, and carries fingerprints of the
        data and of the plan. An IterableDataset's own state, where it has one, comes on top.
        """
        if isinstance(self.dataset, IterableDataset):
            return stream_position(self)
        state: dict[str, Any] = {"format": FORMAT, "epoch": self.epoch, "seed": self.seed}
        if isinstance(self._resume, Position):
            state.update(_position_fields(self._resume))
        elif isinstance(self._pass, _Pass):
            state["epoch"] = self._pass.epoch
            state.update(_position_fields(self._pass.position()))
        else:
            state.update(_position_fields(Position(self.epoch, 0)))
        state["world_size"] = self._world()[1]
        state["data"] = data_fingerprint(self.dataset)
        state["plan"] = self._plan_settings()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position at the next ``iter()``.

        Parameters
        ----------
        state
            What `state_dict` returned, here or on another number of ranks or workers.

        Raises
        ------
        ValueError
            If the data or the plan is not what it was, naming what changed; or if the present
            number of ranks does not reach the position, listing those that do.
        """
        if state.get("format") != FORMAT:
            raise ValueError(
                f"a loader's state of format {FORMAT} is required, got {state.get('format')!r}: "
                "it was saved by another version or is not a loader's"
            )
        if isinstance(self.dataset, IterableDataset):
            self._resume = StreamPass.check(self, state)
        else:
            check_same("data", state["data"], data_fingerprint(self.dataset))
            check_same(
                "plan",
                {**state["plan"], "seed of what is drawn": state["seed"]},
                {**self._plan_settings(), "seed of what is drawn": self.seed},
            )
            self._resume = self._checked(state)
        self._pass = None
        self._inner = None  # persistent workers may hold a stream's old place
        epoch, resume = state["epoch"], self._resume
        self.set_epoch(epoch)
        self._resume = resume

    def _checked(self, state: dict[str, Any]) -> Position:
        batches, start, finished = state["position"], state["start"], state["finished"]
        if not finished:
            present = self._world()[1]
            if self.elastic and (batches - start) % present:
                logger.info(
                    "the position %d was reached on %r ranks: the rest is dealt to %d ranks anew",
                    batches, state["world_size"], present,
                )  # fmt: skip
                start = batches
            check_world_size(batches, start, state["world_size"], present)
        return Position(
            state["epoch"], batches, start, state.get("drawn"), state.get("order"), finished
        )

    def _speechbrain_save(self, path: Any) -> None:
        """Write the position where a checkpointer asks for it: SpeechBrain's number, ours beside."""
        handed_out = None if self._pass is None else self._pass.handed_out
        write(path, handed_out, self.state_dict())

    def _speechbrain_load(self, path: Any, end_of_epoch: bool) -> None:
        """Read a position of ours or of SpeechBrain's.

        As in the reference, nothing is read at the end of an epoch, nor once the loader has been
        iterated: then a checkpoint is loaded for its model. `load_state_dict` has no such rule.
        """
        if self._pass is not None:
            logger.debug("the loader was iterated already: the saved position is not read")
            return
        state = read(path)
        if end_of_epoch and not isinstance(self.dataset, IterableDataset):
            return
        if isinstance(state, dict):
            self.load_state_dict(state)
        elif isinstance(state, int) and not end_of_epoch:
            logger.info(
                "a position of SpeechBrain's: batch %d, nothing to compare data with", state
            )
            if isinstance(self.dataset, IterableDataset):
                self._resume = StreamPass.plain(state)
            else:
                self._resume = Position(None, state * self._world()[1])

    _speechbrain_save._speechbrain_saver = True  # type: ignore[attr-defined]  # the mark
    _speechbrain_load._speechbrain_loader = True  # type: ignore[attr-defined]  # the mark

    # --------------------------------------------------------------- the plan

    @property
    def _batched(self) -> bool:
        return self.batch_sampler is not None

    @property
    def _unit_sampler(self) -> Any:
        return self.sampler if self.batch_sampler is None else self.batch_sampler

    def _samplers(self) -> list[Any]:
        """The sampler that decides the order, the outermost first."""
        outer = self._unit_sampler
        inner = getattr(outer, "sampler", None) if type(outer) is BatchSampler else None
        return [outer] if inner is None else [outer, inner]

    def _wrapper(self) -> DistributedSamplerWrapper | None:
        for sampler in self._samplers():
            if isinstance(sampler, DistributedSamplerWrapper) and not sampler.pad:
                return sampler
        return None

    def _world(self) -> tuple[int, int, bool]:
        """This rank, the number of ranks, and whether an incomplete round is left out."""
        wrapper = self._wrapper()
        if wrapper is None:
            return 0, 1, False
        return wrapper.rank, wrapper.num_replicas, wrapper.drop_last or bool(self.drop_last)

    def _plan_settings(self) -> dict[str, Any]:
        settings = settings_of(self._samplers()[-1])
        if type(self._unit_sampler) is BatchSampler:
            settings = {
                **settings, "batch_size": self.batch_size, "drop_last": self.drop_last
            }  # fmt: skip
        return compact(settings)

    def _make_plan(self, drawn: int | None) -> EpochPlan:
        """The epoch's plan for all ranks; `drawn` is the seed of torch's own random sampler."""
        outer, inner = self._unit_sampler, self._samplers()[-1]
        if drawn is not None:
            generator = torch.Generator().manual_seed(drawn)
            order = torch.randperm(len(inner.data_source), generator=generator).numpy()
            size = 1 if self.batch_sampler is None else outer.batch_size
            return cut(order, size, drop_last=bool(self.drop_last))
        if isinstance(outer, DistributedSamplerWrapper) and outer.gives_batches and not outer.pad:
            return outer.whole_plan()
        if self.batch_sampler is None:
            wrapper = self._wrapper()
            return cut(order_or_list(inner) if wrapper is None else wrapper.whole_order(), 1)
        return plan_of(outer)

    def _draws_its_seed(self) -> bool:
        """Whether the order comes from torch's RandomSampler, seeded by the global generator."""
        inner = self._samplers()[-1]
        return (
            type(inner) is RandomSampler
            and inner.generator is None
            and not inner.replacement
            and inner.num_samples == len(inner.data_source)
            and (self.batch_sampler is None or type(self.batch_sampler) is BatchSampler)
        )

    def _order_is_opaque(self) -> bool:
        """Whether only iterating the sampler tells the order: then its checksum is compared."""
        inner = self._samplers()[-1]
        return not (hasattr(inner, "settings") or isinstance(inner, DistributedSampler))


class _Pass:
    """One pass over a map-style dataset: its deal, and how far it has come."""

    def __init__(self, loader: SaveableDataLoader, resume: Position | None) -> None:
        self.loader = loader
        self.epoch = loader.epoch
        self.resume = resume
        self.rank, self.world_size, self.drop_last = loader._world()
        self.handed_out = 0
        self.drawn: int | None = None
        self.order: int | None = None
        self.deal: Deal | None = None
        self.endless = not _has_length(loader._unit_sampler)
        self._prepared = False

    def prepare(self) -> None:
        """Make the plan and find the position in it."""
        if self._prepared:
            return
        self._prepared = True
        resume = self.resume
        if self.endless:
            self.handed_out = 0 if resume is None else resume.batches
            return
        if self.loader._draws_its_seed():
            # Drawn also where a saved one is used, so that as much is drawn as without a restart.
            self.drawn = int(torch.empty((), dtype=torch.int64).random_().item())
            if resume is not None and resume.drawn is not None:
                self.drawn = resume.drawn
        plan = self.loader._make_plan(self.drawn)
        if self.drawn is None and self.world_size == 1 and self.loader._order_is_opaque():
            self.order = plan.checksum()
            if resume is not None and resume.order is not None:
                check_same(
                    "plan", {"order of the sampler": resume.order},
                    {"order of the sampler": self.order},
                )  # fmt: skip
        start = 0 if resume is None else resume.start
        self.deal = Deal(plan, self.world_size, start, self.drop_last)
        if resume is not None:
            self._seek(self.deal, resume)
        if self.deal.left_out and not self.drop_last:
            logger.warning(
                "%d rows are left for %d ranks, too few for one each and with no batch before "
                "them to join: they are left out of epoch %d",
                self.deal.left_out, self.world_size, self.epoch,
            )  # fmt: skip

    def _seek(self, deal: Deal, resume: Position) -> None:
        if resume.finished:
            self.handed_out = deal.rounds
            return
        if resume.batches > deal.plan.batches:
            raise ValueError(
                f"a position of at most {deal.plan.batches} batches is required, got "
                f"{resume.batches!r}: the state was saved for more data or smaller batches"
            )
        self.handed_out = deal.rounds_done(resume.batches)

    def requests(self) -> Iterator[Request]:
        """What the inner loader fetches, from the position on."""
        self.prepare()
        loader = self.loader
        seeds = not draws_nothing(loader.dataset, loader.collate_fn)
        if self.deal is None:
            units = iter(loader._unit_sampler)
            for number, unit in enumerate(islice(units, self.handed_out, None), self.handed_out):
                rows = list(unit) if loader._batched else [unit]
                yield Request(number, mix(loader.seed, self.epoch, number) if seeds else None, rows)
            return
        for number in range(self.handed_out, self.deal.rounds):
            low, rows = self.deal.rows(number, self.rank)
            yield Request(number, mix(loader.seed, self.epoch, low) if seeds else None, rows)

    def rows_of(self, number: int) -> list[Any]:
        """The rows of a batch of this rank."""
        return [] if self.deal is None else self.deal.rows(number, self.rank)[1]

    def position(self) -> Position:
        """Where a pass that takes over from this one goes on."""
        if self.deal is None:
            start, done, finished = 0, self.handed_out, False
        else:
            start, done = self.deal.start, self.deal.position(self.handed_out)
            finished = self.handed_out >= self.deal.rounds
        return Position(self.epoch, done, start, self.drawn, self.order, finished)


class _HandOut:
    """Hands batches out and counts them."""

    __slots__ = ("_batches", "_pass", "_progress")

    def __init__(self, current: _Pass, batches: Iterator[Any], progress: Progress | None) -> None:
        self._pass = current
        self._batches = batches
        self._progress = progress

    def __iter__(self) -> _HandOut:
        return self

    def __next__(self) -> Any:
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            explained = explain_worker_failure(error, self._progress, self._pass.rows_of)
            if explained is None:
                raise
            raise explained from error
        self._pass.handed_out += 1
        return batch

    def __len__(self) -> int:
        return len(self._pass.loader)


def order_or_list(sampler: Any) -> Any:
    """Return the order of a sampler whose keys may be anything, lists of rows too."""
    return sampler.order() if hasattr(sampler, "order") else list(sampler)


def _position_fields(position: Position) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "position": position.batches,
        "start": position.start,
        "finished": position.finished,
    }
    if position.drawn is not None:
        fields["drawn"] = position.drawn
    if position.order is not None:
        fields["order"] = position.order
    return fields


def _has_length(sampler: Any) -> bool:
    try:
        len(sampler)
    except TypeError:
        return False
    return True
