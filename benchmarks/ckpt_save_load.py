"""Save and load 200 MB of model and Adam state beside peers, contenders interleaved.

Run it on a quiet machine: ``python benchmarks/ckpt_save_load.py [--rounds 9] [--megabytes 200]``.
Printed are medians (min-max) in seconds, and ratios to this machine's own write, read and copy.
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


class Subject:
    """A model and its optimizer, with moments."""

    def __init__(self, megabytes: int) -> None:
        layers = max(1, round(megabytes * 2**20 / (3 * 4 * WIDTH * WIDTH)))
        self.model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-5)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """Return both states."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by one name each."""
        flat = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for number, entry in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer.{number}.{key}": value for key, value in entry.items()}
        return flat


class Results:
    """Times by contender."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def time(self, name: str, action: Callable[[], Any]) -> Any:
        """Run a contender once."""
        started = time.perf_counter()
        result = action()
        self.times.setdefault(name, []).append(time.perf_counter() - started)
        return result

    def show(self, title: str, base: str) -> None:
        """Print a table."""
        print(f"\n{title}")
        unit = statistics.median(self.times[base])
        for name, times in self.times.items():
            # round by round, so that a slow moment of the machine counts for both
            ratios = [one / other for one, other in zip(times, self.times[base], strict=False)]
            print(
                f"  {name:44s} {statistics.median(times):.3f} ({min(times):.3f}-{max(times):.3f}) s"
                f"   x {statistics.median(times) / unit:.2f}"
                f"   paired {statistics.median(ratios):.2f}"
            )


def fsync_tree(path: Path) -> None:
    """Have the disk confirm a directory with all that is in it."""
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
    """Write bytes, and have the disk confirm them."""
    with (path / "raw").open("wb", buffering=0) as file:
        written = 0
        while written < len(blob):
            written += file.write(blob[written:])
        os.fsync(file.fileno())


def dcp_save(state: dict[str, Any], path: Path) -> None:
    """Save with torch's distributed checkpoint, in one process."""
    dcp.save(state, checkpoint_id=path / "dcp", no_dist=True)


def saves(subject: Subject, root: Path, rounds: int) -> Results:
    """Time durable saves."""
    results = Results()
    size = sum(value.nbytes for value in subject.tensors().values())
    blob = memoryview(os.urandom(2**20) * (size >> 20))
    checkpointer = Checkpointer(
        fresh(root, "ours"), {"model": subject.model, "optimizer": subject.optimizer}
    )

    def torch_save(path: Path) -> None:
        torch.save(subject.state(), path / "state.pt")
        fsync_tree(path)

    def safetensors_save(path: Path) -> None:
        safetensors.save_file(subject.tensors(), path / "state.safetensors")
        fsync_tree(path)

    def torch_dcp(path: Path) -> None:
        dcp_save(subject.state(), path)
        fsync_tree(path)

    for number in range(rounds + 1):
        if number == 1:
            results.times.clear()  # the first round warms everything up
        path = fresh(root, "raw")
        results.time("raw write + fsync", lambda path=path: raw_save(path, blob))
        path = fresh(root, "torch")
        results.time("torch.save + fsync", lambda path=path: torch_save(path))
        path = fresh(root, "dcp")
        results.time("torch distributed checkpoint + fsync", lambda path=path: torch_dcp(path))
        if safetensors is not None:
            path = fresh(root, "safetensors")
            results.time("safetensors + fsync", lambda path=path: safetensors_save(path))
        # as for the others: the last one's pages are given back before
        checkpointer.delete_checkpoints(num_to_keep=0)
        results.time("brain-ckpt (checksummed, published)", checkpointer.save_checkpoint)
    return results


