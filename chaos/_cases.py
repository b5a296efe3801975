"""What is run and when it is killed: a pure function of a seed and a number."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from chaos._board import Aim, Phase

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Case", "Config", "Pace", "chain", "choose_aim", "draw_case"]

ROWS, BATCH_SIZE, VALID_ROWS = 52, 4, 20
MOST_KILLS_OF_A_CASE = 12
# How often each moment is aimed at; None is any moment from the fork to the end.
WEIGHTS: dict[Phase | None, float] = {
    None: 0.20,
    Phase.STEP: 0.22,
    Phase.SAVE: 0.12,
    Phase.WRITE: 0.08,
    Phase.VALID: 0.16,
    Phase.START: 0.10,
    Phase.BORDER: 0.08,
    Phase.END: 0.04,
}
ONE_RANK = 0.6  # of the kills on several ranks hit one; the others hit all
ONE_RANK_AT_START = 0.08
BEFORE_PROGRESS = 0.15  # of the kills in a chain come before a new checkpoint


@dataclass(frozen=True)
class Config:
    """One cell of the matrix.

    Attributes
    ----------
    ranks, workers : int
        Processes that train, and processes that each of them loads with.
    accumulation : int
        Batches to an optimizer step; 3 does not divide the 13 batches of an epoch.
    precision : str
        "fp32" or "bf16".
    asynchronous : bool
        Whether saves are written in the background.
    interval : int
        Batches between checkpoints within an epoch.
    epochs : int
        How long the run is.
    """

    ranks: int = 1
    workers: int = 0
    accumulation: int = 1
    precision: str = "fp32"
    asynchronous: bool = False
    interval: int = 2
    epochs: int = 3

    @property
    def name(self) -> str:
        """Say it in a word that can be a folder's name."""
        kind = "async" if self.asynchronous else "blocking"
        return (
            f"ranks{self.ranks}-workers{self.workers}-accum{self.accumulation}-{self.precision}"
            f"-{kind}-every{self.interval}-epochs{self.epochs}"
        )

    def fields(self) -> dict[str, Any]:
        """Return it for a report."""
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """One run and how often it is killed.

    Attributes
    ----------
    number : int
        Its number; with the seed it says all the rest.
    seed : int
        The seed of the session.
    config : Config
        The run.
    kills : int
        How often it is killed at most, before it may go on to its end.
    chained : bool
        Whether it is killed soon after each bit of progress.
    """

    number: int
    seed: int
    config: Config
    kills: int
    chained: bool = False

    def dice(self) -> random.Random:
        """Return what decides about its kills."""
        return random.Random(f"{self.seed}/{self.number}/{self.chained}")


@dataclass(frozen=True)
class Pace:
    """How long things take in a run that nobody disturbs.

    Attributes
    ----------
    seconds : float
        From the fork to the end.
    phase_seconds : dict of str to float
        In each phase, altogether.
    phase_times : dict of str to int
        How often each phase began.
    """

    seconds: float
    phase_seconds: dict[str, float]
    phase_times: dict[str, int]

    def times(self, phase: Phase) -> int:
        """Return how often a phase began."""
        return self.phase_times.get(phase.name, 0)

    def mean_s(self, phase: Phase) -> float:
        """Return how long a phase lasts."""
        return self.phase_seconds.get(phase.name, 0.0) / max(1, self.times(phase))


def configs(ranks: Sequence[int]) -> list[Config]:
    """Return the matrix."""
    cells = itertools.product(ranks, (0, 2), (1, 3), ("fp32", "bf16"), (False, True), (3, 5))
    return [Config(*cell) for cell in cells]


def draw_case(seed: int, number: int, ranks: Sequence[int]) -> Case:
    """Return a case: every 32 numbers all settings but the ranks are met, each once.

    Several ranks take longer, and are met less often.
    """
    dice = random.Random(f"{seed}/{number}")
    weights = [1.0 if each == 1 else 0.3 for each in ranks]
    chosen = dice.choices(list(ranks), weights)[0]
    cells = configs([chosen])
    order = random.Random(f"{seed}/{number // len(cells)}").sample(range(len(cells)), len(cells))
    config = cells[order[number % len(cells)]]
    return Case(number, seed, config, dice.randint(1, MOST_KILLS_OF_A_CASE))


def chain(seed: int, ranks: int, kills: int) -> Case:
    """Return a run that is long enough to be killed so often with a little progress each time."""
    config = Config(
        ranks=ranks,
        accumulation=3 if ranks == 2 else 1,  # noqa: PLR2004 - one of them accumulates
        asynchronous=ranks != 2,  # noqa: PLR2004 - and saves while nothing else happens
    )
    steps = math.ceil(math.ceil(ROWS / BATCH_SIZE) / ranks)
    saves = steps // max(config.interval, config.accumulation) + 2
    epochs = 2 + math.ceil(kills * (1 - BEFORE_PROGRESS) * 2.2 / saves)
    return Case(ranks, seed, replace(config, epochs=epochs), kills, chained=True)


def choose_aim(case: Case, dice: random.Random, pace: Pace, left: float) -> Aim:
    """Choose the next kill.

    Parameters
    ----------
    case : Case
        What is killed.
    dice : random.Random
        Decides.
    pace : Pace
        How long things take.
    left : float
        The part of the run that is left, from 0 to 1.
    """
    ranks = case.config.ranks
    watched = dice.randrange(ranks)
    targets = (watched,) if dice.random() < ONE_RANK else tuple(range(ranks))
    step_s = pace.mean_s(Phase.STEP)
    if case.chained and dice.random() >= BEFORE_PROGRESS:
        return Aim(Phase.PROGRESS, 1, dice.uniform(0.0, 2.0) * step_s, 0, targets)
    phase = _choose_phase(case, dice)
    if phase is None:
        until = left * pace.seconds if not case.chained else pace.mean_s(Phase.START) + step_s
        return Aim(None, 1, until * _early(dice), watched, targets)
    if phase is Phase.START:
        # Ranks that wait for one that never came do so for a long time: mostly kill all.
        all_ranks = targets if dice.random() < ONE_RANK_AT_START else tuple(range(ranks))
        return Aim(None, 1, dice.uniform(0.0, pace.mean_s(phase)), watched, all_ranks)
    watched = 0 if phase is Phase.WRITE else watched  # the first rank writes
    targets = (watched,) if len(targets) == 1 else targets
    nth = 1 if case.chained else 1 + int(pace.times(phase) * left * _early(dice))
    delay_s = dice.uniform(0.0, 1.0) * max(pace.mean_s(phase), 1e-4)
    return Aim(phase, nth, delay_s, watched, targets)


def _early(dice: random.Random) -> float:
    """Return a part of what is left, rather a small one: else kills gather at the run's end."""
    return dice.random() ** 2


def _choose_phase(case: Case, dice: random.Random) -> Phase | None:
    if case.chained:
        return dice.choice((Phase.START, Phase.STEP, None))
    phase = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    return Phase.SAVE if phase is Phase.WRITE and not case.config.asynchronous else phase
