"""How times grow with the state, the rows, the modules, the recoverables and the checkpoints.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--only rows modules] [--largest 8192]

Each figure is the least of several runs. Growth is the exponent between the two largest sizes: 1 is
linear, 0 flat. Prints a table for each axis and draws all of them, on logarithmic scales, to
``results/growth.png``. A state of 8 GB needs 17 GB of memory and 9 GB of disk.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ckpt_many
import data_keyed_order
import data_resume
import torch
from _verdict import ROWS, report
from torch import nn

from brain_ckpt import Checkpointer
from brain_core import Brain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).parent
WIDTH, ROUNDS = 1024, 10
MEGABYTE = os.urandom(2**20)
# An exponent up to these is linear, or flat: the rest is noise, and memory that no longer fits into
# the caches of the processor.
LINEAR, FLAT = 1.1, 0.1


@dataclass
class Curve:
    """The figures of one kind along an axis.

    Parameters
    ----------
    name : str
        What was measured.
    unit : str
        Of the figures.
    aim : float, optional
        The largest exponent between the two largest sizes.
    """

    name: str
    unit: str
    aim: float | None = LINEAR
    figures: dict[float, float] = field(default_factory=dict)

    @property
    def exponent(self) -> float:
        """Return the slope between the two largest sizes, on logarithmic scales."""
        (x0, y0), (x1, y1) = sorted(self.figures.items())[-2:]
        return math.log(y1 / y0) / math.log(x1 / x0)


def least_seconds(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the least time of several runs, after one that is not counted."""
    call()
    return data_keyed_order.least_seconds(call, rounds)


