"""A loader that is iterated repeatedly, divided into epochs of a nominal length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_data.batch.batch_size import BatchsizeGuesser
from brain_data.fetching.position import json_path, mark, write_position
from brain_data.loader.resumable import ResumableLoader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class LoopedLoader:
    """Iterates a loader repeatedly; a nominal epoch is a fixed number of batches.

    A pass over the loader continues in the next nominal epoch. Each new pass is a new epoch of the
    loader (``loader.set_epoch``), with another order. The state includes the loader's position.

    Parameters
    ----------
    loader
        A `SaveableDataLoader`, or any loader or iterable, which is wrapped in a `ResumableLoader`
        unless it has a state of its own.
    epoch_length
        Batches in a nominal epoch.
    batchsize_fn
        Takes a batch and returns its number of samples; default: a `BatchsizeGuesser`.

    Attributes
    ----------
    step : int
        Batches yielded in this nominal epoch.
    total_steps, total_samples : int
        Batches and samples yielded since the start of training, on this rank.
    passes : int
        Completed passes over the loader.
    """

    def __init__(
        self,
        loader: Any,
        epoch_length: int,
        batchsize_fn: Callable[[Any], int] | None = None,
    ) -> None:
        self.loader = loader if hasattr(loader, "load_state_dict") else ResumableLoader(loader)
        self.iterator: Iterator[Any] | None = None
        self.epoch_length = epoch_length
        self.batchsize_fn = BatchsizeGuesser() if batchsize_fn is None else batchsize_fn
        self.step = 0
        self.total_steps = 0
        self.total_samples = 0
        self.passes = 0

    def __iter__(self) -> LoopedLoader:
        """Continue the present pass."""
        if self.iterator is None:
            self.iterator = iter(self.loader)
        return self

    def __next__(self) -> Any:
        """Return the next batch, or end the nominal epoch."""
        if self.step >= self.epoch_length:
            self.step = 0
            raise StopIteration
        if self.iterator is None:
            self.iterator = iter(self.loader)
        try:
            batch = next(self.iterator)
        except StopIteration:
            batch = self._first_of_next_pass()
        self.step += 1
        self.total_steps += 1
        self.total_samples += self.batchsize_fn(batch)
        return batch

    def __len__(self) -> int:
        """Return the nominal length of an epoch, in batches."""
        return self.epoch_length

    @property
    def last_round(self) -> Any:
        """The loader's ``last_round``, if it has one."""
        return self.loader.last_round

    @property
    def is_padding(self) -> bool:
        """Whether the batch yielded last is a padding batch of the loader."""
        return bool(getattr(self.loader, "is_padding", False))

    @property
    def padding_batches(self) -> int:
        """How many ranks got a padding batch as their latest batch."""
        return int(getattr(self.loader, "padding_batches", 0))

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and the loader's position."""
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "total_samples": self.total_samples,
            "passes": self.passes,
            "loader": self.loader.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved state; raises as `SaveableDataLoader.load_state_dict` does."""
        if state["loader"] is not None:  # None in states of the first release
            self.loader.load_state_dict(state["loader"])
        self.step = state["step"]
        self.total_steps = state["total_steps"]
        self.total_samples = state["total_samples"]
        self.passes = state["passes"]
        self.iterator = None

    @mark("_speechbrain_saver")
    def save(self, path: Any) -> None:
        """Write SpeechBrain's three numbers to ``path``, and the whole state to its JSON file."""
        numbers = (self.step, self.total_steps, self.total_samples)
        write_position(path, "".join(f"{number}\n" for number in numbers), self.state_dict())

    @mark("_speechbrain_loader")
    def load(self, path: Any, end_of_epoch: bool = True) -> None:
        """Read what `save` wrote, or SpeechBrain's three numbers."""
        if json_path(path).is_file():
            self.load_state_dict(json.loads(json_path(path).read_text(encoding="utf-8")))
        else:
            numbers = Path(path).read_text(encoding="utf-8").split()
            self.step, self.total_steps, self.total_samples = map(int, numbers)
        if not end_of_epoch and self.step == 0 and self.total_steps > 0:
            # Saved after the last batch of a nominal epoch, for example during validation: as in
            # SpeechBrain, the resumed epoch must have no batch left.
            self.step = self.epoch_length

    def _first_of_next_pass(self) -> Any:
        self.passes += 1
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(self.passes)
        self.iterator = iter(self.loader)
        try:
            return next(self.iterator)
        except StopIteration:
            raise RuntimeError(
                "a loader with at least one batch is required, got one without any: "
                "check its dataset, batch size and drop_last"
            ) from None
