"""Count the messages, bytes and file operations of a run on 1 to 4 ranks; compute them for 4,096.

    python benchmarks/messages.py [--ranks 4096] [--json FILE]

Each rank counts the collectives that Python calls, and what it does with the files of the save
folder, in each phase of a small run: making ready, a step, a save, a stop, and a recovery. The
gradients' own reduction is not among them: DDP starts it, and it costs what DDP costs.

A collective becomes messages as gloo sends them. An all-reduce and an all-gather go around a ring:
2 (P - 1) and P - 1 messages of each rank, one after another. A broadcast is a tree: log2 P
messages, one after another. A gather brings P - 1 messages to its rank. Bytes that differ between 3
and 4 ranks are taken to grow linearly; a list of collectives that differs is an error. (From three
ranks on, a run saves and restores the order of DDP's buckets, too.)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, TrainingStopped

RANKS = (1, 2, 3, 4)
KINDS = ("all_reduce", "all_gather", "broadcast", "gather", "barrier")
PHASES = ("making ready", "a step", "a save", "a stop", "a recovery")
REST = "the rest"
FILE_EVENTS = ("open", "os.", "shutil.")
# The interval of votes is found by then, and the stop comes before the next save.
SAVE_AT, STOP_AT, STEPS = 1200, 1202, 2400
# What a message takes over Ethernet, and what a link carries.
SECONDS_PER_MESSAGE, BYTES_PER_SECOND = 25e-6, 1e9


class Counts:
    """The collectives and file operations of this process, by phase."""

    def __init__(self, folder: str) -> None:
        self.phase = PHASES[0]
        self.collectives: dict[str, list[tuple[str, int]]] = {p: [] for p in (*PHASES, REST)}
        self.files: dict[str, Counter[str]] = {p: Counter() for p in (*PHASES, REST)}
        self._folder = folder
        for kind in KINDS:
            self._wrap(kind)
        sys.addaudithook(self._audit)

    def _wrap(self, kind: str) -> None:
        function = getattr(distributed, kind)

        def counted(*args: Any, **kwargs: Any) -> Any:
            # The second argument of an all-gather is what this rank sends.
            sent = args[1] if kind == "all_gather" else args[0] if args else None
            size = sent.nbytes if isinstance(sent, torch.Tensor) else 0
            self.collectives[self.phase].append((kind, size))
            return function(*args, **kwargs)

        setattr(distributed, kind, counted)  # the process ends with the measurement

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(FILE_EVENTS) and any(self._is_inside(each) for each in args):
            self.files[self.phase][event] += 1

    def _is_inside(self, value: Any) -> bool:
        return isinstance(value, (str, os.PathLike)) and str(value).startswith(self._folder)


class Small(Brain):
    """A training that names the phases of its run."""

    counts: Counts

    def compute_forward(self, batch: Any, stage: Any) -> Any:
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> Any:
        return predictions.square().mean()

    def on_fit_batch_start(self, batch: Any, should_step: Any) -> None:
        if self.counts.phase == "a recovery":
            self.counts.phase = REST
            self.stop()
        elif self.counts.phase in {"making ready", "a save"}:
            self.counts.phase = "a step"

    def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Any, should_step: Any) -> None:
        if self.step == SAVE_AT:
            self.counts.phase = "a save"
        if self.step == STOP_AT:
            self.counts.phase = "a stop"
            self.stop()


def run(folder: str, rank: int, ranks: int, results: Any) -> None:
    """Train until the save and the stop, recover, and return what was counted."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if ranks > 1:
        store = distributed.FileStore(f"{folder}/store", ranks)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    counts = Counts(f"{folder}/save")
    for phase in ("making ready", "a recovery"):
        counts.phase = phase
        train(folder, counts)
    results.put((rank, counts.collectives, counts.files))
    if ranks > 1:
        distributed.destroy_process_group()


