"""Time contenders in turns, so that a slow moment of the machine affects all of them."""

from __future__ import annotations

import gc
import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def cpu_seconds(
    contenders: Mapping[str, Callable[[], object]], rounds: int, calls: int
) -> dict[str, list[float]]:
    """Return the CPU seconds of one call in each round, as the mean over ``calls`` calls."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in contenders.items():
                start = time.thread_time()
                for _ in range(calls):
                    call()
                seconds[name].append((time.thread_time() - start) / calls)
    finally:
        gc.enable()
    return seconds


def print_microseconds(title: str, seconds: Mapping[str, Sequence[float]], base: str) -> None:
    """Print medians (minimum to maximum) in microseconds, and ratios of medians (of minima)."""
    print(f"\n{title}")
    for name, taken in seconds.items():
        median = statistics.median(taken) / statistics.median(seconds[base])
        minimum = min(taken) / min(seconds[base])
        print(
            f"  {name:32} {statistics.median(taken) * 1e6:9.2f} "
            f"({min(taken) * 1e6:.2f} to {max(taken) * 1e6:.2f})  x {median:.2f} ({minimum:.2f})"
        )


def print_seconds(title: str, seconds: Mapping[str, Sequence[float]], base: str) -> None:
    """Print medians (minimum to maximum) in seconds, and the median of each round's ratio."""
    print(f"\n{title}: seconds, median (minimum to maximum), x {base}")
    for name, taken in seconds.items():
        ratio, _, _ = paired_ratio(taken, seconds[base])
        print(
            f"  {name:32} {statistics.median(taken):.4f} "
            f"({min(taken):.4f} to {max(taken):.4f})  x {ratio:.2f}"
        )


def paired_ratio(
    seconds: Sequence[float], base: Sequence[float], tail: float = 0.0
) -> tuple[float, float, float]:
    """Return median, lower and upper bound of the ratios of two contenders, round by round.

    Parameters
    ----------
    seconds, base : sequence of float
        The times of both, in the order of the rounds.
    tail : float
        The part of the ratios outside each bound: 0 gives minimum and maximum.
    """
    ratios = sorted(one / other for one, other in zip(seconds, base, strict=False))
    cut = int(len(ratios) * tail)
    return statistics.median(ratios), ratios[cut], ratios[-1 - cut]
