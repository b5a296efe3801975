"""The command ``python -m chaos soak``: its options, its progress bar and its exit code."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import tqdm

from chaos.soak.picture import draw
from chaos.soak.report import is_steady, text, write
from chaos.soak.session import Session, run
from chaos.soak.status import LEAKS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - for thousands of files, in a new folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak.

    Returns
    -------
    int
        0 if nothing grows, otherwise 1.
    """
    options = _parser().parse_args(arguments)
    if not os.path.exists("/proc/self/task"):
        print("soak reads /proc, which this system does not have: run it on Linux", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    scratch = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="brain-chaos-soak-", dir=scratch))
    session = Session()
    print("the time begins after the first round of training, saving and evaluation", flush=True)
    try:
        _run(session, folder, 60 * options.minutes, options.leak)
    except KeyboardInterrupt:
        print("interrupted: these are the results so far", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(text(session))
    write(session, options.out)
    written = ["soak.txt", "soak.json"]
    try:
        draw(session, options.out / "soak.png")
        written.append("soak.png")
    except ImportError:
        print("no picture: install matplotlib, for instance with brain-core[plot]")
    print(f"written to {options.out}/: {', '.join(written)}")
    return 0 if is_steady(session) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="30 by default")
    parser.add_argument(
        "--leak", choices=LEAKS, default="none", help="leak this on purpose: soak must then fail"
    )
    parser.add_argument("--out", type=Path, default=Path("results/chaos"), metavar="FOLDER")
    return parser


def _run(session: Session, folder: Path, seconds: float, leak: str) -> None:
    bar_format = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}{postfix}]"
    with tqdm.tqdm(total=seconds, bar_format=bar_format, mininterval=1.0) as bar:

        def on_sample() -> None:
            latest = {name: one.values[-1] for name, one in session.series.items() if one.values}
            bar.set_postfix(
                steps=f"{session.counts.get('steps', 0):,.0f}",
                memory=f"{latest.get('rss', 0):.0f} MB",
                files=f"{latest.get('open_files', 0):.0f}",
                refresh=False,
            )
            if not bar.n:
                bar.reset()  # the start of the processes does not count
            bar.update(session.seconds - bar.n)

        run(session, folder, seconds, leak, on_sample)
