"""One case: a run that is killed, started again, killed, and at its end compared."""

from __future__ import annotations

import fcntl
import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from chaos._attempt import Ended, journal_of, log_of, start
from chaos._cases import ROWS, Config, Pace, choose_aim
from chaos._journal import Written, first_difference, lost_and_repeated, read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from chaos._cases import Case

__all__ = ["Kill", "Outcome", "run_case"]

_LINES_OF_LOG = 25


@dataclass
class Kill:
    """One kill, for the report.

    Attributes
    ----------
    phase : str
        Where the rank was.
    ranks : int
        Of how many ranks the run was.
    hit : int
        How many of them were killed.
    life : float
        How far the run had come, from 0 to 1.
    redone : int
        Batches and ends of stages that had to be done again.
    alone_s : float
        How long the ranks that were left went on.
    """

    phase: str
    ranks: int
    hit: int
    life: float
    redone: int = 0
    alone_s: float = 0.0


@dataclass
class Outcome:
    """What became of a case.

    Attributes
    ----------
    number, config, chained
        Which case.
    kills : list of Kill
        How often it was killed, and where.
    problems : list of str
        What was not as it has to be; empty is good.
    lost, repeated : int
        Samples.
    no_resume, hung : int
        Starts that could not go on from the newest safe checkpoint, and starts in which a process
        did not end.
    compared, redone : int
        Records compared with the undisturbed run, and how many of them were done twice.
    seconds : float
        How long all its starts took.
    """

    number: int
    config: dict[str, Any]
    chained: bool
    kills: list[Kill] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: int = 0
    repeated: int = 0
    no_resume: int = 0
    hung: int = 0
    compared: int = 0
    redone: int = 0
    seconds: float = 0.0


def run_case(
    case: Case, room: Path, tell: Callable[[dict[str, Any]], None], mutant: str | None = None
) -> Outcome:
    """Run a case and compare.

    Parameters
    ----------
    case : Case
        Which.
    room : Path
        A folder for it, and for the undisturbed runs that it is compared with.
    tell : callable
        Is told of each kill.
    mutant : str, optional
        What to leave out of what is restored.
    """
    expected = undisturbed(case.config, room)
    folder = room / f"{'chain' if case.chained else 'case'}-{case.number}"
    folder.mkdir()
    outcome = Outcome(case.number, case.config.fields(), case.chained)
    comparison = _Comparison(case.config, folder, expected, outcome)
    pace, dice = _pace(expected[0]), case.dice()
    length = len(expected[0].records)
    while not outcome.problems:
        attempt = comparison.starts
        enough = len(outcome.kills) >= case.kills
        left = 1.0 - comparison.safe / length
        aim = None if enough else choose_aim(case, dice, pace, left)
        ended = start(case.config, folder, attempt, aim, mutant)
        outcome.seconds += ended.seconds
        kill = comparison.add(ended)
        if kill is not None:
            outcome.kills.append(kill)
            tell({"kill": asdict(kill)})
        if ended.how == "finished":
            comparison.end()
            break
    if case.chained and len(outcome.kills) < case.kills and not outcome.problems:
        outcome.problems.append(
            f"a chain of {case.kills} kills was asked for, got {len(outcome.kills)}"
        )
    if not outcome.problems:
        shutil.rmtree(folder)
    return outcome


def undisturbed(config: Config, room: Path) -> list[Written]:
    """Return the journals of a run that nobody disturbs; it is done once for each config."""
    folder = room / "undisturbed" / config.name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        how = folder / "how"
        if not how.exists():
            how.write_text(start(config, folder, 0, None, None).how, encoding="utf-8")
        if (ended := how.read_text(encoding="utf-8")) != "finished":
            raise RuntimeError(
                f"the undisturbed run {config.name} has to finish, and it {ended}:\n"
                + _logs(config, folder, 0)
            )
    return [read(journal_of(folder, 0, rank)) for rank in range(config.ranks)]


