"""A DataLoader whose position can be saved, and restored by its index."""

from __future__ import annotations

import logging
import types
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from brain_data.fetching.generator_search import GeneratorSearch
from brain_data.fetching.global_draws import CheckedIterator, GlobalDraws, base_seed_generator
from brain_data.fetching.inner import RowLoader
from brain_data.fetching.iteration import EpochPass
from brain_data.fetching.position import (
    FORMAT,
    Position,
    check_format,
    check_options,
    check_unchanged,
    check_world_size,
    data_fingerprint,
    length_of,
    mark,
    read_position,
    write_position,
)
from brain_data.fetching.sampler_chain import SamplerChain
from brain_data.fetching.worker import draws_no_random_numbers, log_replaced_seeds
from brain_data.order.seeding import global_seed
from brain_data.streams.loader import StreamLoader, StreamPass, initial_position
from brain_data.streams.position import StreamPosition

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from brain_data.order.sharding import LastRound

logger = logging.getLogger(__name__)


class SaveableDataLoader(DataLoader[Any]):
    """A `torch.utils.data.DataLoader` whose position can be saved and restored without replay.

    The position counts the batches that were yielded, not those that workers have prefetched. It
    is an index into the epoch's plan, so resuming reads no batch again; the options of workers may
    differ after a restart. What a dataset or a collate function draws from torch, numpy or random
    is seeded by (seed, epoch, position). It is the same for any number of workers, 0 included; the
    main process's generators are restored. What a ``worker_init_fn`` seeds is replaced.

    Call `set_epoch` before each epoch, as for the samplers. Without it, a pass that follows a
    finished one is the next epoch, unless the sampler has an epoch of its own. An unfinished pass
    that is started again begins at its first batch. A state after the last batch has no batch left;
    one after the end of the pass is the beginning of the next, unless `set_epoch` sets its epoch.

    Parameters
    ----------
    *args, **kwargs
        As for `torch.utils.data.DataLoader`; ``in_order=False`` is refused. On several ranks pass
        a sampler or a batch sampler in a `DistributedSamplerWrapper`.
    seed
        The seed of random draws while rows are fetched; default: SB_GLOBAL_SEED, or SpeechBrain's.
    device
        Copy each batch to this device before it is yielded. On CUDA the next batch is copied on a
        side stream during the computation of the current one.
    elastic
        If no round begins at the saved position on the present number of ranks, shard the remaining
        micro-batches in other groups instead of raising.
    last_round
        How a round with fewer micro-batches than ranks is completed. ``"split"``: the remaining
        rows are split again, and none is repeated. Fewer rows than ranks are merged into the
        preceding round; an epoch with fewer rows than ranks is an error. ``"pad"``: micro-batches
        stay whole, and each rank without one of its own gets a copy of another rank's, a padding
        batch. `is_padding` is true for it, and its loss must be given zero weight. Only then is the
        grouping into steps always independent of the number of ranks. It may be set later; it
        applies from the next ``iter()`` on.
    resume_anyway
        If an IterableDataset is read again and yields other batches than before, warn and keep the
        position, at which rows may be repeated or missing, instead of raising.

    Attributes
    ----------
    counts_passes : bool
        Whether a pass that follows a finished one is the next epoch, if `set_epoch` is not called.

    Raises
    ------
    ValueError
        If arguments exclude each other, or a loaded state belongs to other data or another plan.
    ResumeError
        From ``iter()``, if an IterableDataset does not yield the same batches again.

    Examples
    --------
    >>> loader = SaveableDataLoader(range(10), batch_size=2)
    >>> batches = iter(loader)
    >>> next(batches), next(batches)
    (tensor([0, 1]), tensor([2, 3]))
    >>> resumed = SaveableDataLoader(range(10), batch_size=2)
    >>> resumed.load_state_dict(loader.state_dict())
    >>> next(iter(resumed))
    tensor([4, 5])
    """

    def __init__(
        self,
        *args: Any,
        seed: int | None = None,
        device: torch.device | str | None = None,
        elastic: bool = False,
        last_round: LastRound = "split",
        resume_anyway: bool = False,
        **kwargs: Any,
    ) -> None:
        check_options(kwargs)
        super().__init__(*args, **kwargs)
        log_replaced_seeds(self)
        self.seed = global_seed() if seed is None else int(seed)
        self.device = None if device is None else torch.device(device)
        self.elastic = elastic
        self.last_round = last_round
        self.resume_anyway = resume_anyway
        self.counts_passes = True
        self._epoch = 0
        self._epoch_is_set = False  # by `set_epoch`, for the next pass
        self._resume: Position | StreamPosition | None = None
        self._pass: EpochPass | StreamPass | None = None
        self._rows = RowLoader()
        self._streams = StreamLoader()
        self._reported_length: int | None = None
        self._fingerprint: dict[str, Any] = {}
        self._generators: dict[str, Any] | None = None  # as they were when the pass began
        self._saved_generators: dict[str, Any] | None = None
        # Constructed once: counters are those attributes that have changed since.
        searched = [] if self._samplers.order_is_known else self._samplers.samplers
        self._search = GeneratorSearch([self.generator, *searched])
        self._draws = GlobalDraws()
        self._saved_draws: dict[str, Any] | None = None
        self._follows_end = False  # the next pass, a loaded one that had ended
        self._sets_epochs = False  # whether the training loop calls `set_epoch`

    def __class_getitem__(cls, item: Any) -> types.GenericAlias:
        """Return the class with the type of its rows, for annotations."""
        return types.GenericAlias(cls, item)

    @property
    def last_round(self) -> LastRound:
        """How a round with fewer micro-batches than ranks is completed."""
        return self._samplers.last_round

    @last_round.setter
    def last_round(self, last_round: LastRound) -> None:
        self._samplers = SamplerChain(
            self.sampler if self.batch_sampler is None else self.batch_sampler,
            batched=self.batch_sampler is not None,
            drop_last=bool(self.drop_last),
            last_round=last_round,
        )

    @property
    def is_padding(self) -> bool:
        """Whether the batch yielded last is a padding batch; see ``last_round="pad"``."""
        return isinstance(self._pass, EpochPass) and self._pass.is_padding

    @property
    def padding_batches(self) -> int:
        """How many ranks, this one or others, got a padding batch as their latest batch."""
        return self._pass.padding_batches if isinstance(self._pass, EpochPass) else 0

    @property
    def epoch(self) -> int:
        """The epoch of the next pass: the sampler's, if it has one."""
        epoch = self._samplers.epoch
        return self._epoch if epoch is None else epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, which decides its order and its random draws.

        A loaded position is kept if its epoch is this one, and dropped if it is another.
        """
        self._epoch_is_set = self._sets_epochs = True
        self._set_epoch(epoch)
        self._draws.forget()  # such a loop restores the global generators itself

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its private class
        """Begin a pass, at the loaded position or at the first batch."""
        resume = self._next_position()
        if isinstance(self.dataset, IterableDataset):
            assert not isinstance(resume, Position)  # checked by load_state_dict
            return self._iterate_stream(resume)
        assert not isinstance(resume, StreamPosition)
        return self._iterate_rows(resume)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        if self._samplers.wrapper is not None:
            return self._samplers.num_rounds()
        self._reported_length = super().__len__()
        return self._reported_length

    def state_dict(self) -> dict[str, Any]:
        """Return the position: plain JSON below 1 kB, the same on all ranks.

        It counts the batches yielded so far in the present pass, and holds fingerprints of the data
        and of the plan. The state of an IterableDataset, if it has one, is added to it, and that of
        a ``generator`` of torch's samplers.
        """
        state: dict[str, Any] = {"format": FORMAT, "seed": self.seed}
        if not self._sets_epochs:
            state["epoch_is_set"] = False
        resume, epoch_pass = self._pending(), self._pass
        is_stream = isinstance(self.dataset, IterableDataset)
        if not is_stream:
            state["world_size"] = self._samplers.world_size
            state["data"] = self._data_fingerprint()
            state["plan"] = self._samplers.settings()
        if resume is not None:
            saved = {"generators": self._saved_generators, "draws": self._saved_draws}
            state |= {name: value for name, value in saved.items() if value is not None}
            return state | resume.fields()
        if not is_stream and self._samplers.may_draw:
            state |= {"draws": draws} if (draws := self._draws_state()) else {}
        if epoch_pass is not None and epoch_pass.epoch == self.epoch:
            if self._generators is not None:
                present = self._search.capture()
                state["generators"] = {**self._generators, "present": present}
            return state | epoch_pass.position().fields()
        if is_stream:
            return state | initial_position(self.dataset, self.epoch, self.num_workers).fields()
        return state | Position(self.epoch).fields()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved position at the next ``iter()``.

        Parameters
        ----------
        state
            What `state_dict` returned, here or on another number of ranks or workers.

        Raises
        ------
        ValueError
            If the data or the plan has changed, naming what changed; or if no round of the present
            number of ranks begins at the position, listing the numbers that are possible.
        """
        check_format(state)
        check_unchanged("seed", {"seed": state["seed"]}, {"seed": self.seed})
        if isinstance(self.dataset, IterableDataset):
            resume: Position | StreamPosition = StreamPosition.checked(
                state, self.dataset, self.num_workers
            )
        else:
            resume = self._checked(state)
        self._pass = None
        self._sets_epochs = state.get("epoch_is_set", True)
        self._set_epoch(state["epoch"])
        self._epoch_is_set = False
        self._resume = resume
        self._saved_generators = state.get("generators")
        self._saved_draws = state.get("draws")
        self._draws.load(self._saved_draws or {})

    @mark("_speechbrain_saver")
    def _speechbrain_save(self, path: Any) -> None:
        """Write SpeechBrain's number of batches, and the whole state to its JSON file."""
        yielded = None if self._pass is None else self._pass.num_yielded
        write_position(path, yielded, self.state_dict())

    @mark("_speechbrain_loader")
    def _speechbrain_load(self, path: Any, end_of_epoch: bool) -> None:
        """Read a position of this class or of SpeechBrain's; at the end of an epoch there is none.

        A loader that was iterated before takes it, too; SpeechBrain's ignores it silently.
        """
        self._pass = self._resume = None
        if end_of_epoch:
            return
        state = read_position(path)
        if isinstance(state, dict):
            self.load_state_dict(state)
        elif isinstance(state, int):
            logger.info("Resuming from SpeechBrain's position, batch %d; data not verified", state)
            if isinstance(self.dataset, IterableDataset):
                self._resume = StreamPosition.from_batch_count(state, self.num_workers)
            else:
                self._resume = Position(None, state * self._samplers.world_size)

    def _data_fingerprint(self) -> dict[str, Any]:
        """Return the data's fingerprint, computed once: it takes a while for millions of ids."""
        if not self._fingerprint or self._fingerprint.get("rows") != length_of(self.dataset):
            self._fingerprint = data_fingerprint(self.dataset)
        return self._fingerprint

    def _set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._samplers.set_epoch(epoch)
        if self._sets_epochs and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def _pending(self) -> Position | StreamPosition | None:
        """Return the loaded position, unless it is of another epoch."""
        resume = self._resume
        return None if resume is None or resume.epoch not in {None, self.epoch} else resume

    def _next_position(self) -> Position | StreamPosition | None:
        """Return the position at which the next pass begins, and set its epoch."""
        resume, self._resume = self._pending(), None
        self._follows_end = False
        former = self._pass if resume is None else resume
        if isinstance(former, StreamPass) and former.was_finished:
            resume = former.position().next_pass()  # nothing was left: the stream is at its end
        if former is not None and former.ended and not self._epoch_is_set:
            if self.counts_passes and self._samplers.epoch is None:
                self._set_epoch(self._epoch + 1)
            if isinstance(former, (Position, StreamPosition)):
                resume = former.next_pass()
                self._follows_end = True
        self._epoch_is_set = False
        return resume

    def _checked(self, state: dict[str, Any]) -> Position:
        """Return a saved position; raise ValueError if this loader cannot resume from it."""
        if "data" not in state:
            raise ValueError(
                "the state of a map-style dataset is required, got that of an IterableDataset: "
                "give the loader the dataset that it was saved with"
            )
        check_unchanged("dataset", state["data"], self._data_fingerprint())
        check_unchanged("plan", state["plan"], self._samplers.settings())
        if not (state["finished"] or self.elastic):
            check_world_size(
                state["position"], state["start"], state["world_size"], self._samplers.world_size
            )
        return Position.from_fields(state)

    def _iterate_rows(self, resume: Position | None) -> Iterator[Any]:
        is_seeded = not draws_no_random_numbers(self.dataset, self.collate_fn)
        # Before the restart: then its order is drawn again.
        had_begun = resume is not None and not self._follows_end
        self._pass = epoch_pass = EpochPass(
            self._samplers,
            self.epoch,
            resume,
            seed=self.seed if is_seeded else None,
            elastic=self.elastic,
            drawing=self._drawing(resume) if self._samplers.may_draw else None,
        )
        search = None if self._samplers.order_is_known else self._search
        saved, self._saved_generators = self._saved_generators, None
        if search is not None:
            if saved is not None and resume is not None:
                search.restore(saved["begin" if had_begun else "present"])
            self._generators = {"begin": search.capture()}
        starts, generator = self._rows.starts_workers(self), None
        if starts and self.persistent_workers and saved is not None and resume is not None:
            generator = base_seed_generator(saved, had_begun=had_begun)
        if self._generators is not None:
            self._generators["draws_base_seed"] = starts and generator is None
        with self._draws.unchanged(resume, had_begun=had_begun):
            batches = self._rows.iterate(epoch_pass, self, device=self.device, generator=generator)
        if search is not None and saved is not None and had_begun:
            search.restore(saved["present"])
        if had_begun and self._draws.is_own:
            return CheckedIterator(batches, self._draws.forget_if_restored)
        return batches

    def _iterate_stream(self, resume: StreamPosition | None) -> Iterator[Any]:
        self._pass = stream_pass = self._streams.begin(
            self,
            resume,
            epoch=self.epoch,
            seed=self.seed,
            tells_epoch=self._sets_epochs,
            expected_length=self._reported_length,
        )
        if resume is not None:
            stream_pass.wait_for_start(resume_anyway=self.resume_anyway)
        return stream_pass.batches(self.device)

    def _drawing(self, resume: Position | None) -> AbstractContextManager[None]:
        """Return the context in which the order of the next pass is drawn."""
        draws, self._saved_draws = self._draws, None
        draws_base_seed = self._rows.starts_workers(self)
        is_drawn = resume is not None and (resume.drawn or draws.begin) is not None
        resumes = is_drawn and not self._follows_end
        if not resumes:
            draws.forget_if_restored(draws_base_seed=draws_base_seed)
        return draws.drawing(resumes=resumes, draws_base_seed=draws_base_seed)

    def _draws_state(self) -> dict[str, Any]:
        """Return the states of the global generators, as far as the samplers' orders need them."""
        state: dict[str, Any] = {}
        if not self._samplers.draws_seed and self._draws.begin is not None:
            state["begin"] = self._draws.begin
        if not self._sets_epochs:
            state["present"] = self._draws.present()
            state["draws_base_seed"] = self._pass is None or not self.persistent_workers
        return state
