"""Plan dynamic batches over 1,000,000 lengths: seconds to build and to reshuffle, and memory.

    python benchmarks/data_plan.py

"plain numpy" sorts a permutation into the same buckets and cuts them into batches. It neither
orders the batches by their work nor keeps a plan. SpeechBrain's sampler is measured, too, if it is
installed.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _timing import print_seconds
from _verdict import report

from brain_data import DynamicBatchSampler

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, LIMIT, BUCKETS, ROUNDS = 1_000_000, 20_000, 60, 11


class Rows:
    """A dataset with a length and nothing else."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return ROWS


def make_lengths() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return lengths distributed like those of utterances."""
    return np.random.default_rng(0).lognormal(6, 0.6, ROWS).clip(1, LIMIT)


class PlainNumpy:
    """Dynamic batches with numpy alone."""

    def __init__(self, lengths: Any) -> None:
        sampler = DynamicBatchSampler([1], LIMIT, num_buckets=BUCKETS, lengths_list=[1])
        self.sizes = np.minimum(sampler.bucket_sizes, ROWS)
        edges = sampler.bucket_boundaries
        self.sizes[:-1] = np.maximum(1, (LIMIT / edges).astype(np.int64))
        self.buckets = np.searchsorted(edges, np.asarray(lengths)).astype(np.uint16)
        self.shuffle(0)

    def shuffle(self, epoch: int) -> None:
        """Make an epoch's batches, as bounds in an order, and a random order of them."""
        generator = np.random.default_rng(epoch)
        order = generator.permutation(ROWS)
        buckets = self.buckets[order]
        self.order = order[np.argsort(buckets, kind="stable")]
        counts = np.bincount(buckets, minlength=len(self.sizes))
        begins = np.concatenate([[0], np.cumsum(counts)])
        self.starts = np.concatenate(
            [np.arange(a, b, s) for a, b, s in zip(begins, begins[1:], self.sizes, strict=False)]
        )
        self.batches = generator.permutation(len(self.starts))


def build(lengths: Any) -> DynamicBatchSampler:
    """Build the sampler and its first plan."""
    sampler = DynamicBatchSampler(Rows(), LIMIT, num_buckets=BUCKETS, lengths_list=lengths)
    sampler.plan()
    return sampler


def reshuffle(sampler: DynamicBatchSampler, epoch: int) -> None:
    """Plan another epoch."""
    sampler.set_epoch(epoch)
    sampler.plan()


def build_speechbrain(lengths: Any) -> Any:
    """Build SpeechBrain's sampler."""
    from speechbrain.dataio.sampler import DynamicBatchSampler as SpeechBrainSampler

    return SpeechBrainSampler(Rows(), LIMIT, num_buckets=BUCKETS, lengths_list=lengths)


BUILDERS: dict[str, Callable[[Any], Any]] = {
    "plain numpy": PlainNumpy,
    "brain_data": build,
    "speechbrain": build_speechbrain,
}
RESHUFFLERS: dict[str, Callable[[Any, int], None]] = {
    "plain numpy": lambda sampler, epoch: sampler.shuffle(epoch),
    "brain_data": reshuffle,
    "speechbrain": lambda sampler, epoch: sampler.set_epoch(epoch),
}


def grown_megabytes(name: str) -> float:
    """Return what building and one reshuffle add to the peak memory of a new process."""
    lengths = make_lengths()
    if name == "speechbrain":
        lengths = lengths.tolist()
    torch.randperm(10)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = peak_megabytes()
    sampler = BUILDERS[name](lengths)
    RESHUFFLERS[name](sampler, 1)
    return peak_megabytes() - before


def peak_megabytes() -> float:
    """Return the peak memory of this process (on Linux)."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    lengths = make_lengths().tolist()
    names = ["plain numpy", "brain_data"]
    try:
        import speechbrain.dataio.sampler  # noqa: F401
    except ImportError:
        print("SpeechBrain is not installed: skipped")
    else:
        names.append("speechbrain")
    built: dict[str, list[float]] = {name: [] for name in names}
    shuffled: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS):
        for name in names:
            if name == "speechbrain" and number:
                continue  # one round takes long enough
            gc.collect()
            start = time.perf_counter()
            sampler = BUILDERS[name](lengths)
            built[name].append(time.perf_counter() - start)
            start = time.perf_counter()
            RESHUFFLERS[name](sampler, number + 1)
            shuffled[name].append(time.perf_counter() - start)
            del sampler
    print_seconds("build from a list of 1,000,000 lengths", built, "plain numpy")
    print_seconds("reshuffle", shuffled, "plain numpy")
    report(
        "planning batches of 1,000,000 lengths", statistics.median(built["brain_data"]), "s", 0.25
    )
    report("… of another epoch", statistics.median(shuffled["brain_data"]), "s", 0.15)
    print("\nadded to the peak memory, MB")
    for name in names:
        command = [sys.executable, __file__, "--memory", name]
        grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"  {name:16} {float(grown):.0f}")
        if name == "brain_data":
            report("… and their memory", float(grown), "MB", 60)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(grown_megabytes(sys.argv[2]))
    else:
        main()
