"""Loaders in random runs: stopped and resumed with other ranks and other workers.

A run has 100 cases, or all of them with ``BRAIN_CHAOS=1``; ``BRAIN_SEED`` repeats a run.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data_helpers import USES_WORKERS, keep
from torch.utils.data import BatchSampler

from brain_data import (
    DistributedSamplerWrapper,
    DynamicBatchSampler,
    KeyedRandomSampler,
    ReproducibleRandomSampler,
    SaveableDataLoader,
)

pytestmark = USES_WORKERS

GROUP = 12  # micro-batches of an optimizer step
WORLD_SIZES = (1, 2, 3, 4, 6, 12)
CASES = 2_200 if os.environ.get("BRAIN_CHAOS") else 100
SEED = int(os.environ.get("BRAIN_SEED", "4"))

Steps = list[list[list[int]]]
"""The micro-batches of each optimizer step."""


@dataclass
class Epoch:
    """One case: rows in batches of one size, or of varying size by their lengths."""

    rows: int
    batch_size: int | None
    lengths: list[int]
    seed: int
    epoch: int
    is_keyed: bool

    @classmethod
    def drawn(cls, draw: random.Random) -> Epoch:
        rows = draw.choice((draw.randint(1, 40), draw.randint(40, 240)))
        fixed = draw.random() < 0.6
        return cls(
            rows=rows,
            batch_size=draw.randint(1, 6) if fixed else None,
            lengths=[draw.randint(1, 100) for _ in range(0 if fixed else rows)],
            seed=draw.randrange(2**31),
            epoch=draw.randrange(5),
            is_keyed=draw.random() < 0.5,
        )

    def loader(self, rank: int = 0, world_size: int = 1, num_workers: int = 0) -> Any:
        """Return the loader of one of several ranks, with its epoch set."""
        if self.batch_size is None:
            batches: Any = DynamicBatchSampler(
                range(self.rows), 150, num_buckets=5, lengths_list=self.lengths, seed=self.seed
            )
        else:
            kind = KeyedRandomSampler if self.is_keyed else ReproducibleRandomSampler
            order = kind(range(self.rows), seed=self.seed)
            batches = BatchSampler(order, self.batch_size, drop_last=False)
        if world_size > 1:
            batches = DistributedSamplerWrapper(batches, world_size, rank)
        loader = SaveableDataLoader(
            range(self.rows),
            batch_sampler=batches,
            collate_fn=keep,
            num_workers=num_workers,
            last_round="pad",
        )
        loader.set_epoch(self.epoch)
        return loader


@dataclass
class Facts:
    """Counts over all cases, to be printed."""

    cases: int = 0
    starts: int = 0
    batches: int = 0
    padding_batches: int = 0
    largest_state: int = 0
    workers: Counter[int] = field(default_factory=Counter)
    world_sizes: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        workers = ", ".join(f"{n}: {count}" for n, count in sorted(self.workers.items()))
        sizes = ", ".join(f"{n}: {count}" for n, count in sorted(self.world_sizes.items()))
        return (
            f"{self.cases} cases (seed {SEED}), {self.starts} starts, {self.batches} batches and "
            f"{self.padding_batches} padding batches; "
            f"starts by workers {{{workers}}}, by ranks {{{sizes}}}; "
            f"largest state {self.largest_state} bytes; rows lost 0, repeated 0, steps regrouped 0"
        )


def one_process_steps(epoch: Epoch) -> Steps:
    """Return the steps of one process without a stop."""
    batches = list(epoch.loader())
    return [batches[low : low + GROUP] for low in range(0, len(batches), GROUP)]


def run(epoch: Epoch, draw: random.Random, facts: Facts) -> Steps:
    """Run an epoch, stopping at random steps and resuming with other ranks and workers."""
    steps: Steps = []
    state = None
    while state is None or not state["finished"]:
        world_size, workers = draw.choice(WORLD_SIZES), draw.choice((0, 0, 0, 1, 2, 3))
        with_workers = draw.randrange(world_size)  # forked for one of the ranks, to be cheap
        loaders = [
            epoch.loader(rank, world_size, workers if rank == with_workers else 0)
            for rank in range(world_size)
        ]
        for loader in loaders if state is not None else ():
            loader.load_state_dict(state)
        stop_after = draw.choice((1, 2, 3, 99)) * GROUP // world_size
        window = GROUP // world_size
        iterators = [iter(loader) for loader in loaders]
        for number in range(min(stop_after, len(loaders[0]))):
            batches = [next(iterator, None) for iterator in iterators]
            if batches[0] is None:  # the epoch has ended
                assert not any(batches)
                break
            if number % window == 0:
                steps.append([])
            real = [b for b, loader in zip(batches, loaders, strict=True) if not loader.is_padding]
            assert all(batch in real for batch in batches)
            assert {loader.padding_batches for loader in loaders} == {world_size - len(real)}
            steps[-1].extend(real)
            facts.batches += len(real)
            facts.padding_batches += world_size - len(real)
        texts = {json.dumps(loader.state_dict()) for loader in loaders}
        assert len(texts) == 1, "the state is the same on all ranks"
        facts.largest_state = max(facts.largest_state, *map(len, texts))
        state = json.loads(texts.pop())
        facts.starts += 1
        facts.workers[workers] += 1
        facts.world_sizes[world_size] += 1
    return steps


def report(capsys: Any, text: str) -> None:
    """Print progress in a long run, and reset the timeout of pytest's faulthandler."""
    faulthandler.cancel_dump_traceback_later()
    with capsys.disabled():
        sys.stdout.write(text)
        sys.stdout.flush()


def test_random_runs_take_the_steps_of_one_process_with_any_ranks_workers_and_stops(capsys) -> None:
    """Every row is in the same micro-batch of the same step, and a state is below 1 kB."""
    facts = Facts()
    for case in range(CASES):
        draw = random.Random(f"{SEED} {case}")
        epoch = Epoch.drawn(draw)
        steps = run(epoch, draw, facts)
        description = f"case {case} of seed {SEED}: {epoch}"
        assert steps == one_process_steps(epoch), description
        taken = [row for step in steps for batch in step for row in batch]
        assert sorted(taken) == list(range(epoch.rows)), description
        assert facts.largest_state < 1000, description
        facts.cases += 1
        if CASES > 300 and facts.cases % 100 == 0:
            report(capsys, f"\r{facts.cases} of {CASES} cases")
    assert set(facts.workers) == {0, 1, 2, 3}
    assert set(facts.world_sizes) == set(WORLD_SIZES)
    if CASES > 300:
        report(capsys, f"\n{facts}\n")
