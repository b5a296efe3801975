"""What the machine is asked to do, and what it answers."""

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
import torch._dynamo  # loaded here once, not in each fork: optimizers load it when they are made
import torch.distributed.fsdp  # as wrapping for several ranks does
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
_LINE = 200
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - files by the thousand, and a folder of our own in it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a session.

    Returns
    -------
    int
        0 if every run was as the undisturbed one, 1 if not.
    """
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else each fork copies what the collector looks at
    tqdm.tqdm.monitor_interval = 0  # its thread would not survive a fork
    session = Session(asked.seed, asked.ranks, asked.chain, asked.without)
    asked.results.mkdir(parents=True, exist_ok=True)
    scratch = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    room = Path(tempfile.mkdtemp(prefix="brain-chaos-", dir=scratch))
    began = time.monotonic()
    print(f"seed {asked.seed}: the same kills are aimed again with --seed {asked.seed}")
    try:
        _run(asked, session, room)
    except KeyboardInterrupt:
        print("interrupted: this is what was found so far", file=sys.stderr)
    finally:
        session.seconds = time.monotonic() - began
        _keep_failures(session, room, asked.results)
        shutil.rmtree(room, ignore_errors=True)
    print(session.text())
    session.write(asked.results)
    try:
        draw(session.kills, asked.results / "kills.png")
    except ImportError:
        print("no picture: it needs matplotlib, which brain-core[plot] installs")
    print(f"written to {asked.results}/: report.json, table.md, kills.png")
    return 1 if session.failed or not session.outcomes else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--kills", type=int, help=f"how many; {_KILLS} by default")
    parser.add_argument("--chain", type=int, metavar="KILLS", help="kill one run so often in a row")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--case", type=int, help="only this case of the seed's, to see it again")
    parser.add_argument("--minutes", type=float, help="begin no case after so many")
    parser.add_argument(
        "--ranks", type=_numbers, default=(1, 2, 3), help="1,2,3 by default", metavar="N[,N]"
    )
    jobs = (os.cpu_count() or 1) + 1
    parser.add_argument("--jobs", type=int, default=jobs, help=f"runs at once; {jobs} by default")
    parser.add_argument(
        "--failures", type=int, default=_FAILURES, help=f"stop after so many; {_FAILURES}"
    )
    parser.add_argument(
        "--without", choices=MUTANTS, help="restore everything but this: failures must be found"
    )
    parser.add_argument("--results", type=Path, default=Path("results/chaos"))
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _run(asked: argparse.Namespace, session: Session, room: Path) -> None:
    kills = asked.kills
    if kills is None and asked.chain is None and asked.case is None:
        kills = _KILLS
    total = (kills or 0) + (asked.chain or 0) * len(asked.ranks)
    with tqdm.tqdm(total=total or None, unit="kill", mininterval=1.0, miniters=1) as bar:
        seen: list[Kill] = []

        def on_kill(kill: Kill) -> None:
            seen.append(kill)
            bar.update()

        for cases in (_chains(asked), _cases(asked, kills, seen)):
            for outcome in run_cases(cases, room, asked.jobs, on_kill, asked.without):
                session.outcomes.append(outcome)
                failed = len(session.failed)
                bar.set_postfix(equal=len(session.outcomes) - failed, failed=failed, refresh=False)
                if outcome.problems:
                    said = textwrap.shorten(outcome.problems[0], _LINE)
                    bar.write(f"case {outcome.number} failed: {said}")
                if failed >= asked.failures:
                    bar.write(f"{failed} failures are enough")
                    return


def _chains(asked: argparse.Namespace) -> Iterator[Case]:
    if asked.chain is not None:
        for ranks in asked.ranks:
            yield chain(asked.seed, ranks, asked.chain)


def _cases(asked: argparse.Namespace, kills: int | None, seen: list[Kill]) -> Iterator[Case]:
    if asked.case is not None:
        yield draw_case(asked.seed, asked.case, asked.ranks)
        return
    deadline = float("inf") if asked.minutes is None else time.monotonic() + 60 * asked.minutes
    in_chains = len(seen)
    for number in itertools.count():
        if kills is None or len(seen) - in_chains >= kills or time.monotonic() > deadline:
            return
        yield draw_case(asked.seed, number, asked.ranks)


def _keep_failures(session: Session, room: Path, results: Path) -> None:
    """Copy what the failed cases left; of an earlier session nothing stays."""
    kept = results / "failed"
    shutil.rmtree(kept, ignore_errors=True)
    for outcome in session.failed:
        name = f"{'chain' if outcome.chained else 'case'}-{outcome.number}"
        if (room / name).exists():
            shutil.copytree(room / name, kept / name)
