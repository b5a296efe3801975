"""What a run did, line by line; written past every buffer, so that a kill loses nothing of it.

A journal begins with where the process took over, as a number of records: after that many records
of the undisturbed run. Then come its own, one for each batch and each end of a stage::

    ["TRAIN", epoch, batch, ids, {"loss": …, "model.0.weight": …}]
    ["VALID", epoch, batch, ids, {"loss": …}]
    ["ENDED", epoch, 0, [], {"TRAIN": …}]

Numbers are written as hexadecimal floats, tensors as checksums: equal texts are equal bits.
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

__all__ = ["Journal", "Written", "checksums", "first_difference", "lost_and_repeated", "read"]

Record = list[Any]


class Journal:
    """The writing end.

    Parameters
    ----------
    path : Path
        The file, which is not there yet.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags)
        self.records = 0

    def took_over(self, checkpoint: str | None, records: int) -> None:
        """Write where this process begins."""
        self.records = records
        self._write({"from": checkpoint, "records": records})

    def note(self, record: Record) -> None:
        """Write what was done."""
        self._write(record)
        self.records += 1

    def acknowledged(self, records: int) -> None:
        """Write that a checkpoint is safe."""
        self._write({"safe": records})

    def finished(self, facts: Mapping[str, Any]) -> None:
        """Write how it ended."""
        self._write({"end": dict(facts)})

    def _write(self, what: Any) -> None:
        os.write(self._file, (json.dumps(what) + "\n").encode())


@dataclass
class Written:
    """The reading end: what one process wrote.

    Attributes
    ----------
    began : int or None
        After how many records it took over; None if it was killed before it knew.
    checkpoint : str or None
        The checkpoint that it took over from; None for the very beginning.
    records : list
        What it did.
    safe : list of int
        Checkpoints that were acknowledged, by the records that they stand after.
    end : dict or None
        How it ended.
    """

    began: int | None = None
    checkpoint: str | None = None
    records: list[Record] = field(default_factory=list)
    safe: list[int] = field(default_factory=list)
    end: dict[str, Any] | None = None


def read(path: Path) -> Written:
    """Read a journal; a line that the kill cut off is left out."""
    written = Written()
    if not path.exists():
        return written
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        what = json.loads(line)
        if isinstance(what, list):
            written.records.append(what)
        elif "from" in what:
            written.began, written.checkpoint = what["records"], what["from"]
        elif "safe" in what:
            written.safe.append(what["safe"])
        else:
            written.end = what["end"]
    return written


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
    """Say where a process first did something else than the undisturbed one, and what."""
    for number, record in enumerate(done):
        if number >= len(expected):
            return f"{_where(record)} was done after the undisturbed run's end"
        wanted = expected[number]
        if record == wanted:
            continue
        if record[:3] != wanted[:3]:
            return f"{_where(record)} was done in place of {_where(wanted)}"
        if record[3] != wanted[3]:
            return f"{_where(record)} took samples {record[3]} in place of {wanted[3]}"
        for name in {**wanted[4], **record[4]}:
            here, there = record[4].get(name), wanted[4].get(name)
            if here != there:
                return f"{_where(record)}: {name} is {_shown(here)}, undisturbed {_shown(there)}"
    return None


def lost_and_repeated(records: Iterable[Record], rows: int, epochs: int) -> tuple[int, int]:
    """Count, over all epochs, the samples that were not taken and those taken once too often."""
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
