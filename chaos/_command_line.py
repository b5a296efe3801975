"""The command ``python -m chaos``: its options, its progress bar and its exit code."""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import shutil
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch._dynamo  # optimizers load it; once here is faster than in each fork
import torch.distributed.fsdp  # wrapping for several ranks loads it
import tqdm

from chaos._cases import chain, draw_case
from chaos._mutants import MUTANTS
from chaos._picture import draw
from chaos._pool import run_cases
from chaos._report import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chaos._cases import Case
    from chaos._run import Kill

__all__ = ["main"]

_KILLS = 1000
_FAILURES = 20
_LINE_LENGTH = 200
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - for thousands of files, in a new folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a session.

    Returns
    -------
    int
        0 if every run equals the undisturbed one, otherwise 1.
    """
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # otherwise each fork copies what the collector visits
    tqdm.tqdm.monitor_interval = 0  # its thread does not survive a fork
    session = Session(options.seed, options.ranks, options.chain, options.without)
    options.results.mkdir(parents=True, exist_ok=True)
    scratch = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="brain-chaos-", dir=scratch))
    began = time.monotonic()
    print(f"seed {options.seed}: --seed {options.seed} aims the same kills again")
    try:
        _run(options, session, directory)
    except KeyboardInterrupt:
        print("interrupted: these are the results so far", file=sys.stderr)
    finally:
        session.seconds = time.monotonic() - began
        _keep_failures(session, directory, options.results)
        shutil.rmtree(directory, ignore_errors=True)
    print(session.text())
    session.write(options.results)
    try:
        draw(session.kills, options.results / "kills.png")
    except ImportError:
        print("no picture: install matplotlib, for instance with brain-core[plot]")
    print(f"written to {options.results}/: report.json, table.md, kills.png")
    return 1 if session.failed or not session.outcomes else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--kills", type=int, help=f"how many kills; {_KILLS} by default")
    parser.add_argument(
        "--chain", type=int, metavar="KILLS", help="kill one run so many times in a row"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--case", type=int, help="run only this case of the seed")
    parser.add_argument(
        "--callbacks", action="store_true", help="only cases that train with callbacks"
    )
    parser.add_argument("--minutes", type=float, help="start no case after this time")
    parser.add_argument(
        "--ranks", type=_numbers, default=(1, 2, 3), help="1,2,3 by default", metavar="N[,N]"
    )
    jobs = (os.cpu_count() or 1) + 1
    parser.add_argument("--jobs", type=int, default=jobs, help=f"runs at once; {jobs} by default")
    parser.add_argument(
        "--failures",
        type=int,
        default=_FAILURES,
        help=f"stop after so many; {_FAILURES} by default",
    )
    parser.add_argument(
        "--without", choices=MUTANTS, help="do not restore this: chaos must then find failures"
    )
    parser.add_argument("--results", type=Path, default=Path("results/chaos"))
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _run(options: argparse.Namespace, session: Session, directory: Path) -> None:
    kills = options.kills
    if kills is None and options.chain is None and options.case is None:
        kills = _KILLS
    total = (kills or 0) + (options.chain or 0) * len(options.ranks)
    with tqdm.tqdm(total=total or None, unit="kill", mininterval=1.0, miniters=1) as bar:
        kills_seen: list[Kill] = []

        def on_kill(kill: Kill) -> None:
            kills_seen.append(kill)
            bar.update()

        for cases in (_chains(options), _cases(options, kills, kills_seen)):
            for outcome in run_cases(cases, directory, options.jobs, on_kill, options.without):
                session.outcomes.append(outcome)
                failed = len(session.failed)
                bar.set_postfix(equal=len(session.outcomes) - failed, failed=failed, refresh=False)
                if outcome.problems:
                    problem = textwrap.shorten(outcome.problems[0], _LINE_LENGTH)
                    bar.write(f"case {outcome.number} failed: {problem}")
                if failed >= options.failures:
                    bar.write(f"stopped after {failed} failures")
                    return


def _chains(options: argparse.Namespace) -> Iterator[Case]:
    if options.chain is not None:
        for ranks in options.ranks:
            yield chain(options.seed, ranks, options.chain)


def _cases(
    options: argparse.Namespace, kills: int | None, kills_seen: list[Kill]
) -> Iterator[Case]:
    if options.case is not None:
        yield draw_case(options.seed, options.case, options.ranks)
        return
    deadline = float("inf") if options.minutes is None else time.monotonic() + 60 * options.minutes
    in_chains = len(kills_seen)
    for number in itertools.count():
        if kills is None or len(kills_seen) - in_chains >= kills or time.monotonic() > deadline:
            return
        case = draw_case(options.seed, number, options.ranks)
        if case.config.callbacks or not options.callbacks:
            yield case


def _keep_failures(session: Session, directory: Path, results: Path) -> None:
    """Replace the files of an earlier session's failed cases by those of this one."""
    kept = results / "failed"
    shutil.rmtree(kept, ignore_errors=True)
    for outcome in session.failed:
        name = f"{'chain' if outcome.chained else 'case'}-{outcome.number}"
        if (directory / name).exists():
            shutil.copytree(directory / name, kept / name)
