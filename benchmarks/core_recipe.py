"""One recipe by brain-core and by SpeechBrain: its speed, and how soon it goes on after a kill.

    OMP_NUM_THREADS=1 python benchmarks/core_recipe.py [--rounds 5] [--rows 20000]

The recipe is one file that differs in its imports only: a manifest in JSON, a pipeline that makes
features, padded batches, a convolution over time, Adam, gradients clipped, a checkpoint at 90 % of
the epoch. Behind it the process is killed. The same command is then run again: how long until its
first step is done, from the start of the process and from the end of the imports. SpeechBrain is
measured if it is installed. The sums of the weights at the end should be equal.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from _verdict import report
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

FEATURES, CLASSES, BATCH_SIZE = 20, 30, 16
KILLED_BEHIND = 5  # steps after the checkpoint
UNITS = {
    "steps of a recipe per second": "1/s",
    "a killed recipe trains again, after": "s",
    "… of that, behind its imports": "s",
}
LIBRARIES = {"ours": "brain_core", "SpeechBrain": "speechbrain"}
MODULES = {
    "Brain": ("brain_core", "speechbrain.core"),
    "Checkpointer": ("brain_ckpt", "speechbrain.utils.checkpoints"),
    "DynamicItemDataset": ("brain_data", "speechbrain.dataio.dataset"),
    "EpochCounter": ("brain_core", "speechbrain.utils.epoch_loop"),
    "provides": ("brain_data", "speechbrain.utils.data_pipeline"),
    "seed_everything": ("brain_core", "speechbrain.utils.seed"),
    "takes": ("brain_data", "speechbrain.utils.data_pipeline"),
}


def write_manifest(path: Path, rows: int) -> None:
    """Write rows of a made data set: a seed and a length."""
    lengths = [20 + (7919 * number) % 41 for number in range(rows)]
    content = {
        f"utt{number:07d}": {"seed": number, "frames": frames}
        for number, frames in enumerate(lengths)
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def import_names(library: str) -> SimpleNamespace:
    """Import what the recipe uses: the only difference between the libraries."""
    number = list(LIBRARIES).index(library)
    found = {
        name: getattr(importlib.import_module(modules[number]), name)
        for name, modules in MODULES.items()
    }
    return SimpleNamespace(**found)


def make_data(names: SimpleNamespace, manifest: Path) -> Any:
    """Return the dataset, with features and labels made from each row's seed."""

    @names.takes("seed", "frames")
    @names.provides("features", "labels")
    def make_features(seed: int, frames: int) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        yield torch.randn(frames, FEATURES, generator=generator)
        yield torch.randint(CLASSES, (frames,), generator=generator)

    data = names.DynamicItemDataset.from_json(str(manifest))
    data.add_dynamic_item(make_features)
    data.set_output_keys(["id", "features", "labels"])
    return data


def train(library: str, folder: Path, kill_after: int, stop_after: int) -> None:
    """Train as a recipe does; print what this process measured, in lines of JSON."""
    names = import_names(library)
    imported = time.time()
    ends = []  # of this process's steps; an attribute of the Brain would be restored

    class Recipe(names.Brain):  # type: ignore[misc,name-defined]  # chosen at run time
        def compute_forward(self, batch: Any, stage: Any) -> Any:
            # (batch, time, features) -> (batch, classes, time)
            return self.modules.model(batch.features.data.transpose(1, 2))

        def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> Any:
            return torch.nn.functional.cross_entropy(predictions, batch.labels.data)

        def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Any, should_step: bool) -> None:
            ends.append(time.time())
            if len(ends) == stop_after:
                print(json.dumps(measured(imported, ends)), flush=True)
            if len(ends) == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

    names.seed_everything(7)
    torch.set_num_threads(1)
    data = make_data(names, folder.parent / "train.json")
    model = nn.Sequential(
        nn.Conv1d(FEATURES, 64, 5, padding=2), nn.ReLU(), nn.Conv1d(64, CLASSES, 1)
    )
    counter = names.EpochCounter(1)
    brain = Recipe(
        {"model": model},
        lambda parameters: torch.optim.Adam(parameters, 1e-3),
        run_opts={"device": "cpu", "ckpt_interval_steps": len(data) // BATCH_SIZE * 9 // 10},
        checkpointer=names.Checkpointer(str(folder), {"model": model, "counter": counter}),
    )
    loader = {"batch_size": BATCH_SIZE, "shuffle": True}
    brain.fit(counter, data, train_loader_kwargs=loader, progressbar=False)
    weights = sum(float(each.detach().double().sum()) for each in model.parameters())
    print(json.dumps({"weights": weights}), flush=True)


def measured(imported: float, ends: list[float]) -> dict[str, float]:
    """Return seconds since the start of the process, and the speed of its steps."""
    started = float(os.environ["STARTED"])
    seconds = ends[-1] - ends[0]
    return {
        "import_s": imported - started,
        "first_step_s": ends[0] - started,
        "steps_per_s": (len(ends) - 1) / seconds if seconds else 0.0,
    }


def run(library: str, folder: Path, kill_after: int, stop_after: int) -> list[dict[str, float]]:
    """Run the recipe in a process of its own and return what it printed."""
    command = [sys.executable, __file__, "--train", library, "--folder", str(folder)]
    done = subprocess.run(
        [*command, "--kill_after", str(kill_after), "--stop_after", str(stop_after)],
        env={**os.environ, "STARTED": str(time.time())},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def measure(library: str, rows: int, saved_at: int) -> dict[str, float]:
    """Train, be killed, go on, and return what was measured."""
    with tempfile.TemporaryDirectory(prefix="brain-recipe-") as root:
        folder = Path(root, "save")
        write_manifest(Path(root, "train.json"), rows)
        (before,) = run(library, folder, saved_at + KILLED_BEHIND, saved_at)
        after, end = run(library, folder, 0, 1)
    seconds = after["first_step_s"]
    figures = (before["steps_per_s"], seconds, seconds - after["import_s"], end["weights"])
    return dict(zip((*UNITS, "weights at the end, summed"), figures, strict=True))


def main() -> None:
    """Measure in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--train", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill_after", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stop_after", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train, options.folder, options.kill_after, options.stop_after)
        return
    saved_at = options.rows // BATCH_SIZE * 9 // 10
    present = [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module)]
    figures: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.rounds):
        for name in present:
            for what, figure in measure(name, options.rows, saved_at).items():
                figures.setdefault(what, {}).setdefault(name, []).append(figure)
    killed_at = saved_at + KILLED_BEHIND
    print(f"{options.rows} rows, killed after step {killed_at}; {options.rounds} rounds, medians")
    for what, by_library in figures.items():
        for name, taken in by_library.items():
            low, high = min(taken), max(taken)
            print(
                f"  {what:42} {name:12} {statistics.median(taken):10.4f} ({low:.4f} to {high:.4f})"
            )
    if len(present) > 1:
        for what, unit in UNITS.items():
            ours, theirs = (statistics.median(figures[what][name]) for name in present)
            report(what, ours, unit, 1.0, present[1], theirs, at_least=unit == "1/s")


if __name__ == "__main__":
    main()
