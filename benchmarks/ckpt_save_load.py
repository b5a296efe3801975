"""Save and load 200 MB of model and Adam state with several libraries, in turns.

    python benchmarks/ckpt_save_load.py [--rounds 9] [--megabytes 200]

Prints medians (minimum-maximum) in seconds, and ratios to a raw write, read and copy. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _timing import paired_ratio
from _verdict import report, take_quick
from torch import nn
from torch.distributed import checkpoint as dcp

from brain_ckpt import Checkpointer

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    from safetensors import torch as safetensors
except ImportError:
    safetensors = None

WIDTH = 1024


class Training:
    """A model and its optimizer, which has taken a step."""

    def __init__(self, megabytes: int) -> None:
        layers = max(1, round(megabytes * 2**20 / (3 * 4 * WIDTH * WIDTH)))
        self.model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-5)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """Return the states of both."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name."""
        flat = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for number, entry in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer.{number}.{key}": value for key, value in entry.items()}
        return flat


class Results:
    """The times of each contender."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def time(self, name: str, action: Callable[[], Any]) -> Any:
        """Run a contender once and keep its time."""
        started = time.perf_counter()
        result = action()
        self.times.setdefault(name, []).append(time.perf_counter() - started)
        return result

    def report(self, what: str, aim: float, ours: str, base: str) -> None:
        """Report a contender's median beside that of ``base``."""
        of_ours, of_base = (statistics.median(self.times[name]) for name in (ours, base))
        report(what, of_ours, "s", aim, base, of_base)

    def show(self, title: str, base: str) -> None:
        """Print a table with ratios to ``base``."""
        print(f"\n{title}")
        unit = statistics.median(self.times[base])
        for name, times in self.times.items():
            paired, _, _ = paired_ratio(times, self.times[base])
            print(
                f"  {name:44s} {statistics.median(times):.3f} ({min(times):.3f}-{max(times):.3f}) s"
                f"   x {statistics.median(times) / unit:.2f}"
                f"   paired {paired:.2f}"
            )


def random_bytes(training: Training) -> memoryview:
    """Return as many bytes as the training has in tensors."""
    size = sum(value.nbytes for value in training.tensors().values())
    return memoryview(os.urandom(2**20) * (size >> 20))


def fsync_tree(path: Path) -> None:
    """Flush a directory and everything in it to the disk."""
    for file in [path, *path.rglob("*")]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def fresh(root: Path, name: str) -> Path:
    """Make an empty directory."""
    path = root / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def raw_save(path: Path, blob: memoryview) -> None:
    """Write bytes and flush them to the disk."""
    with (path / "raw").open("wb", buffering=0) as file:
        written = 0
        while written < len(blob):
            written += file.write(blob[written:])
        os.fsync(file.fileno())


def dcp_save(state: dict[str, Any], path: Path) -> None:
    """Save with torch's distributed checkpoint, in one process."""
    dcp.save(state, checkpoint_id=path / "dcp", no_dist=True)


def saves(training: Training, root: Path, rounds: int) -> Results:
    """Time durable saves."""
    results = Results()
    blob = random_bytes(training)
    checkpointer = Checkpointer(
        fresh(root, "brain-ckpt"), {"model": training.model, "optimizer": training.optimizer}
    )

    def torch_save(path: Path) -> None:
        torch.save(training.state(), path / "state.pt")
        fsync_tree(path)

    def safetensors_save(path: Path) -> None:
        safetensors.save_file(training.tensors(), path / "state.safetensors")
        fsync_tree(path)

    def torch_dcp(path: Path) -> None:
        dcp_save(training.state(), path)
        fsync_tree(path)

    for number in range(rounds + 1):
        if number == 1:
            results.times.clear()  # the first round is a warm-up
        path = fresh(root, "raw")
        results.time("raw write + fsync", lambda path=path: raw_save(path, blob))
        path = fresh(root, "torch")
        results.time("torch.save + fsync", lambda path=path: torch_save(path))
        path = fresh(root, "dcp")
        results.time("torch distributed checkpoint + fsync", lambda path=path: torch_dcp(path))
        if safetensors is not None:
            path = fresh(root, "safetensors")
            results.time("safetensors + fsync", lambda path=path: safetensors_save(path))
        # as for the others, delete the previous one before
        checkpointer.delete_checkpoints(num_to_keep=0)
        results.time("brain-ckpt (checksummed, published)", checkpointer.save_checkpoint)
    return results


def loads(training: Training, root: Path, rounds: int) -> Results:
    """Time warm loads into a model and an optimizer."""
    results = Results()
    target = Training(1)
    target.model, target.optimizer = training.model, training.optimizer
    checkpointer = Checkpointer(
        root / "brain-ckpt", {"model": target.model, "optimizer": target.optimizer}
    )
    found = checkpointer.find_checkpoint()
    assert found is not None

    def torch_load() -> Any:
        return torch.load(root / "torch" / "state.pt", weights_only=True)

    def torch_load_into() -> None:
        state = torch_load()
        target.model.load_state_dict(state["model"])
        target.optimizer.load_state_dict(state["optimizer"])

    def dcp_load() -> None:
        dcp.load(training.state(), checkpoint_id=root / "dcp" / "dcp", no_dist=True)

    for number in range(rounds + 1):
        if number == 1:
            results.times.clear()
        results.time("raw read", (root / "raw" / "raw").read_bytes)
        results.time("torch.load", torch_load)
        results.time("torch.load + load_state_dict", torch_load_into)
        results.time("torch distributed checkpoint", dcp_load)
        if safetensors is not None:
            file = root / "safetensors" / "state.safetensors"
            results.time("safetensors", lambda file=file: safetensors.load_file(file))
        results.time(
            "brain-ckpt (verified, into the objects)", lambda: checkpointer.load_checkpoint(found)
        )
    return results


