"""Passes over streams and over any iterable: batches are read again and compared."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from brain_data.batch.device import to_device
from brain_data.fetching.fingerprint import fingerprint
from brain_data.fetching.json_values import from_json, to_json
from brain_data.fetching.position import length_of
from brain_data.order.generator_states import capture_global, restore_global
from brain_data.order.seeding import TemporarySeed, hash_integers
from brain_data.streams.loader import (
    StreamLoader,
    StreamPass,
    check_same_batches,
    initial_position,
)
from brain_data.streams.position import StreamPosition

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

_END = object()


class StreamSource:
    """Passes of torch's DataLoader over an IterableDataset.

    Attributes
    ----------
    tells_epoch : bool
        Whether to call ``set_epoch`` of the dataset, if it has it.
    """

    is_sharded = False

    def __init__(self, loader: DataLoader[Any], *, resume_anyway: bool) -> None:
        self.loader = loader
        self._resume_anyway = resume_anyway
        self.tells_epoch = False
        self._streams = StreamLoader()
        self._reported_length: int | None = None

    def check(self, state: dict[str, Any]) -> None:
        """Raise ValueError if the dataset or the number of workers has changed."""
        StreamPosition.checked(state, self.loader.dataset, self.loader.num_workers)

    def begin(
        self,
        epoch: int,
        seed: int,
        resume: dict[str, Any] | None,
        *,
        follows: dict[str, Any] | None = None,
        device: torch.device | None = None,
    ) -> tuple[StreamPass, Iterator[Any]]:
        """Begin a pass; return it and its batches."""
        position = None
        if resume is not None:
            self.tells_epoch = resume.get("tells_epoch", True)
        if resume is not None or follows is not None:
            position = StreamPosition.checked(
                resume or follows or {}, self.loader.dataset, self.loader.num_workers
            )
            position = position.next_pass() if follows and follows["finished"] else position
        stream_pass = self._streams.begin(
            self.loader,
            position,
            epoch=epoch,
            seed=seed,
            tells_epoch=self.tells_epoch,
            expected_length=self._reported_length,
        )
        if position is not None:
            stream_pass.wait_for_start(resume_anyway=self._resume_anyway)
        return stream_pass, stream_pass.batches(device)

    def state(self, epoch_pass: StreamPass | None, epoch: int) -> dict[str, Any]:
        """Return the position of a pass as it is saved."""
        if epoch_pass is None:
            position = initial_position(self.loader.dataset, epoch, self.loader.num_workers)
        else:
            position = epoch_pass.position()
        return {**position.fields(), "tells_epoch": self.tells_epoch}

    def __len__(self) -> int:
        """Return the number of batches that the dataset reports."""
        self._reported_length = len(self.loader)
        return self._reported_length


class IterableSource:
    """Passes over any loader or iterable.

    A loader with ``state_dict`` and ``load_state_dict`` is asked for its state. Any other is read
    again, and so is one whose state raises an error or cannot be saved. From the second batch on,
    the global generators are seeded for each batch and restored after it, so that training and
    reading do not share their random numbers, and a batch that is read again is the same.

    Parameters
    ----------
    loader
        Anything that can be iterated.
    resume_anyway
        Whether to keep the position if reading again yields other batches.
    """

    is_sharded = False

    def __init__(self, loader: Any, *, resume_anyway: bool) -> None:
        self.loader = loader
        self._resume_anyway = resume_anyway
        self._has_state = all(
            callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict")
        )
        self._length: int | None = None  # of the last pass that has ended
        self._pass: IterablePass | None = None

    def check(self, state: dict[str, Any]) -> None:
        """Accept any state: batches are compared when they have been read again."""

    def begin(
        self,
        epoch: int,
        seed: int,
        resume: dict[str, Any] | None,
        *,
        follows: dict[str, Any] | None = None,
        device: torch.device | None = None,
    ) -> tuple[IterablePass, Iterator[Any]]:
        """Begin a pass; return it and its batches."""
        if self._pass is not None and self._pass.ended:
            self._length = self._pass.num_yielded
        if resume is not None and resume["finished"]:
            epoch_pass = IterablePass(iter(()), epoch, seed, resume)
        elif resume is not None:
            epoch_pass = self._resumed(epoch, seed, resume)
        else:
            batches = iter(self.loader) if follows is None else self._iter_after(follows)
            epoch_pass = IterablePass(batches, epoch, seed, None)
        self._pass = epoch_pass
        return epoch_pass, epoch_pass.batches(device)

    def state(self, epoch_pass: IterablePass | None, epoch: int) -> dict[str, Any]:  # noqa: ARG002
        """Return the position of a pass as it is saved."""
        position: dict[str, Any] = {"position": 0, "finished": False, "ended": False}
        if epoch_pass is not None:
            position = epoch_pass.position()
            self._length = position["position"] if position["ended"] else self._known_length()
            position["finished"] = self._length is not None and position["position"] >= self._length
        own = self._ask_state()
        return position if own is None else position | {"own": own}

    def __len__(self) -> int:
        """Return the loader's length."""
        length: int = len(self.loader)
        return length

    def _resumed(self, epoch: int, seed: int, resume: dict[str, Any]) -> IterablePass:
        """Return a pass at a position, reached by the loader's own state or by reading again."""
        batches = self._iter_loaded(resume.get("own"))
        name, position = type(self.loader).__name__, resume["position"]
        if batches is not None:
            logger.info("%s resumes at batch %d from its own state", name, position)
            return IterablePass(batches, epoch, seed, resume)
        if position:
            logger.warning(
                "%s has no state that can be loaded: its first %d batches are read again",
                name, position,
            )  # fmt: skip
        epoch_pass = IterablePass(iter(self.loader), epoch, seed, None)
        if not epoch_pass.read_again(resume):
            check_same_batches(name, position, resume_anyway=self._resume_anyway)
        return epoch_pass

    def _iter_after(self, state: dict[str, Any]) -> Iterator[Any]:
        """Return an iterator over the pass that follows another one.

        Some loaders are empty after the state of their end has been loaded, and some begin the next
        pass. Which of the two is tried first, with generators of the former pass.
        """
        if state["finished"]:
            present = capture_global()
            restore_global(state["begin"]["global"])
            try:
                batches = self._iter_loaded(state.get("own"))
                is_empty = batches is None or next(batches, _END) is _END
            finally:
                restore_global(present)
            if is_empty:
                return iter(self.loader)
        return self._iter_loaded(state.get("own")) or iter(self.loader)

    def _known_length(self) -> int | None:
        return length_of(self.loader) if self._length is None else self._length

    def _ask_state(self) -> Any:
        """Return the loader's own state, or None if it has none that can be saved."""
        if not self._has_state:
            return None
        try:
            return to_json(self.loader.state_dict())
        except Exception as error:  # noqa: BLE001 - no state of a loader's may end a run
            self._has_state = False
            logger.warning(
                "The state of %s cannot be saved (%s: %s): on resuming its first batches are read "
                "again",
                type(self.loader).__name__, type(error).__name__, error,
            )  # fmt: skip
            return None

    def _iter_loaded(self, own: Any) -> Iterator[Any] | None:
        """Load the loader's own state and iterate; None if that is not possible."""
        if own is None or not self._has_state:
            return None
        try:
            self.loader.load_state_dict(from_json(own))
            batches: Iterator[Any] = iter(self.loader)
        except Exception as error:  # noqa: BLE001 - no state of a loader's may end a run
            logger.warning(
                "The state of %s cannot be loaded (%s: %s)",
                type(self.loader).__name__, type(error).__name__, error,
            )  # fmt: skip
            return None
        return batches


