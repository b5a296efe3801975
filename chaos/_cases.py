"""Which run is killed when: a pure function of a seed and a number."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from chaos._status import KillPlan, Phase

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Case", "Config", "Durations", "chain", "choose_kill", "draw_case"]

ROWS, BATCH_SIZE, VALID_ROWS = 52, 4, 20
MAX_KILLS_PER_CASE = 12
# How often each phase is chosen; None is any moment from the fork to the end.
WEIGHTS: dict[Phase | None, float] = {
    None: 0.20,
    Phase.STEP: 0.22,
    Phase.SAVE: 0.12,
    Phase.WRITE: 0.08,
    Phase.VALID: 0.16,
    Phase.START: 0.10,
    Phase.BETWEEN: 0.08,
    Phase.END: 0.04,
}
ONE_RANK = 0.6  # the share of kills on several ranks that end one rank; the others end all
ONE_RANK_AT_START = 0.08
BEFORE_PROGRESS = 0.15  # the share of kills in a chain before a new checkpoint


@dataclass(frozen=True)
class Config:
    """One cell of the matrix.

    Attributes
    ----------
    ranks, workers : int
        Training processes, and loader workers of each.
    accumulation : int
        Batches per optimizer step; 3 does not divide the 13 batches of an epoch.
    precision : str
        "fp32" or "bf16".
    asynchronous : bool
        Whether saves are written in the background.
    interval : int
        Batches between checkpoints within an epoch.
    fits : int
        How often the script calls `Brain.fit`.
    loader : str
        "set" for a Dataset, "plain" for a shuffled torch DataLoader of the script's own.
    unfreezing : bool
        Whether the first layer is frozen until epoch 2, and gets a parameter group of its own then.
    callbacks : bool
        Whether callbacks average the weights, stop early, set the rates and measure, and several
        loggers write at once. With FSDP2, which shards the weights, nothing averages them.
    parallel : str
        "ddp" or, on several ranks, "fsdp".
    epochs : int
        The length of the run, unless it is stopped early.
    """

    ranks: int = 1
    workers: int = 0
    accumulation: int = 1
    precision: str = "fp32"
    asynchronous: bool = False
    interval: int = 2
    fits: int = 1
    loader: str = "set"
    unfreezing: bool = False
    callbacks: bool = False
    parallel: str = "ddp"
    epochs: int = 3

    @property
    def name(self) -> str:
        """The settings in a form that can name a folder."""
        kind = "async" if self.asynchronous else "blocking"
        return (
            f"ranks{self.ranks}-workers{self.workers}-accum{self.accumulation}-{self.precision}"
            f"-{kind}-every{self.interval}-fits{self.fits}-{self.loader}"
            f"-{'unfreezing' if self.unfreezing else 'all'}"
            f"-{'callbacks' if self.callbacks else 'hooks'}-{self.parallel}-epochs{self.epochs}"
        )

    def fields(self) -> dict[str, Any]:
        """Return the settings for a report."""
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """A run and the number of its kills.

    Attributes
    ----------
    number : int
        Determines everything else, together with the seed.
    seed : int
        The seed of the session.
    config : Config
        The run.
    kills : int
        The number of kills after which the run may finish.
    chained : bool
        Whether the run is killed soon after each new checkpoint.
    """

    number: int
    seed: int
    config: Config
    kills: int
    chained: bool = False

    def generator(self) -> random.Random:
        """Return the generator that its kills are drawn from."""
        return random.Random(f"{self.seed}/{self.number}/{self.chained}")


@dataclass(frozen=True)
class Durations:
    """How long the phases of an undisturbed run take.

    Attributes
    ----------
    seconds : float
        From the fork to the end.
    phase_seconds : dict of str to float
        The total time in each phase.
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
        """Return the mean duration of a phase."""
        return self.phase_seconds.get(phase.name, 0.0) / max(1, self.times(phase))