def loads(subject: Subject, root: Path, rounds: int) -> Results:
    """Time warm loads into a model and an optimizer."""
    results = Results()
    target = Subject(1)
    target.model, target.optimizer = subject.model, subject.optimizer
    checkpointer = Checkpointer(
        root / "ours", {"model": target.model, "optimizer": target.optimizer}
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
        dcp.load(subject.state(), checkpoint_id=root / "dcp" / "dcp", no_dist=True)

    subject.tensors_for_dcp = lambda: {
        "model": subject.model.state_dict(),
        "optimizer": subject.optimizer.state_dict(),
    }  # type: ignore[attr-defined]
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


def stalls(subject: Subject, root: Path, rounds: int) -> Results:
    """Time how long an asynchronous save keeps training waiting."""
    results = Results()
    tensors = [value for value in subject.tensors().values() if value.dim()]
    kept = [torch.empty_like(value) for value in tensors]

    def copy() -> None:
        for buffer, value in zip(kept, tensors, strict=True):
            buffer.copy_(value)

    checkpointer = Checkpointer(
        fresh(root, "ours-async"),
        {"model": subject.model, "optimizer": subject.optimizer},
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
                subject.state(), checkpoint_id=path / "dcp", no_dist=True
            ),
        )
        getattr(future, "upload_completion", future).result()
        checkpointer.delete_checkpoints(num_to_keep=0)
        results.time("brain-ckpt, asynchronous", checkpointer.save_checkpoint)
        # as the next save would; closing gives the lock back, which no training does in between
        results.time("  until it is durable", checkpointer._writer.wait)  # noqa: SLF001
    checkpointer.close()
    return results


def training_beside(subject: Subject, root: Path, seconds: float, rounds: int) -> None:
    """Compare the steps of a training alone with those of one beside the writer."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(256, 256)
    checkpointer = Checkpointer(
        fresh(root, "beside"),
        {"model": subject.model, "optimizer": subject.optimizer},
        asynchronous=True,
    )

    def steps(deadline: float) -> int:
        count = 0
        while time.perf_counter() < deadline:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            count += 1
        return count

    def share_beside(start: Callable[[], threading.Thread]) -> float:
        began = time.perf_counter()
        alone = steps(began + seconds) / seconds
        thread = start()
        began, count = time.perf_counter(), 0
        while thread.is_alive():
            count += steps(time.perf_counter() + 0.005)
        return count / (time.perf_counter() - began) / alone

    def our_writer() -> threading.Thread:
        checkpointer.save_checkpoint()
        flight = checkpointer._writer._pending  # noqa: SLF001 - when it ends is what is measured
        assert flight is not None
        return flight._thread  # type: ignore[return-value]  # noqa: SLF001 - as above

    size = sum(value.nbytes for value in subject.tensors().values())
    blob = memoryview(os.urandom(2**20) * (size >> 20))

    def raw_writer() -> threading.Thread:
        thread = threading.Thread(target=raw_save, args=(fresh(root, "raw-beside"), blob))
        thread.start()
        return thread

    raw, ours = [], []
    for _ in range(rounds):
        raw.append(share_beside(raw_writer))
        ours.append(share_beside(our_writer))
        checkpointer.close()
        checkpointer.delete_checkpoints(num_to_keep=1)
    print("\ntraining beside a writer keeps of its speed (one thread of torch)")
    for name, shares in {"raw write + fsync": raw, "brain-ckpt, asynchronous": ours}.items():
        low, high = min(shares), max(shares)
        print(f"  {name:44s} {statistics.median(shares):.0%} ({low:.0%}-{high:.0%})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    subject = Subject(options.megabytes)
    size = sum(value.nbytes for value in subject.tensors().values())
    fast = "zlib" if importlib.util.find_spec("isal") is None else "ISA-L"
    cores = os.cpu_count()
    print(f"torch {torch.__version__}, {cores} cores, {size / 1e6:.0f} MB, CRC-32 of {fast}")
    root = Path(tempfile.mkdtemp(prefix="brain-ckpt-bench-", dir=options.directory))
    try:
        saves(subject, root, options.rounds).show("durable save", "raw write + fsync")
        loads(subject, root, options.rounds).show("warm load", "torch.load")
        stalls(subject, root, options.rounds).show(
            "stall of an asynchronous save", "copy into kept buffers"
        )
        training_beside(subject, root, 1.0, options.rounds)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
