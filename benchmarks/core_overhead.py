"""What Brain costs where nothing of it is used: the import, and a step without callbacks.

    OMP_NUM_THREADS=1 python benchmarks/core_overhead.py [--quick]

Imports are measured in fresh processes, beyond that of torch: CPU time and modules. Other libraries
are measured, too, if they are installed. Steps are those of core_loop.py: Linear(32, 32) from
memory, no logger; without callbacks, with one that does nothing, and with three that measure.
"""

from __future__ import annotations

import logging
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec

import torch
from _timing import paired_ratio
from _verdict import report, take_quick
from core_loop import DATA, STEPS, fit, train_bare

import brain_core

ROUNDS = 5
IMPORTS = {
    "brain_dist": "import brain_dist",
    "brain_ckpt": "import brain_ckpt",
    "brain_data": "import brain_data",
    "brain_core": "import brain_core",
    "brain_core.Brain": "from brain_core import Brain",
    "accelerate": "import accelerate",
    "ignite.engine": "import ignite.engine",
    "lightning.fabric": "import lightning.fabric",
    "speechbrain.core": "import speechbrain.core",
    "torchtnt.framework": "import torchtnt.framework",
}
PROGRAM = """
import gc, sys, time, torch
gc.collect()  # else what torch has left may be collected within the next import
modules, started = len(sys.modules), time.process_time()
{}
print(time.process_time() - started, len(sys.modules) - modules)
"""


def measure_imports(rounds: int, *, peers: bool) -> None:
    present = {
        name: code
        for name, code in IMPORTS.items()
        if (peers or name.startswith("brain_core")) and find_spec(name.partition(".")[0])
    }
    seconds: dict[str, list[float]] = {name: [] for name in present}
    modules = {}
    for _ in range(rounds):
        for name, code in present.items():
            command = [sys.executable, "-c", PROGRAM.format(code)]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            taken, count = printed.split()
            seconds[name].append(float(taken))
            modules[name] = int(count)
    print("import, beyond torch: CPU ms, median (minimum to maximum); modules")
    for name, taken_s in seconds.items():
        low, high = 1e3 * min(taken_s), 1e3 * max(taken_s)
        median = 1e3 * statistics.median(taken_s)
        print(f"  {name:24} {median:8.1f} ({low:.1f} to {high:.1f}); {modules[name]}")
    least_ms = {name: 1e3 * min(taken) for name, taken in seconds.items()}
    report("importing brain_core, beyond torch", least_ms["brain_core"], "ms", 40)
    report("… and Brain", least_ms["brain_core.Brain"], "ms", 40)


def measure_steps(rounds: int) -> None:
    def monitors() -> list[brain_core.Callback]:
        return [brain_core.EMA(), brain_core.GradNormMonitor(), brain_core.ThroughputMonitor()]

    contenders = {
        "bare": train_bare,
        "bare + mean loss + finite check": lambda: train_bare(checks_loss=True),
        "Brain": lambda: fit(brain_core.Brain, DATA),
        "... with an empty callback": lambda: fit(
            brain_core.Brain, DATA, callbacks=[brain_core.Callback()]
        ),
        "... with EMA and two monitors": lambda: fit(brain_core.Brain, DATA, callbacks=monitors()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, train in contenders.items():
            started = time.process_time()
            train()
            if round_:
                seconds[name].append((time.process_time() - started) / STEPS)
    print("\na step: CPU us, median; ratio to bare, median (minimum to maximum)")
    for name, taken in seconds.items():
        ratio, low, high = paired_ratio(taken, seconds["bare"])
        median = 1e6 * statistics.median(taken)
        print(f"  {name:32} {median:7.0f}; x {ratio:.3f} ({low:.2f} to {high:.2f})")
    least_us = {name: 1e6 * min(taken) for name, taken in seconds.items()}
    with_one = least_us["... with an empty callback"]
    report("a step with a callback", with_one, "µs", 1.03, "without", least_us["Brain"])


def main() -> None:
    is_quick = take_quick()
    rounds = 2 if is_quick else ROUNDS
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    measure_imports(rounds, peers=not is_quick)
    measure_steps(rounds)


if __name__ == "__main__":
    main()
