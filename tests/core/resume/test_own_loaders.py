"""Loaders of the script's own: killed in any epoch, the batches that were left come.

    BRAIN_CHAOS=1 python -m pytest tests/core/resume/test_own_loaders.py -s

prints the whole table: kinds of loader, epochs, workers and ranks.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import time

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from brain_ckpt import Checkpointer
from brain_core import Brain
from brain_data import KeyedRandomSampler, ResumeError
from brain_dist import get_rank, get_world_size

ROWS, BATCH = 26, 2


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


class Rows(torch.utils.data.Dataset):
    """Rows with their numbers, and noise that is drawn when a row is loaded."""

    def __init__(self):
        self.x = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1))
        self.loaded = 0

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        self.loaded += 1
        return self.x[index] + 0.1 * torch.randn(3), index


class Shuffled(Rows):
    """Rows of which Brain makes the loader."""

    def __init__(self, loader_kwargs):
        super().__init__()
        self.loader_kwargs = loader_kwargs


class Stream(IterableDataset):
    """A stream that torch's generator shuffles, one part for each worker and rank."""

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        workers, number = (info.num_workers, info.id) if info else (1, 0)
        rows = Rows()
        even = ROWS // 4 * 4  # equally many on every rank, as DDP needs
        part = range(get_rank() * workers + number, even, workers * get_world_size())
        yield from (rows[part[i]] for i in self.order(len(part)).tolist())

    def order(self, count):
        return torch.randperm(count)


class Clocked(Stream):
    """A stream that is shuffled by the clock: never the same twice."""

    def order(self, count):
        return torch.randperm(count, generator=torch.Generator().manual_seed(time.time_ns()))


class ByPython(torch.utils.data.Sampler):
    """A sampler that shuffles by the module random."""

    def __iter__(self):
        order = list(range(ROWS))
        random.shuffle(order)
        return iter(order)

    def __len__(self):
        return ROWS


class ByNumpy(ByPython):
    """A sampler that shuffles by NumPy's global generator."""

    def __iter__(self):
        return iter(np.random.permutation(ROWS).tolist())


class ByPosition:
    """A loader with a state of its own."""

    def __init__(self):
        self.epoch, self.position = 0, 0

    def __iter__(self):
        rows = Rows()
        order = np.random.default_rng(self.epoch).permutation(ROWS // BATCH)
        while self.position < len(order):
            start = int(order[self.position]) * BATCH
            self.position += 1
            yield torch.utils.data.default_collate([rows[start + i] for i in range(BATCH)])
        self.epoch, self.position = self.epoch + 1, 0

    def __len__(self):
        return ROWS // BATCH

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]


class Plain:
    """An iterable without a state, which shuffles by torch's generator."""

    def __iter__(self):
        rows = Rows()
        for i in torch.randperm(ROWS // BATCH).tolist():
            yield torch.utils.data.default_collate([rows[2 * i], rows[2 * i + 1]])


def over_rows(kwargs):
    """Return a DataLoader over rows."""
    return lambda workers: DataLoader(Rows(), **kwargs(), **working(workers))


def working(workers):
    """Return the arguments for workers: forks, which need not import the test's classes."""
    return {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}


LOADERS = {
    "shuffle": over_rows(lambda: {"batch_size": BATCH, "shuffle": True}),
    "shuffle, generator": over_rows(
        lambda: {
            "batch_size": BATCH,
            "shuffle": True,
            "generator": torch.Generator().manual_seed(9),
        }
    ),
    "in order": over_rows(lambda: {"batch_size": BATCH}),
    "WeightedRandomSampler": over_rows(
        lambda: {
            "batch_size": BATCH,
            "sampler": WeightedRandomSampler(torch.ones(ROWS), ROWS, replacement=False),
        }
    ),
    "SubsetRandomSampler": over_rows(
        lambda: {"batch_size": BATCH, "sampler": SubsetRandomSampler(range(ROWS))}
    ),
    "BatchSampler(RandomSampler)": over_rows(
        lambda: {"batch_sampler": BatchSampler(RandomSampler(range(ROWS)), BATCH, drop_last=False)}
    ),
    "BatchSampler(SequentialSampler)": over_rows(
        lambda: {
            "batch_sampler": BatchSampler(SequentialSampler(range(ROWS)), BATCH, drop_last=False)
        }
    ),
    "KeyedRandomSampler": over_rows(
        lambda: {"batch_size": BATCH, "sampler": KeyedRandomSampler(range(ROWS))}
    ),
    "keyed, of a dataset": lambda workers: Shuffled(
        {"batch_size": BATCH, "shuffle": "keyed", **working(workers)}
    ),
    "sampler by random": over_rows(lambda: {"batch_size": BATCH, "sampler": ByPython()}),
    "sampler by numpy": over_rows(lambda: {"batch_size": BATCH, "sampler": ByNumpy()}),
    "DistributedSampler": over_rows(
        lambda: {
            "batch_size": BATCH,
            "sampler": DistributedSampler(range(ROWS), get_world_size(), get_rank(), seed=3),
        }
    ),
    "IterableDataset": lambda workers: DataLoader(Stream(), BATCH, **working(workers)),
    "loader with a state": lambda _: ByPosition(),
    "plain iterable": lambda _: Plain(),
}


class Run(Brain):
    """Notes the rows of each batch, and dies where it is told to."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    def fit_batch(self, batch):
        loss = super().fit_batch(batch)
        self.notes.append((self._run.epoch, batch[1].tolist(), loss.item()))
        if len(self.notes) == self.kill_at:
            raise Killed
        return loss


def run(folder, kind, workers=0, kill_at=None, **options):
    """Train three epochs; return what was done, and whether it was killed or refused."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    brain = Run(
        {"model": torch.nn.Linear(3, 2)},
        lambda p: torch.optim.SGD(p, lr=0.05),
        run_opts={
            "device": "cpu",
            "ckpt_interval_steps": 4,
            "recover_attributes": False,
            **options,
        },
        checkpointer=Checkpointer(folder),
    )
    brain.notes, brain.kill_at = [], kill_at
    ended = "finished"
    try:
        data = kind(workers) if callable(kind) else kind
        brain.fit(range(1, 4), data, train_loader_kwargs=getattr(data, "loader_kwargs", {}))
    except Killed:
        ended = "killed"
    except ResumeError as error:
        ended = str(error)
    brain.checkpointer.close()
    return brain.notes, ended