def configs(ranks: Sequence[int]) -> list[Config]:
    """Return all settings of the matrix."""
    either = (False, True)
    cells = itertools.product(
        ranks,
        (0, 2),
        (1, 3),
        ("fp32", "bf16"),
        either,
        (3, 5),
        (1, 2),
        ("set", "plain"),
        either,
        either,
    )
    return [
        Config(*cell, parallel=parallel, epochs=4 if cell[-1] else 3)  # one more to be stopped in
        for cell in cells
        for parallel in (("ddp",) if cell[0] == 1 else ("ddp", "fsdp"))
    ]


def draw_case(seed: int, number: int, ranks: Sequence[int]) -> Case:
    """Return a case; 512 consecutive numbers, or 1,024 on several ranks, draw every setting once.

    Several ranks take longer, and are drawn less often.
    """
    generator = random.Random(f"{seed}/{number}")
    weights = [1.0 if each == 1 else 0.3 for each in ranks]
    chosen = generator.choices(list(ranks), weights)[0]
    cells = configs([chosen])
    order = random.Random(f"{seed}/{number // len(cells)}").sample(range(len(cells)), len(cells))
    config = cells[order[number % len(cells)]]
    return Case(number, seed, config, generator.randint(1, MAX_KILLS_PER_CASE))


def chain(seed: int, ranks: int, kills: int) -> Case:
    """Return a run that is long enough for so many kills, with some progress before each."""
    config = Config(
        ranks=ranks,
        accumulation=3 if ranks == 2 else 1,  # noqa: PLR2004 - one of the three accumulates
        asynchronous=ranks != 2,  # noqa: PLR2004 - and saves synchronously
    )
    steps = math.ceil(math.ceil(ROWS / BATCH_SIZE) / ranks)
    saves = steps // max(config.interval, config.accumulation) + 2
    epochs = 2 + math.ceil(kills * (1 - BEFORE_PROGRESS) * 2.2 / saves)
    return Case(ranks, seed, replace(config, epochs=epochs), kills, chained=True)


def choose_kill(
    case: Case, generator: random.Random, durations: Durations, remaining: float
) -> KillPlan:
    """Choose the next kill.

    Parameters
    ----------
    case : Case
        The run.
    generator : random.Random
        What to draw from.
    durations : Durations
        Those of the undisturbed run.
    remaining : float
        The part of the run that remains, from 0 to 1.
    """
    ranks = case.config.ranks
    watched = generator.randrange(ranks)
    targets = (watched,) if generator.random() < ONE_RANK else tuple(range(ranks))
    step_s = durations.mean_s(Phase.STEP)
    if case.chained and generator.random() >= BEFORE_PROGRESS:
        return KillPlan(Phase.PROGRESS, 1, generator.uniform(0.0, 2.0) * step_s, 0, targets)
    phase = _choose_phase(case, generator)
    if phase is None:
        until = (
            remaining * durations.seconds
            if not case.chained
            else durations.mean_s(Phase.START) + step_s
        )
        return KillPlan(None, 1, until * _early(generator), watched, targets)
    if phase is Phase.START:
        # The other ranks wait long for one that never came: mostly kill all.
        all_ranks = targets if generator.random() < ONE_RANK_AT_START else tuple(range(ranks))
        return KillPlan(
            None, 1, generator.uniform(0.0, durations.mean_s(phase)), watched, all_ranks
        )
    watched = 0 if phase is Phase.WRITE else watched  # the first rank writes
    targets = (watched,) if len(targets) == 1 else targets
    nth = 1 if case.chained else 1 + int(durations.times(phase) * remaining * _early(generator))
    delay_s = generator.uniform(0.0, 1.0) * max(durations.mean_s(phase), 1e-4)
    return KillPlan(phase, nth, delay_s, watched, targets)


def _early(generator: random.Random) -> float:
    """Return a part of the remaining run, mostly small: otherwise kills gather at its end."""
    return generator.random() ** 2


def _choose_phase(case: Case, generator: random.Random) -> Phase | None:
    if case.chained:
        return generator.choice((Phase.START, Phase.STEP, None))
    phase = generator.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    return Phase.SAVE if phase is Phase.WRITE and not case.config.asynchronous else phase