def grow_state(largest: int) -> tuple[Curve, ...]:
    """Save and load one model of a number of megabytes, beside the same bytes raw."""
    save, write = Curve("durable save", "s", None), Curve("raw write + fsync", "s", None)
    load, read = Curve("verified load", "s", None), Curve("raw read", "s", None)
    memory = Curve("memory added by a load", "MB", None)
    sizes = [size for size in (1, 8, 64, 512, 2048, 8192) if size <= largest]
    for megabytes in sizes:
        width = min(WIDTH, 512 * math.isqrt(megabytes))
        layers = max(1, megabytes * 2**20 // (4 * width * width))
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        with tempfile.TemporaryDirectory(prefix="brain-growth-") as folder:
            checkpointer = Checkpointer(Path(folder, "save"), {"model": model})
            raw = Path(folder, "raw")
            for curve, call in (
                (write, functools.partial(_write_raw, raw, megabytes)),
                (read, functools.partial(_read_raw, raw)),
                (save, functools.partial(_save_anew, checkpointer)),
                (load, checkpointer.recover_if_possible),
            ):
                if curve is save:
                    raw.unlink()  # both would not fit into the page cache
                curve.figures[megabytes] = least_seconds(call, 1 if megabytes > 1000 else ROUNDS)
            added = data_keyed_order.peak_bytes(checkpointer.recover_if_possible)
            memory.figures[megabytes] = added / 2**20
            checkpointer.close()
    size = f"{sizes[-1]:,} MB"
    ends = [curve.figures[sizes[-1]] for curve in (save, write, load, memory)]
    report(f"durable save of {size}", ends[0], "s", 1.1, write.name, ends[1])
    report(f"memory added by a load of {size}", ends[3], "MB", 64)
    return save, write, load, read, memory


def _write_raw(path: Path, megabytes: int) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb", buffering=0) as file:
        for _ in range(megabytes):
            file.write(MEGABYTE)
        os.fsync(file.fileno())


def _read_raw(path: Path) -> None:
    buffer = bytearray(2**24)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _save_anew(checkpointer: Checkpointer) -> None:
    checkpointer.delete_checkpoints(num_to_keep=0)
    checkpointer.save_checkpoint()


def grow_rows() -> tuple[Curve, ...]:
    """Resume in the middle of an epoch of a number of shuffled rows."""
    curves = []
    # That of randperm is torch's own, drawn beside it: linear until the caches are too small.
    for name, most, aim in (("keyed", 10**10, FLAT), ("randperm", 10**8, None)):
        curve = Curve(f"first batch, {name}", "ms", aim)
        for rows in [10**power for power in range(4, 11) if 10**power <= most]:
            call = functools.partial(
                data_keyed_order.first_batch, data_keyed_order.KINDS[name], rows
            )
            runs = 1 if name == "randperm" and rows > 10**7 else ROUNDS
            curve.figures[rows] = 1e3 * least_seconds(call, runs)
        curves.append(curve)
    alone = Curve("torch.randperm alone", "ms", None)
    for size in curves[-1].figures:
        runs = 1 if size > 10**7 else ROUNDS
        alone.figures[size] = 1e3 * least_seconds(
            functools.partial(torch.randperm, int(size)), runs
        )
    return *curves, alone


class Layers(Brain):
    """Trains a number of layers that are modules of their own."""

    def compute_forward(self, batch: Any, stage: Any) -> Any:
        """Run all modules, one after the other."""
        for module in self.modules.values():
            batch = module(batch)
        return batch

    def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> Any:
        """Return a loss."""
        return predictions.square().mean()


def grow_modules() -> tuple[Curve, ...]:
    """Train a number of modules: a fit of one step, and each step more."""
    fit, step = Curve("fit of one step", "ms"), Curve("each further step", "ms")
    for number in (1, 5, 50, 500):
        modules = {f"layer{index}": nn.Linear(8, 8) for index in range(number)}

        def train(steps: int, modules: dict[str, nn.Module] = modules) -> None:
            brain = Layers(modules, functools.partial(torch.optim.SGD, lr=0.01))
            brain.fit(range(1), [torch.zeros(2, 8)] * steps, progressbar=False)

        one = least_seconds(functools.partial(train, 1), ROUNDS)
        more = least_seconds(functools.partial(train, 11), ROUNDS)
        fit.figures[number] = 1e3 * one
        step.figures[number] = 1e3 * (more - one) / 10
    return fit, step


def grow_recoverables() -> tuple[Curve, ...]:
    """Save and load a number of small recoverables."""
    save, load = Curve("durable save", "ms"), Curve("verified load", "ms")
    for number in (1, 10, 50, 200):
        with tempfile.TemporaryDirectory(prefix="brain-growth-") as folder:
            parts = {f"part{index}": nn.Linear(4, 4) for index in range(number)}
            checkpointer = Checkpointer(folder, parts)
            save_anew = functools.partial(_save_anew, checkpointer)
            save.figures[number] = 1e3 * least_seconds(save_anew)
            load.figures[number] = 1e3 * least_seconds(checkpointer.recover_if_possible)
            checkpointer.close()
    return save, load


def grow_checkpoints() -> tuple[Curve, ...]:
    """Save and list beside a number of other checkpoints."""
    save, listing = Curve("small durable save", "ms", FLAT), Curve("first listing", "ms")
    with tempfile.TemporaryDirectory(prefix="brain-growth-") as root:
        sizes = (1, 10, 100, 500, 2000)
        folders = {number: Path(root, str(number)) for number in sizes}
        savers = {number: ckpt_many.fill(folder, number) for number, folder in folders.items()}
        time.sleep(ckpt_many.SETTLE_S)
        for number in sizes:
            listing.figures[number] = 1e3 * ckpt_many.seconds_of_a_listing(folders[number], 4)
        saves = ckpt_many.seconds_of_saves(savers, 5 * ROUNDS)
        save.figures.update((number, 1e3 * wall) for number, (wall, _) in saves.items())
        for checkpointer in savers.values():
            checkpointer.close()
    return save, listing


def grow_ranks() -> tuple[Curve, ...]:
    """Train on a number of gloo ranks: the CPU time of a step on each."""
    ours, bare = Curve("Brain", "µs", None), Curve("bare DDP loop", "µs", None)
    for number in (1, 2, 3, 4):
        with tempfile.TemporaryDirectory(prefix="brain-growth-") as folder:
            rows = Path(folder, "rows.jsonl")
            subprocess.run(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                    *("--nproc-per-node", str(number), str(HERE / "dist_overhead.py")),
                    "--quick",
                ],
                env={**os.environ, ROWS: str(rows)},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            row = json.loads(rows.read_text(encoding="utf-8"))
        ours.figures[number] = row["ours"] / number
        bare.figures[number] = row["peer"] / number
    return ours, bare


def grow_workers() -> tuple[Curve, ...]:
    """Resume a shuffled million of rows with a number of workers, beside a plain DataLoader."""
    ours, plain = Curve("first batch", "ms", None), Curve("permute and slice", "ms", None)
    state = data_resume.saved_state()
    for number in (0, 1, 2, 4, 8):
        for curve, call in (
            (ours, functools.partial(data_resume.first_batch, number, state)),
            (plain, functools.partial(data_resume.permute_and_slice, number)),
        ):
            curve.figures[number] = 1e3 * least_seconds(call, ROUNDS)
    return ours, plain


AXES: dict[str, tuple[str, Callable[[], tuple[Curve, ...]]]] = {
    "workers": ("workers", grow_workers),
    "ranks": ("ranks, on this machine", grow_ranks),
    "modules": ("modules", grow_modules),
    "recoverables": ("recoverables", grow_recoverables),
    "checkpoints": ("checkpoints in the directory", grow_checkpoints),
    "rows": ("rows, shuffled", grow_rows),
}


def print_table(label: str, curves: Sequence[Curve]) -> None:
    """Print the figures along one axis, and report the growth of those that have an aim."""
    sizes = sorted({size for curve in curves for size in curve.figures})
    width = max(len(curve.name) for curve in curves)
    print(f"\n{label:{width}}        " + " ".join(f"{size:>9,.0f}" for size in sizes))
    for curve in curves:
        figures = [curve.figures.get(size) for size in sizes]
        cells = " ".join("        -" if figure is None else f"{figure:9.4g}" for figure in figures)
        print(f"{curve.name:{width}}  {curve.unit:>4}  {cells}")
    for curve in curves:
        if curve.aim is not None:
            name = f"growth of {curve.name} with {label}"
            report(name, curve.exponent, "as exponent", curve.aim)


def draw(path: Path, found: dict[str, tuple[Curve, ...]]) -> None:
    """Draw one chart for each axis, with a line that grows as its size does."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(4, len(found))
    rows = math.ceil(len(found) / columns)
    figure, charts = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for chart in charts.flat:
        chart.set_visible(False)
    for chart, (label, curves) in zip(charts.flat, found.items(), strict=False):
        chart.set_visible(True)
        for curve in curves:
            sizes, figures = zip(*sorted(curve.figures.items()), strict=True)
            chart.plot(sizes, figures, marker="o", label=f"{curve.name}, {curve.unit}")
        if max(sizes) < 10:  # ranks and workers
            chart.set_ylim(bottom=0)
            chart.set_xticks(sizes)
        else:
            chart.set_xscale("log")
            chart.set_yscale("log")
            _draw_linear(chart, curves)
        chart.set_xlabel(label)
        chart.grid(alpha=0.3)
        chart.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"\ndrawn to {path}")


def _draw_linear(chart: Any, curves: Sequence[Curve]) -> None:
    """Draw a line of exponent 1 that ends in the highest last figure."""
    ends = [max(curve.figures.items()) for curve in curves]
    size, figure = max(ends, key=lambda end: end[1])
    first = min(min(curve.figures) for curve in curves)
    low, _ = chart.get_ylim()
    begin = max(first, size * low / figure)
    chart.plot(
        [begin, size], [figure * begin / size, figure], "--", color="gray", label="linear", zorder=0
    )


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=(*AXES, "state"), help="these axes")
    parser.add_argument("--largest", type=int, default=8192, help="megabytes of state")
    parser.add_argument("--plot", type=Path, default=Path("results/growth.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    of_state = functools.partial(grow_state, options.largest)
    found = {}
    # The largest last: workers are forked, and take longer from a process that holds much.
    for axis, (label, measure) in {**AXES, "state": ("MB of state", of_state)}.items():
        if not options.only or axis in options.only:
            found[label] = measure()
            print_table(label, found[label])
    draw(options.plot, found)


if __name__ == "__main__":
    main()