def train(folder: str, counts: Counts) -> None:
    """Train from the newest checkpoint on until the stop."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Dropout(0.1))
    counter = EpochCounter(1)
    brain = Small(
        {"model": model},
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        run_opts={
            "device": "cpu",
            "noprogressbar": True,
            "ckpt_interval_steps": SAVE_AT,
        },
        checkpointer=Checkpointer(f"{folder}/save", {"counter": counter}),
    )
    brain.counts = counts
    rows = torch.utils.data.TensorDataset(torch.randn(STEPS * 4, 32))
    with contextlib.suppress(TrainingStopped):
        brain.fit(counter, rows, train_loader_kwargs={"batch_size": 1, "shuffle": True})


def measure(ranks: int) -> list[tuple[Any, Any]]:
    """Return what each of some ranks counted, in rank order."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = context.SimpleQueue()
        processes = [
            context.Process(target=run, args=(folder, rank, ranks, results))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        found = [results.get() for _ in processes]
        for process in processes:
            process.join()
    return [(collectives, files) for _, collectives, files in sorted(found, key=lambda f: f[0])]


def steps_in_order(collectives: dict[str, list[tuple[str, int]]], phase: str) -> list[Any]:
    """Return a phase's collectives; of a step those of one vote, which not every step has."""
    found = collectives[phase]
    votes = {(kind, size) for kind, size in found if kind == "all_reduce"}
    if phase == "a step":
        assert len(votes) <= 1
        return sorted(votes)
    return found[votes_before(found) :] if phase in {"a save", "a stop"} else found


def votes_before(found: list[tuple[str, int]]) -> int:
    """Return how many votes precede a save; of its own, one all-reduce comes first."""
    return max(0, next((i for i, (kind, _) in enumerate(found) if kind != "all_reduce"), 0) - 1)


def hops(kind: str, ranks: int) -> int:
    """Return how many messages rank 0 sends or receives, one after another."""
    if ranks == 1:
        return 0
    tree = math.ceil(math.log2(ranks))
    return {"all_reduce": 2 * (ranks - 1), "broadcast": tree, "barrier": tree}.get(kind, ranks - 1)


def volume(kind: str, size: float, ranks: int) -> float:
    """Return how many bytes rank 0 receives, or sends in a broadcast."""
    if kind == "all_reduce":
        return 2 * size * (ranks - 1) / ranks
    return size * hops(kind, ranks)


def at(ranks: int, few: list[Any], many: list[Any]) -> list[tuple[str, float]]:
    """Return the collectives of any number of ranks, from those of three and of four."""
    kinds = [[kind for kind, _ in each] for each in (few, many)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"3 and 4 ranks must call the same collectives, got {kinds!r}")
    return [
        (kind, size + (larger - size) * (ranks - 3))
        for (kind, size), (_, larger) in zip(few, many, strict=True)
    ]


def files_at(many: int, counted: dict[int, Any], phase: str) -> dict[int, tuple[int, int]]:
    """Return the file operations of rank 0 and of each other rank, by the number of ranks."""
    found = {}
    for ranks in RANKS:
        of_rank = [sum(files[phase].values()) for _, files in counted[ranks]]
        found[ranks] = of_rank[0], max(of_rank[1:], default=0)
    of_first = [found[ranks][0] for ranks in (2, 3, 4)]
    # They differ by a few where nothing grows.
    growth = max(0, min(b - a for a, b in pairwise(of_first)))
    found[many] = max(of_first) + growth * (many - 4), found[4][1]
    return found


def summary(found: list[tuple[str, float]], ranks: int) -> dict[str, float]:
    """Return the messages and bytes of rank 0, and the least time that they take."""
    messages = sum(hops(kind, ranks) for kind, _ in found)
    received = sum(volume(kind, size, ranks) for kind, size in found)
    seconds = messages * SECONDS_PER_MESSAGE + received / BYTES_PER_SECOND
    return {"messages": messages, "bytes": round(received), "seconds": seconds}


def main() -> None:
    """Count, compute and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counted = {ranks: measure(ranks) for ranks in RANKS}
    table: dict[str, Any] = {}
    for phase in PHASES:
        lists = {ranks: steps_in_order(counted[ranks][0][0], phase) for ranks in RANKS}
        whole = at(options.ranks, lists[3], lists[4])
        table[phase] = {
            "collectives": dict(Counter(kind for kind, _ in lists[4])),
            **{f"{ranks} ranks": summary(lists[ranks], ranks) for ranks in RANKS},
            f"{options.ranks} ranks": summary(whole, options.ranks),
            "largest": max(whole, key=lambda each: volume(*each, options.ranks), default=None),
            "files": files_at(options.ranks, counted, phase),
        }
    show(table, options.ranks)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1), encoding="utf-8")


def show(table: dict[str, Any], many: int) -> None:
    """Print a line for each phase."""
    for phase, row in table.items():
        print(f"{phase}: {row['collectives'] or 'no collectives'}")
        for ranks in (*RANKS, many):
            of = row[f"{ranks} ranks"]
            print(
                f"  {ranks:5} ranks: {of['messages']:7,} messages, {of['bytes'] / 1e3:12,.1f} kB"
                f" at rank 0, {of['seconds']:8.4f} s"
            )
        print(f"  largest at {many} ranks: {row['largest']}")
        print(f"  file operations of rank 0, and of each other rank: {row['files']}")


if __name__ == "__main__":
    main()
