"""Every option with every other: rows by pairs, trained, killed and resumed."""

from __future__ import annotations

import itertools
import random
import time

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, Stage
from brain_core.testing import assert_resumes_exactly

ONE_RANK = {
    "grad_accumulation_factor": [1, 3],
    "precision": ["fp32", "bf16"],
    "eval_precision": ["fp32", "bf16"],
    "max_grad_norm": [5.0, -1.0, 0.1],
    "skip_nonfinite_grads": [False, True],
    "remove_vector_weight_decay": [False, True],
    "jit": [False, True],
    "deterministic": [False, True],
    "recover_attributes": [True, ["temperature"]],
    "ckpt_interval_steps": [1, 3],
    "asynchronous": [False, True],
    "num_workers": [0, 2],
    "loader": ["set", "plain"],
    "rows": [12, 14],
    "norm": ["layer", "batch"],
    "saves": ["none", "validation", "training"],
    "unfreezing": [False, True],
    "elastic": [False, True],
}
TWO_RANKS = {
    "parallel": ["ddp", "fsdp"],
    "grad_accumulation_factor": [1, 2],
    "precision": ["fp32", "bf16"],
    "max_grad_norm": [5.0, -1.0],
    "shard_evaluation": [False, True],
    "elastic": [False, True],
    "asynchronous": [False, True],
    "num_workers": [0, 2],
    "loader": ["set", "plain"],
    "norm": ["layer", "batch"],
    "rows": [16, 14],
    "saves": ["none", "validation", "training"],
    "ckpt_interval_steps": [1, 2],
    "unfreezing": [False, True],
    "find_unused_parameters": [False, True],
}
# What is no option of a run.
OF_THE_SCRIPT = ("asynchronous", "num_workers", "loader", "rows", "norm", "saves", "unfreezing")


class Net(torch.nn.Module):
    """Two blocks with a norm, and dropout."""

    def __init__(self, norm):
        super().__init__()
        make = torch.nn.LayerNorm if norm == "layer" else torch.nn.BatchNorm1d
        self.first = torch.nn.Sequential(torch.nn.Linear(3, 6), make(6), torch.nn.Tanh())
        self.drop = torch.nn.Dropout(0.3)
        self.last = torch.nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.drop(self.first(x)))


