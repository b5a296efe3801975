"""Passes over a stream: torch's DataLoader reads it, and this process knows the position."""

from __future__ import annotations

import inspect
import itertools
import logging
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from brain_data.batch.device import prefetch_to_device
from brain_data.errors import ResumeError
from brain_data.fetching.inner import make_inner_loader
from brain_data.fetching.json_values import from_json, to_json
from brain_data.streams.own_state import LoadedState
from brain_data.streams.position import StreamPosition, WorkerPosition
from brain_data.streams.reader import ReaderStart
from brain_data.streams.worker import StreamFetcher, StreamItem
from brain_dist import get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)


class StreamPass:
    """One pass over a stream: the batches yielded, and the position of each worker.

    Parameters
    ----------
    dataset
        The stream.
    items
        What the workers yield; read when it is needed.
    resume
        The position at which the pass begins.
    counted_begin
        The dataset's own state at the beginning of this pass, if it counts samples.
    expected_length
        The number of batches that ``len(loader)`` has returned, if it was called.
    """

    def __init__(
        self,
        dataset: Any,
        items: Iterator[StreamItem],
        resume: StreamPosition,
        *,
        counted_begin: Any = None,
        expected_length: int | None = None,
    ) -> None:
        self.epoch = resume.epoch
        self.num_yielded = resume.batches
        self._dataset = dataset
        self._items = items
        self._finished = resume.finished
        self._num_workers = resume.num_workers
        self._next_worker = resume.next_worker
        self._workers = dict(resume.workers)
        self._counted_begin = counted_begin
        self._num_rows = 0
        self._expected_length = expected_length
        self._has_started = self.was_finished = resume.finished

    @property
    def ended(self) -> bool:
        """Whether the end of the pass was seen."""
        return self._finished

    def wait_for_start(self, *, resume_anyway: bool = False) -> None:
        """Wait until each worker has reached its position, and check that it is the same one.

        Raises
        ------
        ResumeError
            If reading again has led to other batches.
        """
        starts = self._receive_starts()
        again = max((each.read_again for each in starts), default=0)
        errors = [each.state_error for each in starts if each.state_error is not None]
        name = type(self._dataset).__name__
        if errors:
            logger.warning(
                "The state of %s cannot be used (%s): its first %d batches are read again",
                name, errors[0], self.num_yielded,
            )  # fmt: skip
        elif again:
            logger.warning(
                "%s has no state_dict%s: its first %d batches are read again to reach the position",
                name,
                " whose result can be saved" if hasattr(self._dataset, "state_dict") else "",
                self.num_yielded,
            )
        elif any(each.used_state for each in starts) and self.num_yielded:
            logger.info("The stream resumes at batch %d from its own state", self.num_yielded)
        if any(each.matches is False for each in starts):
            check_same_batches(name, self.num_yielded, resume_anyway=resume_anyway)

    def batches(self, device: torch.device | None) -> Iterator[Any]:
        """Yield batches, and record the positions after them."""
        self._receive_starts()
        items: Iterator[Any] = self._batch_items()
        if device is not None:
            items = prefetch_to_device(items, device)
        for item in items:
            self.num_yielded += 1
            self._num_rows += item.num_rows
            self._next_worker = (item.worker + 1) % max(1, self._num_workers)
            self._workers[item.worker] = item.position
            self._warn_if_longer()
            yield item.batch
        self._finished = True

    def _batch_items(self) -> Iterator[StreamItem]:
        """Yield the items that have a batch; record the stream's own states after the end."""
        for item in self._items:
            if item.position is not None:
                yield item
            elif item.batch is not None:
                present = self._workers.get(item.worker, WorkerPosition())
                self._workers[item.worker] = replace(present, ended=True, end=item.batch)

    def position(self) -> StreamPosition:
        """Return the position after the batches yielded so far."""
        if not self.num_yielded:
            self._receive_starts()
        counted = self._counted_begin
        if counted is not None and (self._num_rows or (self._finished and not self.was_finished)):
            counted = counted_state(self._dataset, self._num_rows, ended=self._finished)
        return StreamPosition(
            self.epoch,
            self._num_workers,
            self.num_yielded,
            finished=self._finished,
            next_worker=0 if counted is not None else self._next_worker,
            workers={} if counted is not None else dict(self._workers),
            counted=counted,
        )

    def _receive_starts(self) -> list[ReaderStart]:
        """Receive how the workers have started: the first item of each."""
        if self._has_started:
            return []
        self._has_started = True
        starts = []
        for item in itertools.islice(self._items, max(1, self._num_workers)):
            assert isinstance(item.position, ReaderStart)
            starts.append(item.position)
            self._workers[item.worker] = item.position.position
        return starts

    def _warn_if_longer(self) -> None:
        if self._expected_length is not None and self.num_yielded == self._expected_length + 1:
            hint = (
                " With several workers, check that the dataset yields a part of its rows in each."
                if self._num_workers
                else ""
            )
            warnings.warn(
                f"len() of the loader of {type(self._dataset).__name__} was "
                f"{self._expected_length} batches, but it yields more: correct the dataset's "
                f"__len__.{hint}",
                stacklevel=3,
            )


