"""The command ``python -m chaos readers``: its options, its report and its exit code."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch
import torch.distributed.checkpoint
import torch.distributed.device_mesh
import torch.distributed.tensor  # importing these in each fork would take a second

import brain_ckpt
from chaos._report import aligned
from chaos.readers.session import Result, run
from chaos.readers.writers import WRITERS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - for thousands of files, in a new folder
_SLICE_S = 15.0
_MAX_PROBLEMS_SHOWN = 5
_COLUMNS = ("reads", "ok", "mixed", "none", "error", "gone")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a session.

    Returns
    -------
    int
        0 if every read saw one save, otherwise 1.
    """
    options = _parser().parse_args(arguments)
    if options.unprotected:
        from chaos.readers.mutant import remove_protection  # of the present version only

        remove_protection()
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    gc.collect()
    gc.freeze()  # otherwise each fork copies what the collector visits
    scratch = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="brain-chaos-readers-", dir=scratch))
    results = {kind: Result() for kind in options.writers or WRITERS}
    print(f"seed {options.seed}, brain_ckpt from {brain_ckpt.__path__[0]}")
    options.results.mkdir(parents=True, exist_ok=True)
    try:
        with (options.results / "readers.jsonl").open("w", encoding="utf-8") as log:
            _run(options, results, folder, log)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = _report(results)
    print(text)
    content = {kind: vars(result) for kind, result in results.items()}
    (options.results / "readers.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (options.results / "readers.txt").write_text(text, encoding="utf-8")
    print(f"written to {options.results}/: readers.txt, readers.json, readers.jsonl")
    return 1 if any(result.problems or not result.outcomes for result in results.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos readers", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="20 by default")
    parser.add_argument(
        "--reads", type=int, default=0, help="of each kind at least, if it takes longer, too"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument(
        "--writers", choices=WRITERS, action="append", help="only this kind; can be repeated"
    )
    parser.add_argument(
        "--unprotected", action="store_true", help="read by path: this must find mixed saves"
    )
    parser.add_argument("--no-kills", action="store_true", help="kill neither writers nor readers")
    parser.add_argument("--results", type=Path, default=Path("results/chaos"))
    return parser


def _run(
    options: argparse.Namespace, results: dict[str, Result], folder: Path, log: TextIO
) -> None:
    end = time.monotonic() + 60 * options.minutes
    slice_s = min(_SLICE_S, 60 * options.minutes / len(results))
    number = 0
    # Every kind has its turn, also where starting the processes takes long.
    while number < len(results) or time.monotonic() < end - slice_s / 2:
        kind = list(results)[number % len(results)]
        place = folder / str(number)
        place.mkdir()
        missing = options.reads - results[kind].outcomes["ok"]
        seed, kills = options.seed + number, not options.no_kills
        part = run(kind, place, slice_s, seed, log, kills=kills, reads=missing)
        _add(results[kind], part)
        shutil.rmtree(place)
        number += 1
        reads = sum(result.outcomes.total() for result in results.values())
        wrong = sum(len(result.problems) for result in results.values())
        print(f"{kind}: {reads:,} reads, {wrong} problems", flush=True)


def _add(total: Result, part: Result) -> None:
    total.outcomes.update(part.outcomes)
    total.problems += part.problems
    for read, outcomes in part.by_read.items():
        total.by_read.setdefault(read, Counter()).update(outcomes)
    total.killed_writers += part.killed_writers
    total.killed_readers += part.killed_readers
    total.saves += part.saves


def _report(results: dict[str, Result]) -> str:
    table = [["writer", "saves", *_COLUMNS, "killed writers", "killed readers"]]
    every = Result()
    for result in results.values():
        _add(every, result)
    for kind, result in (*results.items(), ("all", every)):
        counts = [f"{result.outcomes[name]:,}" for name in _COLUMNS[1:]]
        kills = [f"{result.killed_writers:,}", f"{result.killed_readers:,}"]
        reads = f"{result.outcomes.total():,}"
        table.append([kind, f"{result.saves:,}", reads, *counts, *kills])
    readers = [["reader", *_COLUMNS]]
    for read, outcomes in sorted(every.by_read.items()):
        counts = [f"{outcomes[name]:,}" for name in _COLUMNS[1:]]
        readers.append([read, f"{outcomes.total():,}", *counts])
    problems = [
        f"\n{kind}: {problem}"
        for kind, result in results.items()
        for problem in result.problems[:_MAX_PROBLEMS_SHOWN]
    ]
    return "\n".join([aligned(table), aligned(readers), *problems])
