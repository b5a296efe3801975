"""What a run leaves behind for another one to be compared with, written as it happens."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from brain_core.stage import Stage
from brain_core.testing.state import Pieces, describe, snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from brain_core.brain import Brain

__all__ = ["Kill", "Place", "Record", "Recorder", "read_records"]


class Place(NamedTuple):
    """A point in a run: a batch, counted from 1 within its pass, or the end of it all."""

    stage: str
    epoch: int
    step: int

    def __str__(self) -> str:
        """Name it."""
        if self.stage == "END":
            return "the end of the run"
        doing = {"TRAIN": "training", "VALID": "validation"}.get(self.stage, self.stage.lower())
        if self.step == 0:
            return f"epoch {self.epoch}, end of {doing}"
        return f"epoch {self.epoch}, batch {self.step} of {doing}"


@dataclass
class Record:
    """What was found at a place.

    Attributes
    ----------
    place : Place
        Where.
    state : dict of str to str
        All state just before.
    batch : dict of str to str
        The batch.
    loss : str, optional
        The loss, or the mean of a pass at its end; None where the run was killed before.
    """

    place: Place
    state: Pieces = field(default_factory=dict)
    batch: Pieces = field(default_factory=dict)
    loss: str | None = None


class Kill(NamedTuple):
    """Where a run kills itself: before a batch, or after it and before it can be saved."""

    place: Place
    before: bool


class Recorder:
    """Notes every batch, loss and state of a Brain's `fit` in a file that a kill does not harm.

    Parameters
    ----------
    brain : Brain
        Whose methods are watched, on this instance alone.
    epochs : iterable
        What `fit` is given as ``epoch_counter``.
    path : Path
        Where to write.
    kill : Kill, optional
        Where to end this process by SIGKILL.
    """

    def __init__(self, brain: Brain, epochs: Any, path: Path, kill: Kill | None) -> None:
        self._brain = brain
        self._epochs = epochs
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._kill = kill
        self._fit_batch = brain.fit_batch
        self._evaluate_batch = brain.evaluate_batch
        self._on_stage_end = brain.on_stage_end
        for name in ("fit_batch", "evaluate_batch", "on_stage_end"):
            setattr(brain, name, getattr(self, name))

    def fit_batch(self, batch: Any) -> Any:
        """Train on a batch, and note it."""
        place = self._begin(Stage.TRAIN, batch)
        loss = self._fit_batch(batch)
        self._end(place, loss)
        return loss

    def evaluate_batch(self, batch: Any, stage: Stage) -> Any:
        """Evaluate a batch, and note it."""
        place = self._begin(stage, batch)
        loss = self._evaluate_batch(batch, stage=stage)
        self._end(place, loss)
        return loss

    def on_stage_end(self, stage: Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Note the mean of a pass before a recipe does what it does with it."""
        self._note(Record(Place(stage.name, epoch or 0, 0), loss=_exactly(stage_loss)))
        self._on_stage_end(stage, stage_loss, epoch)

    def finish(self) -> None:
        """Note the state that the run ends with."""
        self._note(Record(Place("END", 0, 0), self._snapshot()))

    def _begin(self, stage: Stage, batch: Any) -> Place:
        place = Place(stage.name, self._epoch(), self._brain.step)
        self._kill_at(Kill(place, before=True))
        self._note(Record(place, self._snapshot(), describe(batch)))
        return place

    def _end(self, place: Place, loss: Any) -> None:
        self._note(Record(place, loss=_exactly(loss)))
        self._kill_at(Kill(place, before=False))

    def _epoch(self) -> int:
        return self._brain._run.epoch or 0  # noqa: SLF001  # of the same package

    def _snapshot(self) -> Pieces:
        return snapshot(self._brain, self._epochs)

    def _kill_at(self, here: Kill) -> None:
        if here == self._kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, record: Record) -> None:
        os.write(self._file, _line(asdict(record)))


def read_records(path: Path) -> list[Record]:
    """Read what a `Recorder` wrote, what was noted before and after a batch joined."""
    records: list[Record] = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        fields = json.loads(line)
        record = Record(**{**fields, "place": Place(*fields["place"])})
        if records and records[-1].place == record.place and records[-1].loss is None:
            records[-1].loss = record.loss
        else:
            records.append(record)
    return records


def _exactly(loss: Any) -> str:
    return repr(float(loss))


def _line(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields) + "\n").encode()
