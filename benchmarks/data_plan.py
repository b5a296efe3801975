"""Plan dynamic batches over 1,000,000 lengths: seconds to build and to reshuffle, and memory.

python benchmarks/data_plan.py

"numpy by hand" sorts a permutation into the same buckets and cuts them into batches; it neither
orders the batches by their work nor keeps a plan. With SpeechBrain on the path its sampler is
measured too.
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

from brain_data import DynamicBatchSampler

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, LIMIT, BUCKETS, ROUNDS = 1_000_000, 20_000, 60, 11


class Rows:
    """Only a length."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return ROWS


def make_lengths() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return lengths as of utterances."""
    return np.random.default_rng(0).lognormal(6, 0.6, ROWS).clip(1, LIMIT)


class ByHand:
    """The plain way with numpy."""

    def __init__(self, lengths: Any) -> None:
        sampler = DynamicBatchSampler([1], LIMIT, num_buckets=BUCKETS, lengths_list=[1])
        self.sizes = np.minimum(sampler.bucket_sizes, ROWS)
        edges = sampler.bucket_boundaries
        self.sizes[:-1] = np.maximum(1, (LIMIT / edges).astype(np.int64))
        self.buckets = np.searchsorted(edges, np.asarray(lengths)).astype(np.uint16)
        self.shuffle(0)

    def shuffle(self, epoch: int) -> None:
        """Make an epoch's batches, as cuts in an order, and a random order of them."""
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


def ours(lengths: Any) -> DynamicBatchSampler:
    """Build our sampler and its first plan."""
    sampler = DynamicBatchSampler(Rows(), LIMIT, num_buckets=BUCKETS, lengths_list=lengths)
    sampler.plan()
    return sampler


def reshuffle(sampler: DynamicBatchSampler, epoch: int) -> None:
    """Plan another epoch."""
    sampler.set_epoch(epoch)
    sampler.plan()


def speechbrain(lengths: Any) -> Any:
    """Build the reference's sampler."""
    from speechbrain.dataio.sampler import DynamicBatchSampler as Theirs

    return Theirs(Rows(), LIMIT, num_buckets=BUCKETS, lengths_list=lengths)


BUILDERS: dict[str, Callable[[Any], Any]] = {
    "numpy by hand": ByHand,
    "brain_data": ours,
    "speechbrain": speechbrain,
}
RESHUFFLERS: dict[str, Callable[[Any, int], None]] = {
    "numpy by hand": lambda sampler, epoch: sampler.shuffle(epoch),
    "brain_data": reshuffle,
    "speechbrain": lambda sampler, epoch: sampler.set_epoch(epoch),
}


def grown_megabytes(name: str) -> float:
    """Return what building and one reshuffle add to the peak of a fresh process."""
    lengths = make_lengths()
    if name == "speechbrain":
        lengths = lengths.tolist()
    torch.randperm(10)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_megabytes()
    sampler = BUILDERS[name](lengths)
    RESHUFFLERS[name](sampler, 1)
    return peak_megabytes() - before


def peak_megabytes() -> float:
    """Return the most memory that this process has had (Linux)."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def report(title: str, seconds: dict[str, list[float]]) -> None:
    """Print medians and ratios."""
    base = seconds["numpy by hand"]
    print(f"\n{title}: seconds, median (min to max), x numpy by hand")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, base, strict=False))
        print(
            f"  {name:16} {statistics.median(taken):.3f} "
            f"({min(taken):.3f} to {max(taken):.3f})  x {ratio:.2f}"
        )


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    lengths = make_lengths().tolist()
    names = ["numpy by hand", "brain_data"]
    try:
        import speechbrain.dataio.sampler  # noqa: F401
    except ImportError:
        print("SpeechBrain is not installed: left out")
    else:
        names.append("speechbrain")
    built: dict[str, list[float]] = {name: [] for name in names}
    shuffled: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS):
        for name in names:
            if name == "speechbrain" and number:
                continue  # once is long enough
            gc.collect()
            start = time.perf_counter()
            sampler = BUILDERS[name](lengths)
            built[name].append(time.perf_counter() - start)
            start = time.perf_counter()
            RESHUFFLERS[name](sampler, number + 1)
            shuffled[name].append(time.perf_counter() - start)
            del sampler
    report("build from a list of 1,000,000 lengths", built)
    report("reshuffle", shuffled)
    print("\nmemory added at the peak, MB")
    for name in names:
        command = [sys.executable, __file__, "--memory", name]
        grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"  {name:16} {float(grown):.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(grown_megabytes(sys.argv[2]))
    else:
        main()