class IterablePass:
    """One pass over an iterable: the batches yielded, and their checksum."""

    is_padding = False
    padding_batches = 0

    def __init__(
        self, batches: Iterator[Any], epoch: int, seed: int, resume: dict[str, Any] | None
    ) -> None:
        self.epoch = epoch
        self.num_yielded = 0 if resume is None else resume["position"]
        self.ended = resume is not None and resume["ended"]
        self._batches = batches
        self._seed = seed
        self._crc = 0 if resume is None else resume["fingerprint"]

    def batches(self, device: torch.device | None) -> Iterator[Any]:
        """Yield the remaining batches."""
        while (batch := self._next()) is not _END:
            yield batch if device is None else to_device(batch, device)
        self.ended = True

    def read_again(self, resume: dict[str, Any]) -> bool:
        """Read the batches before a position, and return whether they are the same."""
        for _ in range(resume["position"]):
            if self._next() is _END:
                break
        is_same: bool = (
            self.num_yielded == resume["position"] and self._crc == resume["fingerprint"]
        )
        self.num_yielded, self._crc = resume["position"], resume["fingerprint"]
        return is_same

    def position(self) -> dict[str, Any]:
        """Return the position after the batches yielded so far, as it is saved."""
        return {
            "position": self.num_yielded,
            "finished": self.ended,
            "ended": self.ended,
            "fingerprint": self._crc,
        }

    def _next(self) -> Any:
        number = self.num_yielded
        # The first batch is read with the generators as they are: this is where loaders shuffle.
        seed = hash_integers(self._seed, self.epoch, number)
        with TemporarySeed(seed) if number else nullcontext():
            batch = next(self._batches, _END)
        if batch is not _END:
            self.num_yielded += 1
            self._crc = fingerprint(batch, self._crc)
        return batch
