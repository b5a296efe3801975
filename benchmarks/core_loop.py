"""CPU time of a training step of `Brain`, relative to a hand-written loop, in one run.

    OMP_NUM_THREADS=1 python benchmarks/core_loop.py [--quick]

Linear(32, 32), MSE, batches of 16 from memory, SGD, gradients clipped, one thread. The contenders
run in turns, round by round, and a ratio is the median over the rounds. SpeechBrain, Fabric and
Accelerate are measured, too, if they are installed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import statistics
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from _timing import paired_ratio
from _verdict import report, take_quick
from tqdm import tqdm

import brain_core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS, ROUNDS = 1500, 15


class Data:
    """The batches of all contenders, from memory."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            (torch.randn(16, 32, generator=generator), torch.randn(16, 32, generator=generator))
            for _ in range(STEPS)
        ]

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class OneBatch(Data):
    """The first batch alone."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches[:1])


DATA = Data()


def make_model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 32)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def train_bare(batches: Any = DATA, *, checks_loss: bool = False) -> None:
    model, optimizer = make_model()
    total = 0.0
    for inputs, targets in batches:
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        if checks_loss:
            value = loss.item()
            if not math.isfinite(value):
                raise ValueError(value)
            total += value
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()


def define_brain(base: type) -> type:
    class Regression(base):  # type: ignore[misc]  # chosen at run time
        def compute_forward(self, batch: Any, stage: Any) -> Any:
            return self.modules.model(batch[0])

        def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> Any:
            return torch.nn.functional.mse_loss(predictions, batch[1])

    return Regression


def fit(base: type, data: Any, *, bar: bool = False, **arguments: Any) -> None:
    brain = define_brain(base)(
        {"model": make_model()[0]},
        lambda p: torch.optim.SGD(p, lr=0.01),
        run_opts={"device": "cpu"},
        **arguments,
    )
    brain.fit(range(1), data, progressbar=bar)


def fit_speechbrain(*, bar: bool = False) -> None:
    from speechbrain.core import Brain

    fit(Brain, torch.utils.data.DataLoader(DATA.batches, batch_size=None), bar=bar)


def fit_with_dataloader() -> None:
    fit(brain_core.Brain, torch.utils.data.DataLoader(DATA.batches, batch_size=None))


def train_fabric() -> None:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu")
    model, optimizer = fabric.setup(*make_model())
    for inputs, targets in DATA:
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=5.0)
        optimizer.step()
        optimizer.zero_grad()


def train_accelerate() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*make_model())
    for inputs, targets in DATA:
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()


def seconds_of_a_fit(fits: int = 60) -> float:
    """Return the least CPU time of a fit of one batch."""
    least, data = math.inf, OneBatch()
    for _ in range(fits):
        started = time.process_time()
        fit(brain_core.Brain, data)
        least = min(least, time.process_time() - started)
    return least


def contenders() -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {
        "bare": train_bare,
        "bare + mean loss + finite check": lambda: train_bare(checks_loss=True),
        "Brain": lambda: fit(brain_core.Brain, DATA),
        "bare with tqdm": lambda: train_bare(tqdm(DATA, file=io.StringIO())),
        "Brain with a bar": lambda: fit(brain_core.Brain, DATA, bar=True),
    }
    if find_spec("speechbrain"):
        found["Brain, DataLoader"] = fit_with_dataloader
        found["SpeechBrain, DataLoader"] = fit_speechbrain
    if find_spec("lightning"):
        found["Fabric"] = train_fabric
    if find_spec("accelerate"):
        found["Accelerate"] = train_accelerate
    return found


def main() -> None:
    rounds = 2 if take_quick() else ROUNDS
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    trainings = contenders()
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    for round_ in range(rounds + 1):
        for name, train in trainings.items():
            with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
                started = time.process_time()
                train()
                taken = time.process_time() - started
            if round_:
                seconds[name].append(taken / STEPS)
    for name, taken in seconds.items():
        base = "bare with tqdm" if name.endswith("bar") else "bare"
        ratio, low, high = paired_ratio(taken, seconds[base])
        print(
            f"{name:32} {1e6 * statistics.median(taken):7.0f} us per step   x "
            f"{ratio:.3f} ({low:.2f} to {high:.2f}) of {base}"
        )
    least = {name: 1e6 * min(taken) for name, taken in seconds.items()}
    report("a step of Linear(32, 32)", least["Brain"], "µs", 1.04, "bare", least["bare"])
    bar, base = "Brain with a bar", "bare with tqdm"
    report("… with a progress bar", least[bar], "µs", 1.04, base, least[base])
    report("making ready and ending a fit", 1e3 * seconds_of_a_fit(), "ms", 1)


if __name__ == "__main__":
    main()
