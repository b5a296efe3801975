"""One case: kill a run, start it again, and compare it with the undisturbed run."""

from __future__ import annotations

import fcntl
import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from chaos._attempt import Ended, journal_of, log_of, start
from chaos._cases import ROWS, Config, Durations, choose_kill
from chaos._journal import Entries, first_difference, lost_and_repeated, read
from chaos._parts import LOG_FILES

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
        The number of ranks of the run.
    killed : int
        The number of killed ranks.
    progress : float
        The part of the run that was done, from 0 to 1.
    redone : int
        Batches and ends of stages that the run had to repeat.
    survivors_s : float
        How long the other ranks ran after the kill.
    """

    phase: str
    ranks: int
    killed: int
    progress: float
    redone: int = 0
    survivors_s: float = 0.0


@dataclass
class Outcome:
    """The result of a case.

    Attributes
    ----------
    number, config, chained
        Which case.
    kills : list of Kill
        Its kills.
    problems : list of str
        Differences and failures; empty if there were none.
    lost, repeated : int
        Samples that were not taken, and repetitions.
    no_resume, hung : int
        Starts that did not resume from the newest acknowledged checkpoint, and starts in which a
        process did not end.
    compared, redone : int
        Records compared with the undisturbed run, and how many of them were repeated.
    seconds : float
        The duration of all starts.
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
    case: Case, directory: Path, send: Callable[[dict[str, Any]], None], mutant: str | None = None
) -> Outcome:
    """Run a case and compare it with the undisturbed run.

    Parameters
    ----------
    case : Case
        The case.
    directory : Path
        For its files and those of the undisturbed runs.
    send : callable
        Called with each kill.
    mutant : str, optional
        The piece of state that is not restored.
    """
    expected = undisturbed(case.config, directory)
    folder = directory / f"{'chain' if case.chained else 'case'}-{case.number}"
    folder.mkdir()
    outcome = Outcome(case.number, case.config.fields(), case.chained)
    comparison = _Comparison(case.config, folder, expected, outcome)
    durations, generator = _durations(expected[0]), case.generator()
    length = len(expected[0].records)
    while not outcome.problems:
        attempt = comparison.starts
        enough = len(outcome.kills) >= case.kills
        remaining = 1.0 - comparison.safe / length
        plan = None if enough else choose_kill(case, generator, durations, remaining)
        ended = start(case.config, folder, attempt, plan, mutant)
        outcome.seconds += ended.seconds
        kill = comparison.add(ended)
        if kill is not None:
            outcome.kills.append(kill)
            send({"kill": asdict(kill)})
        if ended.how == "finished":
            comparison.end()
            break
    if case.chained and len(outcome.kills) < case.kills and not outcome.problems:
        outcome.problems.append(
            f"a chain of {case.kills} kills is required, got {len(outcome.kills)}"
        )
    if not outcome.problems:
        shutil.rmtree(folder)
    return outcome


def undisturbed(config: Config, directory: Path) -> list[Entries]:
    """Return the journals of a run without kills, which is done once for each config."""
    folder = directory / "undisturbed" / config.name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = folder / "result"
        if not result.exists():
            result.write_text(start(config, folder, 0, None, None).how, encoding="utf-8")
        if (how := result.read_text(encoding="utf-8")) != "finished":
            raise RuntimeError(
                f"the undisturbed run {config.name} must finish, and it {how}:\n"
                + _logs(config, folder, 0)
            )
    return [read(journal_of(folder, 0, rank)) for rank in range(config.ranks)]


