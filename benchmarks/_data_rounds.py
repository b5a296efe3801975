"""Time contenders side by side: round by round in turn, so that a noisy machine is noisy to all."""

from __future__ import annotations

import gc
import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def rounds(
    contenders: Mapping[str, Callable[[], object]], repeats: int, times: int
) -> dict[str, list[float]]:
    """Return the CPU seconds of one call, `repeats` for each contender, each over `times` calls."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, call in contenders.items():
                start = time.thread_time()
                for _ in range(times):
                    call()
                seconds[name].append((time.thread_time() - start) / times)
    finally:
        gc.enable()
    return seconds


def table(title: str, seconds: Mapping[str, list[float]], base: str, scale: float = 1e6) -> None:
    """Print median (minimum to maximum), and the ratios to `base`: of medians, and of minima."""
    print(f"\n{title}")
    for name, taken in seconds.items():
        middle = statistics.median(taken) / statistics.median(seconds[base])
        least = min(taken) / min(seconds[base])
        print(
            f"  {name:32} {statistics.median(taken) * scale:9.2f} "
            f"({min(taken) * scale:.2f} to {max(taken) * scale:.2f})  x {middle:.2f} ({least:.2f})"
        )