def compare(folder, name, workers, epoch):
    """Kill a run in an epoch, start it again, and compare; return "equal" or what differs."""
    kind = LOADERS[name]
    whole, ended = run(folder / "whole", kind, workers)
    assert ended == "finished"
    batches = len(whole) // 3
    kill_at = (epoch - 1) * batches + min(5, batches - 1)
    _, ended = run(folder / "killed", kind, workers, kill_at)
    assert ended == "killed"
    left, ended = run(folder / "killed", kind, workers)
    if ended != "finished":
        return f"refused: {ended}" if not left else "refused after a step"
    assert 0 <= kill_at - (len(whole) - len(left)) < 5, "it resumed from the newest checkpoint"
    return "equal" if left == whole[-len(left) :] else "differs"


def compare_on_rank(_, folder, name, workers, epoch):
    """Do so on one of several ranks."""
    return compare(folder, name, workers, epoch)


def has_workers(name):
    """Return whether a loader can have workers."""
    return name not in ("loader with a state", "plain iterable")


SHORT = [(name, 0, epoch) for name in LOADERS for epoch in (2,)]
SHORT += [
    ("shuffle", 0, 1),
    ("IterableDataset", 2, 2),
]
CHAOS = [
    (name, workers, epoch)
    for name, workers, epoch in itertools.product(LOADERS, (0, 2), (1, 2, 3))
    if workers == 0 or has_workers(name)
]
CASES = CHAOS if os.environ.get("BRAIN_CHAOS") else SHORT


@pytest.mark.parametrize(("name", "workers", "epoch"), CASES)
def test_after_a_kill_the_batches_that_were_left_come(tmp_path, name, workers, epoch):
    """In their order, with the losses of the undisturbed run."""
    found = compare(tmp_path, name, workers, epoch)
    print(f"\n{name}, {workers} workers, epoch {epoch}, 1 rank: {found}")  # noqa: T201
    assert found == "equal"


SHORT_OF_RANKS = [("shuffle", 0, 2), ("keyed, of a dataset", 0, 2)]


@pytest.mark.parametrize(
    ("name", "workers", "epoch"), CHAOS if os.environ.get("BRAIN_CHAOS") else SHORT_OF_RANKS
)
def test_the_same_holds_on_two_ranks(ranks, tmp_path, name, workers, epoch):
    """With a distributed sampler and without."""
    folder = tmp_path / "run"
    folder.mkdir()
    found = ranks(compare_on_rank, 2, folder, name, workers, epoch)
    print(f"\n{name}, {workers} workers, epoch {epoch}, 2 ranks: {found[0]}")  # noqa: T201
    assert found == ["equal", "equal"]


def steps(rank, folder, kind):
    """Return the rows that this rank took in each step of the first epoch."""
    notes, _ = run(folder, LOADERS[kind], grad_accumulation_factor=2 // get_world_size())
    return [rows for epoch, rows, _ in notes if epoch == 1]


def test_a_plain_loader_is_sharded_in_the_steps_of_one_process(ranks, tmp_path):
    """Two ranks take in each step what one process takes in two batches."""
    alone = steps(0, tmp_path / "alone", "shuffle")
    both = ranks(steps, 2, tmp_path / "both", "shuffle")
    whole_rounds = len(alone) // 2 * 2  # the last batch alone is split
    taken = [rows for pair in zip(*both, strict=True) for rows in pair]
    assert taken[:whole_rounds] == alone[:whole_rounds]


def all_rows(rank, folder):
    """Return this rank's rows of an epoch where sharding is turned off."""
    notes, _ = run(folder, LOADERS["in order"], shard_loaders=False)
    return sorted(row for epoch, rows, _ in notes if epoch == 1 for row in rows)


def test_an_option_gives_each_rank_all_batches(ranks, tmp_path):
    """As torch does."""
    assert ranks(all_rows, 2, tmp_path / "run") == [list(range(ROWS))] * 2


def clocked(_=0):
    """Return a loader whose order nobody can find again."""
    return DataLoader(Clocked(), BATCH)


def test_batches_that_cannot_be_found_again_are_refused_before_a_step(tmp_path):
    """The error names the option with which the run goes on all the same."""
    run(tmp_path, clocked, kill_at=18)
    notes, ended = run(tmp_path, clocked)
    assert notes == []
    assert "--resume_anyway" in ended


def test_with_the_option_the_position_is_kept(tmp_path, caplog):
    """Rows may repeat; it is said."""
    run(tmp_path, clocked, kill_at=18)
    with caplog.at_level(logging.WARNING):
        notes, ended = run(tmp_path, clocked, resume_anyway=True)
    assert (ended, len(notes)) == ("finished", 3 * 12 - 16)
    assert "anyway" in caplog.text


def test_no_row_is_loaded_to_find_the_position_again(tmp_path):
    """Only row numbers are gone through."""
    run(tmp_path, LOADERS["shuffle"], kill_at=18)
    rows = Rows()
    notes, _ = run(tmp_path, DataLoader(rows, BATCH, shuffle=True))
    assert rows.loaded == len(notes) * BATCH