class _Comparison:
    """Compares each start of a run with the undisturbed run."""

    def __init__(
        self, config: Config, folder: Path, expected: Sequence[Entries], outcome: Outcome
    ) -> None:
        self._config, self._folder = config, folder
        self._expected, self._outcome = expected, outcome
        self._records: list[list[Any]] = [[] for _ in expected]  # by rank, without undone ones
        self._restarted = False  # from the beginning, since there was no checkpoint yet
        self.starts = 0
        self.safe = 0  # the records before the newest acknowledged checkpoint

    def add(self, ended: Ended) -> Kill | None:
        """Compare the records of a start; return the kill that ended it."""
        config, attempt, outcome = self._config, self.starts, self._outcome
        self.starts += 1
        found = [read(journal_of(self._folder, attempt, rank)) for rank in range(config.ranks)]
        for rank, entries in enumerate(found):
            self._check(rank, entries)
        began = {entries.began for entries in found if entries.began is not None}
        if len(began) > 1:
            self._add_problem(f"ranks resumed from different records: {sorted(began)}")
        self.safe = max([self.safe, *(each for entries in found for each in entries.safe)])
        if ended.how in {"hung", "failed"}:
            outcome.hung += ended.how == "hung"
            outcome.no_resume += ended.how == "failed"
            self._add_problem(f"it {ended.how}:\n{_logs(config, self._folder, attempt)}")
        if ended.phase is None:
            return None
        first = ended.targets[0]
        began_at = found[first].began
        done = self.safe if began_at is None else began_at + len(found[first].records)
        return Kill(
            phase=ended.phase.name,
            ranks=config.ranks,
            killed=len(ended.targets),
            progress=done / len(self._expected[first].records),
            redone=self._records_lost(found),
            survivors_s=ended.survivors_s if len(ended.targets) < config.ranks else 0.0,
        )

    def end(self) -> None:
        """Compare the final state of the run, and count its samples."""
        outcome, attempt = self._outcome, self.starts - 1
        for rank, expected in enumerate(self._expected):
            entries = read(journal_of(self._folder, attempt, rank))
            assert entries.end is not None
            assert expected.end is not None
            facts, reference = dict(entries.end["facts"]), dict(expected.end["facts"])
            if self._restarted:
                # Without a checkpoint a logger does not know which lines to remove.
                for name in LOG_FILES:
                    if facts.get(name, "").endswith(reference.get(name, "")):
                        facts.pop(name, None)
                        reference.pop(name, None)
            self._check_kept(entries, expected.end["kept"])
            for name in {**reference, **facts}:
                if facts.get(name) != reference.get(name):
                    self._add_problem(
                        f"at the end, rank {rank}: {name} is {facts.get(name)!r}, "
                        f"undisturbed {reference.get(name)!r}"
                    )
                    break
        records = [record for of_rank in self._records for record in of_rank]
        outcome.lost, outcome.repeated = lost_and_repeated(records, ROWS, self._epochs())
        if outcome.lost or outcome.repeated:
            self._add_problem(f"{outcome.lost} samples lost and {outcome.repeated} repeated")

    def _epochs(self) -> int:
        """Return the number of epochs, which early stopping lowers."""
        end = self._expected[0].end
        assert end is not None
        return int(end["facts"]["last epoch"]) if self._config.callbacks else self._config.epochs

    def _check(self, rank: int, entries: Entries) -> None:
        if entries.began is None:
            return
        self._restarted |= self.starts > 1 and entries.began == 0
        outcome, expected = self._outcome, self._expected[rank].records
        if entries.began < self.safe:
            outcome.no_resume += 1
            self._add_problem(
                f"rank {rank} resumed from record {entries.began} ({entries.checkpoint}), and a "
                f"checkpoint at record {self.safe} had been acknowledged"
            )
        outcome.compared += len(entries.records)
        outcome.redone += max(0, len(self._records[rank]) - entries.began)
        difference = first_difference(entries.records, expected[entries.began :])
        if difference is not None:
            self._add_problem(
                f"rank {rank}, resumed from record {entries.began} ({entries.checkpoint}): "
                f"{difference}"
            )
        self._records[rank][entries.began :] = entries.records

    def _check_kept(self, entries: Entries, reference: list[int]) -> None:
        assert entries.end is not None
        kept = entries.end["kept"]
        # Checkpoints are deleted after a save: a start that saved nothing deleted nothing.
        if kept != reference and (entries.safe or set(reference) - set(kept)):
            self._add_problem(f"checkpoints of records {kept} were kept, undisturbed {reference}")

    def _records_lost(self, found: Sequence[Entries]) -> int:
        """Return the number of records after the newest acknowledged checkpoint."""
        return max(
            max(0, (entries.began or 0) + len(entries.records) - self.safe) for entries in found
        )

    def _add_problem(self, text: str) -> None:
        self._outcome.problems.append(f"start {self.starts}: {text}")


def _durations(entries: Entries) -> Durations:
    assert entries.end is not None
    found = entries.end["durations"]
    return Durations(sum(found["seconds"].values()), found["seconds"], found["times"])


def _logs(config: Config, folder: Path, attempt: int) -> str:
    """Return the last lines of each process's output."""
    parts = []
    for rank in range(config.ranks):
        path = log_of(folder, attempt, rank)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        parts += [f"rank {rank}: {line}" for line in lines[-_LINES_OF_LOG:]]
    return "\n".join(parts)