def stalls(training: Training, root: Path, rounds: int) -> Results:
    """Time how long an asynchronous save blocks training."""
    results = Results()
    tensors = [value for value in training.tensors().values() if value.dim()]
    kept = [torch.empty_like(value) for value in tensors]

    def copy() -> None:
        for buffer, value in zip(kept, tensors, strict=True):
            buffer.copy_(value)

    checkpointer = Checkpointer(
        fresh(root, "async"),
        {"model": training.model, "optimizer": training.optimizer},
        asynchronous=True,
    )
    for number in range(rounds + 1):
        if number == 1:
            results.times.clear()
        results.time("copy into kept buffers", copy)
        results.time("clone", lambda: [value.clone() for value in tensors])
        path = fresh(root, "dcp-async")
        future = results.time(
            "torch distributed checkpoint, async_save",
            lambda path=path: dcp.async_save(
                training.state(), checkpoint_id=path / "dcp", no_dist=True
            ),
        )
        getattr(future, "upload_completion", future).result()
        checkpointer.delete_checkpoints(num_to_keep=0)
        results.time("brain-ckpt, asynchronous", checkpointer.save_checkpoint)
        # as the next save does; closing would also release the lock
        results.time("  until it is durable", checkpointer._writer.wait)  # noqa: SLF001
    checkpointer.close()
    return results


class StepCounter:
    """A small training of one thread that counts its steps."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.batch = torch.randn(256, 256)

    def steps_until(self, deadline: float) -> int:
        """Train until a time of the performance counter; return the number of steps."""
        count = 0
        while time.perf_counter() < deadline:
            self.optimizer.zero_grad()
            self.model(self.batch).square().mean().backward()
            self.optimizer.step()
            count += 1
        return count

    def relative_speed(self, start_writer: Callable[[], threading.Thread], seconds: float) -> float:
        """Return the speed while a thread writes, relative to the speed without it."""
        began = time.perf_counter()
        undisturbed = self.steps_until(began + seconds) / seconds
        thread = start_writer()
        began, count = time.perf_counter(), 0
        while thread.is_alive():
            count += self.steps_until(time.perf_counter() + 0.005)
        return count / (time.perf_counter() - began) / undisturbed


def compare_speed_while_saving(training: Training, root: Path, seconds: float, rounds: int) -> None:
    """Print how fast a training is while a save is written in the background."""
    counter = StepCounter()
    checkpointer = Checkpointer(
        fresh(root, "background"),
        {"model": training.model, "optimizer": training.optimizer},
        asynchronous=True,
    )
    blob = random_bytes(training)

    def save() -> threading.Thread:
        checkpointer.save_checkpoint()
        pending = checkpointer._writer._pending  # noqa: SLF001 - its end is what is measured
        assert pending is not None
        return pending._thread  # type: ignore[return-value]  # noqa: SLF001 - as above

    def write_raw() -> threading.Thread:
        thread = threading.Thread(target=raw_save, args=(fresh(root, "raw-background"), blob))
        thread.start()
        return thread

    speeds: dict[str, list[float]] = {"raw write + fsync": [], "brain-ckpt, asynchronous": []}
    for _ in range(rounds):
        speeds["raw write + fsync"].append(counter.relative_speed(write_raw, seconds))
        speeds["brain-ckpt, asynchronous"].append(counter.relative_speed(save, seconds))
        checkpointer.close()
        checkpointer.delete_checkpoints(num_to_keep=1)
    print(
        "\nspeed of a training during a background write, relative to without (one thread of torch)"
    )
    for name, each in speeds.items():
        low, high = min(each), max(each)
        print(f"  {name:44s} {statistics.median(each):.0%} ({low:.0%}-{high:.0%})")
    kept = 100 * statistics.median(speeds["brain-ckpt, asynchronous"])
    report("speed of training beside an asynchronous save", kept, "%", 95, at_least=True)


def main() -> None:
    """Measure and print."""
    is_quick = take_quick()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3 if is_quick else 9)
    parser.add_argument("--megabytes", type=int, default=48 if is_quick else 200)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    training = Training(options.megabytes)
    size = sum(value.nbytes for value in training.tensors().values())
    fast = "zlib" if importlib.util.find_spec("isal") is None else "ISA-L"
    cores = os.cpu_count()
    print(f"torch {torch.__version__}, {cores} cores, {size / 1e6:.0f} MB, CRC-32 of {fast}")
    root = Path(tempfile.mkdtemp(prefix="brain-ckpt-bench-", dir=options.directory))
    try:
        megabytes = f"{size / 1e6:.0f} MB"
        saved = saves(training, root, options.rounds)
        saved.show("durable save", "raw write + fsync")
        ours = "brain-ckpt (checksummed, published)"
        saved.report(f"durable save of {megabytes}", 1.1, ours, "raw write + fsync")
        loaded = loads(training, root, options.rounds)
        loaded.show("warm load", "torch.load")
        ours = "brain-ckpt (verified, into the objects)"
        loaded.report(f"verified load of {megabytes}", 1.1, ours, "torch.load")
        stalled = stalls(training, root, options.rounds)
        stalled.show("stall of an asynchronous save", "copy into kept buffers")
        ours = "brain-ckpt, asynchronous"
        stalled.report("stall of an asynchronous save", 1.1, ours, "copy into kept buffers")
        compare_speed_while_saving(training, root, 1.0, options.rounds)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
