"""What a run did, line by line, written without a buffer so that a kill loses nothing.

A journal begins with the position at which the process resumed, as a number of records of the
undisturbed run. The process's own records follow, one for each batch and each end of a stage::

    ["TRAIN", epoch, batch, ids, {"loss": …, "model.0.weight": …}]
    ["VALID", epoch, batch, ids, {"loss": …}]
    ["ENDED", epoch, 0, [], {"TRAIN": …}]

Numbers are written as hexadecimal floats, tensors as checksums: equal texts mean equal bits.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Entries", "Journal", "checksums", "first_difference", "lost_and_repeated", "read"]

Record = list[Any]


class Journal:
    """Writes a journal.

    Parameters
    ----------
    path : Path
        The file, which must not exist yet.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags)
        self.records = 0

    def resumed(self, checkpoint: str | None, records: int) -> None:
        """Write where this process begins."""
        self.records = records
        self._write({"from": checkpoint, "records": records})

    def add(self, record: Record) -> None:
        """Write a record."""
        self._write(record)
        self.records += 1

    def acknowledged(self, records: int) -> None:
        """Write that a checkpoint was saved after so many records."""
        self._write({"safe": records})

    def finished(self, facts: Mapping[str, Any]) -> None:
        """Write the final state."""
        self._write({"end": dict(facts)})

    def _write(self, entry: Any) -> None:
        os.write(self._file, (json.dumps(entry) + "\n").encode())


@dataclass
class Entries:
    """What one process wrote to its journal.

    Attributes
    ----------
    began : int or None
        The records before its first; None if it was killed before it had resumed.
    checkpoint : str or None
        The checkpoint from which it resumed; None at the start of the training.
    records : list
        What it did.
    safe : list of int
        The records before each acknowledged checkpoint.
    end : dict or None
        The final state; None if the process did not finish.
    """

    began: int | None = None
    checkpoint: str | None = None
    records: list[Record] = field(default_factory=list)
    safe: list[int] = field(default_factory=list)
    end: dict[str, Any] | None = None


def read(path: Path) -> Entries:
    """Read a journal, without a last line that the kill cut off."""
    entries = Entries()
    if not path.exists():
        return entries
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        entry = json.loads(line)
        if isinstance(entry, list):
            entries.records.append(entry)
        elif "from" in entry:
            entries.began, entries.checkpoint = entry["records"], entry["from"]
        elif "safe" in entry:
            entries.safe.append(entry["safe"])
        else:
            entries.end = entry["end"]
    return entries


def checksums(prefix: str, state: Any) -> dict[str, str]:
    """Return a text for each tensor and number in a state: equal texts mean equal bits."""
    found: dict[str, str] = {}
    if isinstance(state, dict):
        for key, inner in state.items():
            found |= checksums(f"{prefix}.{key}", inner)
    elif isinstance(state, (list, tuple)):
        for number, inner in enumerate(state):
            found |= checksums(f"{prefix}[{number}]", inner)
    elif isinstance(state, torch.Tensor):
        plain = state.detach().contiguous().view(-1)
        found[prefix] = f"{zlib.crc32(plain.view(torch.uint8).numpy().tobytes()):08x}"
    else:
        found[prefix] = state.hex() if isinstance(state, float) else repr(state)
    return found


def first_difference(done: Sequence[Record], expected: Sequence[Record]) -> str | None:
    """Describe the first record that differs from the undisturbed run's; None if all agree."""
    for number, record in enumerate(done):
        if number >= len(expected):
            return f"{_where(record)} was done after the undisturbed run's end"
        reference = expected[number]
        if record == reference:
            continue
        if record[:3] != reference[:3]:
            return f"{_where(record)} was done in place of {_where(reference)}"
        if record[3] != reference[3]:
            return f"{_where(record)} took samples {record[3]} in place of {reference[3]}"
        for name in {**reference[4], **record[4]}:
            value, undisturbed = record[4].get(name), reference[4].get(name)
            if value != undisturbed:
                difference = f"{name} is {_shown(value)}, undisturbed {_shown(undisturbed)}"
                return f"{_where(record)}: {difference}"
    return None


def lost_and_repeated(records: Iterable[Record], rows: int, epochs: int) -> tuple[int, int]:
    """Count missing samples and repetitions, over all epochs."""
    taken: dict[int, Counter[int]] = {epoch: Counter() for epoch in range(1, epochs + 1)}
    for kind, epoch, _, ids, _ in records:
        if kind == "TRAIN":
            taken.setdefault(epoch, Counter()).update(ids)
    lost = sum(len(set(range(rows)) - set(counts)) for counts in taken.values())
    repeated = sum(count - 1 for counts in taken.values() for count in counts.values())
    return lost, repeated


def _where(record: Record) -> str:
    kind, epoch, batch = record[:3]
    if kind == "ENDED":
        return f"the end of {next(iter(record[4]))} in epoch {epoch}"
    return f"{kind} batch {batch} of epoch {epoch}"


def _shown(text: str | None) -> str:
    if text is None:
        return "missing"
    return repr(float.fromhex(text)) if "0x" in text else text