class StreamLoader:
    """Reads passes over a stream with torch's DataLoader, whose workers may persist."""

    def __init__(self) -> None:
        self._inner: DataLoader[Any] | None = None
        self._loaded = LoadedState()

    def begin(
        self,
        options: DataLoader[Any],
        resume: StreamPosition | None,
        *,
        epoch: int,
        seed: int,
        tells_epoch: bool,
        expected_length: int | None = None,
    ) -> StreamPass:
        """Begin a pass at a position, or at the first batch.

        Parameters
        ----------
        options
            The loader whose dataset, collate function and workers are used.
        resume
            The position; None for the first batch.
        epoch, seed
            Decide the random draws.
        tells_epoch
            Whether to call ``set_epoch`` of the dataset, if it has it.
        expected_length
            As for `StreamPass`.
        """
        dataset: Any = options.dataset
        workers = options.num_workers
        if resume is not None and workers and not options.persistent_workers:
            resume = resume.without_ends()
        position = StreamPosition(epoch, workers) if resume is None else resume
        first_batch, counts = 0, counts_samples(dataset)
        if position.counted is not None and load_counted(dataset, position):
            first_batch = position.batches
        elif position.counted is not None:
            position = resume = position.read_again()
            counts = False
        if position.finished:
            return StreamPass(dataset, iter(()), position, counted_begin=position.counted)
        # Persistent workers keep their position; only new ones can be given another.
        if self._inner is None or resume is not None or not options.persistent_workers:
            fetcher = StreamFetcher(
                dataset,
                options.collate_fn,
                options.batch_size,
                drop_last=bool(options.drop_last),
                resume=resume,
                loaded=self._loaded,
            )
            self._inner = make_inner_loader(options, fetcher)
        assert isinstance(self._inner.dataset, StreamFetcher)
        self._inner.dataset.set_next_pass(seed, epoch, first_batch, tells_epoch=tells_epoch)
        counted = position.counted  # asked for before the workers begin, since they count, too
        if counted is None and counts:
            counted = counted_state(dataset, 0, ended=True)
        return StreamPass(
            dataset,
            iter(self._inner),
            position,
            counted_begin=counted,
            expected_length=expected_length,
        )


def initial_position(dataset: Any, epoch: int, num_workers: int) -> StreamPosition:
    """Return the position of a pass that has not begun, with the dataset's own state."""
    position = StreamPosition(epoch, num_workers)
    if counts_samples(dataset) or not hasattr(dataset, "load_state_dict"):
        return position
    try:
        state = to_json(dataset.state_dict())
    except Exception:  # noqa: BLE001 - no state of a stream's may end a run
        return position
    start = WorkerPosition(start={"dataset": state})
    return StreamPosition(
        epoch, num_workers, workers=dict.fromkeys(range(max(1, num_workers)), start)
    )


def counts_samples(dataset: Any) -> bool:
    """Return whether a dataset's state is asked for with the number of samples yielded.

    ``state_dict(num_samples, from_beginning)`` is the signature of MosaicML's StreamingDataset.
    """
    state_dict = getattr(dataset, "state_dict", None)
    if not callable(state_dict) or not hasattr(dataset, "load_state_dict"):
        return False
    try:
        names = set(inspect.signature(state_dict).parameters)
    except (TypeError, ValueError):
        return False
    return {"num_samples", "from_beginning"} <= names


def load_counted(dataset: Any, position: StreamPosition) -> bool:
    """Load the state of a dataset that counts samples; return whether it could be loaded."""
    try:
        dataset.load_state_dict(from_json(position.counted))
    except Exception as error:  # noqa: BLE001 - no state of a stream's may end a run
        logger.warning(
            "The state of %s cannot be used (%s: %s): its first %d batches are read again",
            type(dataset).__name__, type(error).__name__, error, position.batches,
        )  # fmt: skip
        return False
    return True


def counted_state(dataset: Any, num_samples: int, *, ended: bool) -> Any:
    """Return the state of a dataset that counts samples; None if it has none that can be saved.

    The number is that of all workers and ranks. With ``ended`` it is the beginning of the next
    pass.
    """
    samples = num_samples * get_world_size() // (getattr(dataset, "replication", None) or 1)
    try:
        state = to_json(dataset.state_dict(num_samples=samples, from_beginning=False))
    except Exception:  # noqa: BLE001 - no state of a stream's may end a run
        return None
    if ended and isinstance(state, dict) and {"epoch", "sample_in_epoch"} <= state.keys():
        return {**state, "epoch": state["epoch"] + 1, "sample_in_epoch": 0}
    return state


def check_same_batches(name: str, batches: int, *, resume_anyway: bool) -> None:
    """Raise ResumeError, or warn, since batches that were read again are others."""
    problem = (
        f"the first {batches} batches of {name} were read again to resume, and are not those "
        "before the restart"
    )
    if not resume_anyway:
        raise ResumeError(
            f"the same batches in the same order are required to resume, but {problem}: seed its "
            "shuffling (not by the clock), give it state_dict and load_state_dict, or pass "
            "--resume_anyway (resume_anyway=True of the loader) to keep the position, at which "
            "rows may be repeated or missing"
        )
    logger.warning("Resuming anyway: %s; rows may be repeated or missing", problem)
