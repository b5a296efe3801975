"""The saved position of a stream: where each worker resumes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class WorkerPosition:
    """The position at which one worker of a stream resumes.

    Attributes
    ----------
    done
        Batches that the worker has yielded.
    ended
        Whether these were all.
    state
        The stream's own state, by the name of its owner (``"dataset"``, ``"iterator"``): before the
        last batches, which are read again and compared; None if it has none.
    state_is_after
        Whether ``state`` is the one after the last batch, as in states of the first release.
    start
        The stream's own state at the beginning of the pass, to read again from.
    origin
        The dataset's own state before ``iter()``, if that changes it.
    fingerprint
        The checksum of the last batches.
    checked
        How many batches that are.
    end
        The stream's own state after the end of the previous pass, if the pass has not begun.
    """

    done: int = 0
    ended: bool = False
    state: dict[str, Any] | None = None
    state_is_after: bool = False
    start: dict[str, Any] | None = None
    origin: Any = None
    fingerprint: int | None = None
    checked: int = 1
    end: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """Return the position as it is saved."""
        fields: dict[str, Any] = {"done": self.done, "ended": self.ended}
        if self.checked != 1:
            fields["checked"] = self.checked
        optional = {
            "state": self.state,
            "start": self.start,
            "origin": self.origin,
            "fingerprint": self.fingerprint,
            "end": self.end,
        }
        return fields | {key: value for key, value in optional.items() if value is not None}

    @classmethod
    def from_fields(cls, saved: Any) -> WorkerPosition:
        """Return a saved position, of this layout or of the first release's."""
        if isinstance(saved, dict):
            return cls(**saved)
        done, state, ended = saved
        return cls(done, ended, None if state is None else {"dataset": state}, state_is_after=True)


@dataclass(frozen=True)
class StreamPosition:
    """The position at which a pass over a stream resumes.

    Attributes
    ----------
    epoch
        The epoch; None if the state does not say.
    num_workers
        The workers that share the stream: each has a part of its own.
    batches
        Batches yielded.
    finished
        Whether the pass had ended.
    next_worker
        The worker whose batch is next.
    workers
        The position of each worker that has one.
    counted
        The state of a dataset that counts the samples of all workers itself.
    """

    epoch: int | None
    num_workers: int
    batches: int = 0
    finished: bool = False
    next_worker: int = 0
    workers: dict[int, WorkerPosition] = field(default_factory=dict)
    counted: Any = None

    def fields(self) -> dict[str, Any]:
        """Return the position as it is saved."""
        fields = {
            "epoch": self.epoch,
            "num_workers": self.num_workers,
            "position": self.batches,
            "finished": self.finished,
            "ended": self.finished,
            "turn": self.next_worker,
            "workers": {
                str(number): each.fields() for number, each in sorted(self.workers.items())
            },
        }
        return fields if self.counted is None else fields | {"counted": self.counted}

    @property
    def ended(self) -> bool:
        """Whether the end of the pass was seen."""
        return self.finished

    def without_ends(self) -> StreamPosition:
        """Return the position for new workers, to which the pass before is unknown."""
        follows = any(not each.ended and each.end is not None for each in self.workers.values())
        return replace(self, workers={}) if follows else self

    def next_pass(self) -> StreamPosition:
        """Return the position of the first batch of the pass after one that has ended."""
        workers = {number: WorkerPosition(end=each.end) for number, each in self.workers.items()}
        return replace(self, batches=0, finished=False, next_worker=0, workers=workers)

    def read_again(self) -> StreamPosition:
        """Return the same position, to be reached by reading from the beginning."""
        counted = self.from_batch_count(self.batches, self.num_workers)
        return replace(counted, epoch=self.epoch, finished=self.finished)

    @classmethod
    def from_batch_count(cls, batches: int, num_workers: int) -> StreamPosition:
        """Return the position after a number of batches, to be reached by reading again."""
        shares = max(1, num_workers)
        workers = {
            worker: WorkerPosition((batches - worker + shares - 1) // shares)
            for worker in range(shares)
        }
        return cls(None, num_workers, batches, next_worker=batches % shares, workers=workers)

    @classmethod
    def checked(cls, state: dict[str, Any], dataset: Any, num_workers: int) -> StreamPosition:
        """Return a saved position; raise ValueError if a dataset cannot resume from it."""
        if "workers" not in state:
            raise ValueError(
                "the state of an IterableDataset is required, got that of a map-style dataset: "
                "give the loader the dataset that it was saved with"
            )
        is_shared = state["position"] and not state["finished"] and "counted" not in state
        if is_shared and state["num_workers"] != num_workers:
            raise ValueError(
                f"num_workers={state['num_workers']!r} is required, as each worker of an "
                f"IterableDataset has a part of its own, got {num_workers!r}: use that number of "
                "workers, or a map-style dataset"
            )
        workers = {
            int(number): WorkerPosition.from_fields(saved)
            for number, saved in state["workers"].items()
        }
        needs_state = any("dataset" in (each.state or ()) for each in workers.values())
        if needs_state and not hasattr(dataset, "load_state_dict"):
            raise ValueError(
                "a dataset with load_state_dict is required for its saved state, got "
                f"{type(dataset).__name__!r}: give the loader the dataset that it was saved with"
            )
        return cls(
            state["epoch"],
            num_workers,
            state["position"],
            finished=state["finished"],
            next_worker=state["turn"],
            workers=workers,
            counted=state.get("counted"),
        )
