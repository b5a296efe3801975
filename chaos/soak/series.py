"""What is measured over time, and the criterion that says whether it grows."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["KINDS", "Kind", "Series", "Trend"]

WARM_UP = 0.1
_HOUR_S = 3600.0
_QUARTERS = 4
_MIN_SAMPLES = 12
_MIN_SHARE = 1 / 3


@dataclass(frozen=True)
class Kind:
    """One kind of measurement.

    Parameters
    ----------
    name : str
        For the report.
    unit : str
        "MB" or "" for numbers.
    floor : float
        A smaller rise, in that unit, is not growth.
    floor_share : float
        Nor is one that is smaller than this share of the value at the start.
    judged : bool
        Whether growth is a fault; otherwise the series is only shown.
    """

    name: str
    unit: str = ""
    floor: float = 0.0
    floor_share: float = 0.02
    judged: bool = True


KINDS = {
    "rss": Kind("resident memory", "MB", 4.0),
    # A worker has up to 20 MB of its own, and at some moments there is none.
    "own": Kind("memory without files, with workers", "MB", 24.0),
    "objects": Kind("Python objects", "", 1000.0),
    "threads": Kind("threads", "", 1.5),
    "open_files": Kind("open files", "", 4.0),
    "children": Kind("child processes", "", 1.5),
    "saved_files": Kind("files in the save folder", "", 10.0),
    # Each checkpoint holds the generators' states after the last 64 fits: up to a megabyte.
    "saved_mb": Kind("save folder", "MB", 6.0),
    "reader_rss": Kind("reader: resident memory", "MB", 4.0),
    "reader_open_files": Kind("reader: open files", "", 4.0),
    "steps_per_s": Kind("steps per second", judged=False),  # other programs can slow it down
}


@dataclass(frozen=True)
class Trend:
    """How a series changes after the warm-up.

    Attributes
    ----------
    start, middle, end : float
        Medians of the first quarter, of the second and third, and of the last.
    per_hour : float
        The slope of the line by least squares.
    verdict : str
        "grows", "steady", "too short" for fewer than 12 samples, or "not judged".
    """

    start: float
    middle: float
    end: float
    per_hour: float
    verdict: str


@dataclass
class Series:
    """The samples of one kind.

    Attributes
    ----------
    kind : Kind
        What is measured.
    times_s, values : list of float
        When, counted from the first sample, and how much.
    """

    kind: Kind
    times_s: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, time_s: float, value: float) -> None:
        """Add a sample."""
        self.times_s.append(time_s)
        self.values.append(value)

    def trend(self, duration_s: float) -> Trend | None:
        """Return how the series changes; None if nothing was measured after the warm-up.

        It grows if

        - the line by least squares rises by more than the kind's floor and its share of the start,
        - and the median of each quarter of the samples is above that of the quarter before by at
          least a third of what it would be if the whole rise were even.

        The first rules out noise.  The second rules out a cache that fills up once, and a buffer
        that is allocated late: their rise is in one quarter or two.

        Parameters
        ----------
        duration_s : float
            Of the session; the first tenth is the warm-up.
        """
        kept = [
            (time_s, value)
            for time_s, value in zip(self.times_s, self.values, strict=True)
            if time_s >= WARM_UP * duration_s
        ]
        if len(kept) < _QUARTERS:
            return None
        times_s, values = [list(one) for one in zip(*kept, strict=True)]
        slope = statistics.linear_regression(times_s, values).slope
        quarters = [statistics.median(part) for part in _split(values, _QUARTERS)]
        middle = statistics.median(values[len(values) // 4 : len(values) - len(values) // 4])
        verdict = self._verdict(len(values), slope * (times_s[-1] - times_s[0]), quarters)
        return Trend(quarters[0], middle, quarters[-1], slope * _HOUR_S, verdict)

    def _verdict(self, samples: int, rise: float, quarters: list[float]) -> str:
        if not self.kind.judged:
            return "not judged"
        if samples < _MIN_SAMPLES:
            return "too short"
        floor = max(self.kind.floor, self.kind.floor_share * abs(quarters[0]))
        each = _MIN_SHARE * rise / _QUARTERS
        even = all(after - before >= each for before, after in pairwise(quarters))
        return "grows" if rise > floor and even else "steady"


def _split(values: list[float], count: int) -> list[list[float]]:
    """Return consecutive parts of about the same length."""
    borders = [len(values) * number // count for number in range(count + 1)]
    return [values[start:end] for start, end in pairwise(borders)]
