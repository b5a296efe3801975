"""Writers and readers of one directory, killed and started again at random."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from chaos.readers.reads import READS, MixedError, NoneError
from chaos.readers.subject import Subject
from chaos.readers.writers import WRITERS, Writer, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Result", "run"]

_READERS = 2
_PAUSES_S = (0.0, 0.05, 0.3)
_KILL_INTERVAL_S = 1.5
_MORE_S = 60.0  # for a busy machine
_GONE = ("CheckpointGoneError", "GoneError")


@dataclass
class Result:
    """The counts of one kind of writer.

    Attributes
    ----------
    outcomes : Counter
        The reads by outcome: "ok", "mixed", "none", "error", and "gone" for a checkpoint that was
        deleted between listing and reading it in two calls.
    by_read : dict of str to Counter
        The same counts by kind of read.
    problems : list of str
        The first mixed reads and errors.
    killed_writers, killed_readers : int
        The numbers of kills.
    saves : int
        The number of the last save that was read.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    by_read: dict[str, Counter[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    killed_writers: int = 0
    killed_readers: int = 0
    saves: int = 0


def run(
    kind: str, folder: Path, seconds: float, seed: int, log: TextIO, *, kills: bool, reads: int = 0
) -> Result:
    """Let readers read beside one kind of writer.

    Parameters
    ----------
    kind : str
        The kind of writer.
    folder : Path
        A new directory; the log of each reader is in it.
    seconds : float
        How long.
    seed : int
        Determines pauses, reads and kills.
    log : text file
        Gets a line for each read: when, beside which writer, which kind, the outcome, and which
        checkpoints it saw.
    kills : bool
        Whether to kill processes.
    reads : int
        It takes longer, up to a minute, until this many reads have been made.
    """
    draw = random.Random(f"{seed} {kind}")
    writer, result = WRITERS[kind], Result()
    directory = folder / "save"
    first = Subject(directory, **writer.options)
    first.checkpointer.save_checkpoint(first.fill(1), name=writer.name)
    first.checkpointer.close()
    starts = 0

    def start_writer() -> list[int]:
        nonlocal starts
        starts += 1
        return _start_ranks(writer, directory, folder / f"store-{starts}", draw.choice(_PAUSES_S))

    def start_reader(number: int) -> int:
        nonlocal starts
        starts += 1
        reads = folder / f"reads-{number}.jsonl"
        return _fork(
            lambda: _read(directory, reads, kind, random.Random(f"{seed} {kind} {starts}"))
        )

    writing, reading = start_writer(), [start_reader(number) for number in range(_READERS)]
    deadline = time.monotonic() + seconds
    latest = deadline + _MORE_S
    try:
        while (now := time.monotonic()) < (latest if _reads_in(folder) < reads else deadline):
            pause_s = draw.random() * 2 * _KILL_INTERVAL_S
            time.sleep(min(abs(deadline - now), pause_s))
            result.problems += _ended(writing)
            if not kills and not result.problems:
                continue
            if draw.random() < 0.5:  # noqa: PLR2004 - half of the kills
                _kill(writing)
                writing = start_writer()
                result.killed_writers += 1
            else:
                number = draw.randrange(_READERS)
                _kill([reading[number]])
                reading[number] = start_reader(number)
                result.killed_readers += 1
    finally:
        _kill([*writing, *reading])
    for number in range(_READERS):
        _count(result, folder / f"reads-{number}.jsonl", log)
    return result


def _start_ranks(writer: Writer, directory: Path, store: Path, pause_s: float) -> list[int]:
    return [
        _fork(lambda rank=rank: write(writer, directory, rank, store, pause_s))  # type: ignore[misc]  # default arguments of a lambda
        for rank in range(writer.ranks)
    ]


def _read(directory: Path, log: Path, kind: str, draw: random.Random) -> None:
    with log.open("a", encoding="utf-8") as file:
        while True:
            name = draw.choice(list(READS))
            entry = {
                "time": time.time(),
                "writer": kind,
                "read": name,
                **_outcome(directory, name, draw),
            }
            file.write(json.dumps(entry) + "\n")
            file.flush()


def _reads_in(folder: Path) -> int:
    logs = folder.glob("reads-*.jsonl")
    return sum(log.read_bytes().count(b'"outcome": "ok"') for log in logs)


def _outcome(directory: Path, name: str, draw: random.Random) -> dict[str, object]:
    try:
        return {"outcome": "ok", **READS[name](directory, draw)._asdict()}
    except MixedError as error:
        return {"outcome": "mixed", "text": str(error)}
    except NoneError as error:
        return {"outcome": "none", "text": str(error)}
    except Exception as error:  # noqa: BLE001 - every error is a result
        kind = "gone" if type(error).__name__ in _GONE else "error"
        return {"outcome": kind, "text": "".join(traceback.format_exception(error))}


def _count(result: Result, reads: Path, log: TextIO) -> None:
    for line in reads.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the last line of a killed reader
            continue
        log.write(line + "\n")
        result.outcomes[entry["outcome"]] += 1
        result.by_read.setdefault(entry["read"], Counter())[entry["outcome"]] += 1
        result.saves = max(result.saves, entry.get("save") or 0)
        if entry["outcome"] not in ("ok", "gone"):
            result.problems.append(f"{entry['read']}: {entry['outcome']}: {entry['text']}")


def _fork(action: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        action()
    except BaseException:  # noqa: BLE001 - a forked process must not return
        traceback.print_exc()
    finally:
        os._exit(1)


def _ended(pids: list[int]) -> list[str]:
    ended = [pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0]]
    for pid in ended:
        pids.remove(pid)
    return ["a writer ended by itself"] if ended else []


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