class Run(Brain):
    """Changes an attribute, steps a scheduler, and saves where its row says."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch)

    def compute_objectives(self, predictions, batch, stage):
        loss = predictions.float().square().mean()
        if stage is Stage.TRAIN:
            self.temperature = 0.9 * getattr(self, "temperature", 1.0)
            loss = loss * (1 + self.temperature)
        return loss

    def init_optimizers(self):
        super().init_optimizers()
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    def on_stage_start(self, stage, epoch=None):
        if self.hparams.unfreezing and stage is Stage.TRAIN and epoch == 2:
            for parameter in self.raw_modules.model.first.parameters():
                parameter.requires_grad_(requires_grad=True)
            self.optimizer.add_param_group(
                {"params": self.raw_modules.model.first.parameters(), "lr": 0.01}
            )

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        if should_step:
            self.scheduler.step()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if self.hparams.saves == stage.name.lower().replace("valid", "validation"):
            self.checkpointer.save_and_keep_only({"loss": stage_loss}, min_keys=["loss"])
        elif self.hparams.saves == "training" and stage is Stage.TRAIN:
            self.checkpointer.save_checkpoint({"loss": stage_loss})


def arguments(row):
    """Return make_brain and fit_args of a row."""
    options = {name: value for name, value in row.items() if name not in OF_THE_SCRIPT}

    def make_brain(folder):
        model = Net(row["norm"])
        model.first.requires_grad_(requires_grad=not row["unfreezing"])
        return Run(
            {"model": model},
            lambda ps: torch.optim.AdamW(_trainable(ps), lr=0.05),
            {"unfreezing": row["unfreezing"], "saves": row["saves"]},
            {"device": "cpu", "nonfinite_patience": 100, **options},
            Checkpointer(folder, asynchronous=row["asynchronous"]),
        )

    def fit_args(_):
        generator = torch.Generator().manual_seed(5)
        data = torch.randn(row["rows"], 3, generator=generator)
        batch_size = 2 if "parallel" in row else 4
        loading = {"batch_size": batch_size, "shuffle": True, "num_workers": row["num_workers"]}
        train_set = data
        if row["loader"] == "plain":
            train_set, loading = torch.utils.data.DataLoader(data, **loading), {}
        return {
            "epoch_counter": EpochCounter(3),
            "train_set": train_set,
            "valid_set": None if row["saves"] == "training" else data[:6],
            "train_loader_kwargs": loading,
            "valid_loader_kwargs": {"batch_size": 2},
        }

    return make_brain, fit_args


def _trainable(parameters):
    groups = [p if isinstance(p, dict) else {"params": [p]} for p in parameters]
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    return [group for group in groups if group["params"]]


def outcome(row, ranks):
    """Train, kill and resume a row; return "equal", "hanging", or how it differs."""
    make_brain, fit_args = arguments(row)
    try:
        assert_resumes_exactly(make_brain, fit_args, kills=3, ranks=ranks, timeout_s=90)
    except AssertionError as error:
        return "hanging" if "but hangs" in str(error) else str(error)
    return "equal"


def allowed_on_one_rank(row):
    """TorchScript is exact with deterministic algorithms only; the line of the run says so."""
    return row["deterministic"] or not row["jit"]


def rows_by_pairs(factors, allowed=lambda row: True, seed=0, tries=20):
    """Return rows such that each pair of values of two factors that is allowed is in one.

    Parameters
    ----------
    factors : mapping of str to sequence
        The values of each factor.
    allowed : callable
        Takes a row and returns whether its settings go together.
    """
    generator = random.Random(seed)
    names = list(factors)
    missing = {
        (one, a, other, b)
        for one, other in itertools.combinations(names, 2)
        for a in range(len(factors[one]))
        for b in range(len(factors[other]))
    }
    rows = []
    while missing:
        candidates = [_draw(factors, names, missing, generator) for _ in range(tries)]
        candidates = [c for c in candidates if allowed(_row(factors, c))]
        best = max(candidates, key=lambda c: len(missing & _pairs(names, c)), default=None)
        found = set() if best is None else missing & _pairs(names, best)
        if found:
            rows.append(_row(factors, best))
            missing -= found
        else:  # whatever was tried with the first of them is not allowed
            missing.discard(min(missing))
    return rows


def _draw(factors, names, missing, generator):
    one, a, other, b = generator.choice(sorted(missing))
    drawn = {name: generator.randrange(len(factors[name])) for name in names}
    return {**drawn, one: a, other: b}


def _row(factors, choice):
    return {name: factors[name][number] for name, number in choice.items()}


def _pairs(names, choice):
    return {(one, choice[one], b, choice[b]) for one, b in itertools.combinations(names, 2)}


def parametrized(factors, allowed=lambda row: True):
    """Return the mark that gives a test each row."""
    rows = rows_by_pairs(factors, allowed)
    ids = [" ".join(f"{name}={value}" for name, value in row.items()) for row in rows]
    return pytest.mark.parametrize("row", rows, ids=ids)


@pytest.fixture(scope="module")
def table(request):
    """Collect outcomes, and print how many rows were equal at the end."""
    outcomes, started = {}, time.monotonic()
    yield outcomes
    write = request.config.pluginmanager.getplugin("terminalreporter").write_line
    write("")
    for ranks, of_rows in sorted(outcomes.items()):
        equal, hanging = of_rows.count("equal"), of_rows.count("hanging")
        write(
            f"{len(of_rows)} rows on {ranks} rank(s): equal {equal}, differing "
            f"{len(of_rows) - equal - hanging}, hanging {hanging}"
        )
    write(f"{time.monotonic() - started:.0f} s")


def tabled(table, row, ranks):
    """Return the outcome of a row, and add it to the table."""
    found = outcome(row, ranks)
    table.setdefault(ranks, []).append(found)
    return found


@pytest.mark.long
@parametrized(ONE_RANK, allowed_on_one_rank)
def test_options_by_pairs_on_one_rank(table, row):
    """Equal to the undisturbed run, batch by batch."""
    assert tabled(table, row, 1) == "equal"


@pytest.mark.long
@parametrized(TWO_RANKS)
def test_options_by_pairs_on_two_ranks(table, row):
    """All ranks are killed at the same batch."""
    assert tabled(table, row, 2) == "equal"


def test_the_rows_cover_every_pair():
    """Those of a factor that excludes another are left out."""
    factors = {"a": [0, 1, 2], "b": "xy", "c": [True, False], "d": [1, 2]}
    rows = rows_by_pairs(factors, lambda row: not (row["c"] and row["d"] == 2))
    for one, other in itertools.combinations(factors, 2):
        found = {(row[one], row[other]) for row in rows}
        expected = set(itertools.product(factors[one], factors[other]))
        assert found == expected - ({(True, 2)} if (one, other) == ("c", "d") else set())
    assert len(rows) <= 9
