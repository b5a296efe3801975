"""A DataLoader whose position is saved, and found again by its index."""

from __future__ import annotations

import logging
import multiprocessing
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from brain_data.batch.device import copied_ahead
from brain_data.loader.iteration import HandOut, Pass
from brain_data.loader.position import (
    FORMAT,
    Position,
    check_format,
    check_same,
    check_world_size,
    data_fingerprint,
    marked,
    read,
    write,
)
from brain_data.loader.sampler_chain import Source
from brain_data.loader.streams import Stream, StreamPass, StreamPosition
from brain_data.loader.worker import Progress, Requests, Rows, WorkerStart, draws_nothing, same
from brain_data.order.seeding import global_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brain_data.loader.worker import Request
    from brain_data.order.plan import LastRound

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
    """A `DataLoader` of torch with a position that can be saved and gone back to at once.

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
        As for `torch.utils.data.DataLoader`; ``in_order=False`` is refused. On several ranks give
        a sampler or a batch sampler in a `DistributedSamplerWrapper`.
    seed
        The seed of what is drawn while rows are fetched; by default SB_GLOBAL_SEED, or
        SpeechBrain's.
    device
        Copy each batch to this device before it is handed out; on CUDA the next batch is copied on
        a side stream while the present one computes.
    elastic
        On a number of ranks that does not reach the saved position, deal out what is left in other
        groups instead of raising.
    last_round
        What several ranks get where fewer micro-batches are left than there are ranks.
        ``"split"``: the rows that are left, split again, none of them twice. Fewer rows than ranks
        join the round before; an epoch with fewer rows than ranks is an error. ``"fill"``:
        micro-batches stay whole, and each rank that none is left for is handed another rank's
        again, for which `is_filler` is true and whose loss must weigh nothing. Only so does the
        grouping into steps not depend on the number of ranks in any case. It may be set later; it
        holds from the next ``iter()`` on.

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
        last_round: LastRound = "split",
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
        self.last_round = last_round
        self._epoch = 0
        self._resume: Position | StreamPosition | None = None
        self._pass: Pass | StreamPass | None = None
        self._inner: DataLoader[Any] | None = None
        self._progress: Progress | None = None
        self._fingerprint: dict[str, Any] = {}

    @property
    def last_round(self) -> LastRound:
        """What several ranks get where fewer micro-batches are left than there are ranks."""
        return self._source.last_round

    @last_round.setter
    def last_round(self, last_round: LastRound) -> None:
        self._source = Source(
            self.sampler if self.batch_sampler is None else self.batch_sampler,
            batched=self.batch_sampler is not None,
            drop_last=bool(self.drop_last),
            last_round=last_round,
        )

    @property
    def is_filler(self) -> bool:
        """Whether the batch handed out last is another rank's too; see ``last_round="fill"``."""
        return isinstance(self._pass, Pass) and self._pass.is_filler

    @property
    def fillers(self) -> int:
        """How many ranks, this one or others, were handed a filler as their latest batch."""
        return self._pass.fillers if isinstance(self._pass, Pass) else 0

    @property
    def epoch(self) -> int:
        """The epoch that the next pass belongs to: the sampler's, where it has one."""
        epoch = self._source.epoch
        return self._epoch if epoch is None else epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, for its order and what is drawn in it.

        A loaded position is kept where its epoch is this one, and dropped where it is another.
        """
        self._epoch = epoch
        self._source.set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its private class
        """Begin a pass, at the loaded position or at the first batch."""
        resume, self._resume = self._pending(), None
        if isinstance(self.dataset, IterableDataset):
            assert not isinstance(resume, Position)  # load_state_dict has looked
            return self._iterate_stream(resume)
        assert not isinstance(resume, StreamPosition)
        seed = None if draws_nothing(self.dataset, self.collate_fn) else self.seed
        self._pass = current = Pass(
            self._source, self.epoch, resume, seed=seed, elastic=self.elastic
        )
        if self._source.pure:
            current.prepare()  # a position that cannot be reached is said before workers start
        batches = self._copied(iter(self._loader_of_requests()))
        # Else after torch's own draw from the global generator, as where torch iterates by itself.
        current.prepare()
        return HandOut(current, batches, self._progress)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return super().__len__() if self._source.wrapper is None else self._source.rounds()

    def state_dict(self) -> dict[str, Any]:
        """Return the position: plain JSON under 1 kB, the same on all ranks.

        It counts the batches handed out so far in the present pass, and carries fingerprints of the
        data and of the plan. An IterableDataset's own state, where it has one, comes on top.
        """
        state: dict[str, Any] = {"format": FORMAT, "seed": self.seed}
        resume, current = self._pending(), self._pass
        if isinstance(self.dataset, IterableDataset):
            here: Position | StreamPosition = StreamPosition(self.epoch, self.num_workers)
        else:
            here = Position(self.epoch)
            state["world_size"] = self._source.world_size
            state["data"] = self._data_fingerprint()
            state["plan"] = self._source.settings()
        if resume is not None:
            here = resume
        elif current is not None and current.epoch == self.epoch:
            here = current.position()
        return state | here.fields()

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
        check_format(state)
        check_same("seed", {"seed": state["seed"]}, {"seed": self.seed})
        if isinstance(self.dataset, IterableDataset):
            resume: Position | StreamPosition = StreamPosition.checked(
                state, self.dataset, self.num_workers
            )
        else:
            resume = self._checked(state)
        self._pass = None
        self.set_epoch(state["epoch"])
        self._resume = resume

    @marked("_speechbrain_saver")
    def _speechbrain_save(self, path: Any) -> None:
        """Write the position for a checkpointer: SpeechBrain's number, and ours beside it."""
        write(path, None if self._pass is None else self._pass.handed_out, self.state_dict())

    @marked("_speechbrain_loader")
    def _speechbrain_load(self, path: Any, end_of_epoch: bool) -> None:
        """Read a position of ours or of SpeechBrain's, for the next ``iter()``.

        At the end of an epoch there is none: the next pass begins at its first batch. A loader that
        was iterated before takes the position too, where the reference leaves it out in silence.
        """
        self._pass = self._resume = None
        if end_of_epoch:
            return
        state = read(path)
        if isinstance(state, dict):
            self.load_state_dict(state)
        elif isinstance(state, int):
            logger.info("SpeechBrain's position: batch %d, nothing to compare the data with", state)
            if isinstance(self.dataset, IterableDataset):
                self._resume = StreamPosition.replayed(state, self.num_workers)
            else:
                self._resume = Position(None, state * self._source.world_size)

    def _data_fingerprint(self) -> dict[str, Any]:
        """Return the data's fingerprint, taken once: for millions of ids it takes a while."""
        if self._fingerprint.get("rows") != len(self.dataset):  # type: ignore[arg-type]  # Sized
            self._fingerprint = data_fingerprint(self.dataset)
        return self._fingerprint

    def _pending(self) -> Position | StreamPosition | None:
        """Return the loaded position, unless it is of another epoch."""
        resume = self._resume
        return None if resume is None or resume.epoch not in {None, self.epoch} else resume

    def _checked(self, state: dict[str, Any]) -> Position:
        """Return a saved position that this loader can go on from, or say why it cannot."""
        if "data" not in state:
            raise ValueError(
                "the state of a dataset with rows is required, got one of an IterableDataset: give "
                "the loader the dataset that it had"
            )
        check_same("dataset", state["data"], self._data_fingerprint())
        check_same("plan", state["plan"], self._source.settings())
        if not (state["finished"] or self.elastic):
            check_world_size(
                state["position"], state["start"], state["world_size"], self._source.world_size
            )
        return Position.from_fields(state)

    def _iterate_stream(self, resume: StreamPosition | None) -> Iterator[Any]:
        self._pass = current = StreamPass(resume, self.epoch, self.num_workers)
        current.announce(self.dataset)
        # Workers that persist have their place; only fresh ones can be given another.
        if self._inner is None or resume is not None or not self.persistent_workers:
            self._inner = self._inner_loader(
                Stream(
                    self.dataset,
                    self.collate_fn,
                    self.batch_size,
                    drop_last=bool(self.drop_last),
                    seed=self.seed,
                    resume=resume,
                )
            )
        assert isinstance(self._inner.dataset, Stream)
        self._inner.dataset.begin(self.epoch)
        return current.hand_out(self._copied(current.unwrapped(iter(self._inner))))

    def _loader_of_requests(self) -> DataLoader[Any]:
        if self._inner is not None and self.persistent_workers:
            return self._inner
        self._progress = Progress(self.num_workers) if self.num_workers else None
        rows = Rows(
            self.dataset, self.collate_fn, batched=self._source.batched, progress=self._progress
        )
        self._inner = self._inner_loader(rows, sampler=Requests(self._begin_requests, self.__len__))
        return self._inner

    def _begin_requests(self) -> Iterator[Request]:
        assert isinstance(self._pass, Pass)  # made before the inner loader is iterated
        return self._pass.requests()

    def _inner_loader(self, dataset: Any, **kwargs: Any) -> DataLoader[Any]:
        """Make torch's own loader, which knows nothing of positions."""
        options = {name: getattr(self, name) for name in _INHERITED if hasattr(self, name)}
        if not options.get("pin_memory_device"):
            options.pop("pin_memory_device", None)  # torch warns when it is named
        if self.num_workers:
            context = self.multiprocessing_context or multiprocessing
            is_child = context.get_start_method() != "forkserver"
            options["worker_init_fn"] = WorkerStart(self.worker_init_fn, is_child=is_child)
        return DataLoader(dataset, batch_size=None, collate_fn=same, **kwargs, **options)

    def _copied(self, batches: Iterator[Any]) -> Iterator[Any]:
        return batches if self.device is None else copied_ahead(batches, self.device)