class _Comparison:
    """Holds each start of a run against the run that nobody disturbed."""

    def __init__(
        self, config: Config, folder: Path, expected: Sequence[Written], outcome: Outcome
    ) -> None:
        self._config, self._folder = config, folder
        self._expected, self._outcome = expected, outcome
        self._lineages: list[list[Any]] = [[] for _ in expected]  # what counts, by rank
        self._before: list[Written] = []  # the journals of the start before
        self._began_anew = False  # after a kill, since there was no checkpoint yet
        self.starts = 0
        self.safe = 0  # the newest acknowledged checkpoint, by the records it stands after

    def add(self, ended: Ended) -> Kill | None:
        """Compare what a start did; returns the kill that ended it."""
        config, attempt, outcome = self._config, self.starts, self._outcome
        self.starts += 1
        found = [read(journal_of(self._folder, attempt, rank)) for rank in range(config.ranks)]
        for rank, written in enumerate(found):
            self._check(rank, written)
        began = {written.began for written in found if written.began is not None}
        if len(began) > 1:
            self._problem(f"ranks went on from different records: {sorted(began)}")
        self.safe = max([self.safe, *(each for written in found for each in written.safe)])
        if ended.how in {"hung", "failed"}:
            outcome.hung += ended.how == "hung"
            outcome.no_resume += ended.how == "failed"
            self._problem(f"it {ended.how}:\n{_logs(config, self._folder, attempt)}")
        if ended.phase is None:
            return None
        first = ended.targets[0]
        began_at = found[first].began
        place = self.safe if began_at is None else began_at + len(found[first].records)
        life = place / len(self._expected[first].records)
        alone_s = ended.alone_s if len(ended.targets) < config.ranks else 0.0
        return Kill(
            ended.phase.name, config.ranks, len(ended.targets), life, self._lost_of(found), alone_s
        )

    def end(self) -> None:
        """Compare the end of the run, and count its samples."""
        outcome, attempt = self._outcome, self.starts - 1
        for rank, expected in enumerate(self._expected):
            written = read(journal_of(self._folder, attempt, rank))
            assert written.end is not None
            assert expected.end is not None
            facts, wanted = dict(written.end["facts"]), dict(expected.end["facts"])
            if self._began_anew and facts.get("log", "").endswith(wanted.get("log", "")):
                # Where there was no checkpoint to say what is to be undone, lines are repeated.
                facts.pop("log", None)
                wanted.pop("log", None)
            self._check_kept(written, expected.end["kept"])
            for name in {**wanted, **facts}:
                if facts.get(name) != wanted.get(name):
                    self._problem(
                        f"at the end, rank {rank}: {name} is {facts.get(name)!r}, "
                        f"undisturbed {wanted.get(name)!r}"
                    )
                    break
        together = [record for lineage in self._lineages for record in lineage]
        outcome.lost, outcome.repeated = lost_and_repeated(together, ROWS, self._config.epochs)
        if outcome.lost or outcome.repeated:
            self._problem(f"{outcome.lost} samples lost and {outcome.repeated} repeated")

    def _check(self, rank: int, written: Written) -> None:
        if written.began is None:
            return
        self._began_anew |= self.starts > 1 and written.began == 0
        outcome, expected = self._outcome, self._expected[rank].records
        if written.began < self.safe:
            outcome.no_resume += 1
            self._problem(
                f"rank {rank} went on from record {written.began} ({written.checkpoint}), and a "
                f"checkpoint at record {self.safe} had been acknowledged"
            )
        outcome.compared += len(written.records)
        outcome.redone += max(0, len(self._lineages[rank]) - written.began)
        difference = first_difference(written.records, expected[written.began :])
        if difference is not None:
            self._problem(
                f"rank {rank}, gone on from record {written.began} ({written.checkpoint}): "
                f"{difference}"
            )
        self._lineages[rank][written.began :] = written.records

    def _check_kept(self, written: Written, wanted: list[int]) -> None:
        assert written.end is not None
        kept = written.end["kept"]
        # What is not to be kept goes after a save; a start that saved nothing deleted nothing.
        if kept != wanted and (written.safe or set(wanted) - set(kept)):
            self._problem(f"checkpoints were kept of records {kept}, undisturbed {wanted}")

    def _lost_of(self, found: Sequence[Written]) -> int:
        """Return how many records stand after the newest safe checkpoint: they are done again."""
        return max(
            max(0, (written.began or 0) + len(written.records) - self.safe) for written in found
        )

    def _problem(self, text: str) -> None:
        self._outcome.problems.append(f"start {self.starts}: {text}")


def _pace(written: Written) -> Pace:
    assert written.end is not None
    pace = written.end["pace"]
    return Pace(sum(pace["seconds"].values()), pace["seconds"], pace["times"])


def _logs(config: Config, folder: Path, attempt: int) -> str:
    """Return the last lines of what each process said."""
    parts = []
    for rank in range(config.ranks):
        path = log_of(folder, attempt, rank)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        parts += [f"rank {rank}: {line}" for line in lines[-_LINES_OF_LOG:]]
    return "\n".join(parts)
