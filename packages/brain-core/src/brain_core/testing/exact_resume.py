"""Whether a run that is killed continues exactly, for tests of your own."""

from __future__ import annotations

import logging
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_core.testing.diagnosis import (
    explain_chance,
    explain_resume,
    first_difference,
    unstable_pieces,
)
from brain_core.testing.processes import Attempt, Job, StartMethod, choose_start_method, run
from brain_core.testing.record import Kill, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from brain_core.brain import Brain

__all__ = ["assert_resumes_exactly"]

logger = logging.getLogger(__name__)


def assert_resumes_exactly(
    make_brain: Callable[[Path], Brain],
    fit_args: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]],
    *,
    kills: int | Sequence[int] = 3,
    seed: int = 0,
    ranks: int = 1,
    start_method: StartMethod | None = None,
    timeout_s: float = 120.0,
) -> None:
    """Train undisturbed and with kills, each in processes of their own, and compare.

    Every batch, loss, weight and saved state of the run that was killed and started again has to
    be bit for bit that of the undisturbed run, each batch done and none left out. The undisturbed
    run takes place twice, so that a training that is never the same twice is told from one that
    does not resume.

    Parameters
    ----------
    make_brain : callable
        Takes an empty folder, or that of a run which was killed, and returns a Brain with a
        checkpointer there, as the start of your script would. If the Brain sets no interval,
        ``ckpt_interval_steps`` is 2.
    fit_args : mapping or callable
        The arguments of `Brain.fit` by name, or a function of the Brain that returns them. A
        missing ``epoch_counter`` means one epoch. Without ``valid_set`` nothing is validated.
    kills : int or sequence of int
        How many times to kill the run with SIGKILL, at batches chosen by ``seed``; or after which
        batches, those of training and validation counted together from 1.
    seed : int
        For those batches, and for every generator before ``make_brain`` is called.
    ranks : int
        Processes of a gloo group that train together, on this machine.
    start_method : {"fork", "spawn"}, optional
        How to make a process. A fork, on Linux where CUDA was not used yet, lets ``make_brain`` be
        defined inside a test, and trains on one thread. Else it has to be importable.
    timeout_s : float
        After this many seconds a start counts as hanging.

    Raises
    ------
    AssertionError
        With the first place and the first piece of state that differ, and the likely cause: a
        generator, an object that is in no checkpoint, a kernel that is not deterministic. Also if
        a run cannot go on, hangs or fails, with what it printed.
    ValueError
        If the arguments cannot work.

    Examples
    --------
    >>> import torch
    >>> from brain_ckpt import Checkpointer
    >>> from brain_core import Brain
    >>> class Regression(Brain):
    ...     def compute_forward(self, batch, stage):
    ...         return self.modules.model(batch)
    ...
    ...     def compute_objectives(self, predictions, batch, stage):
    ...         return predictions.square().mean()
    >>> def make_brain(folder):
    ...     return Regression(
    ...         {"model": torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())},
    ...         lambda parameters: torch.optim.Adam(parameters),
    ...         run_opts={"device": "cpu"},
    ...         checkpointer=Checkpointer(folder),
    ...     )
    >>> assert_resumes_exactly(make_brain, {"train_set": torch.ones(6, 2)}, kills=[3, 5])
    """
    with tempfile.TemporaryDirectory(prefix="brain-exact-") as folder:
        job = Job(
            make_brain=make_brain,
            fit_args=fit_args,
            folder=Path(folder) / "undisturbed",
            seed=seed,
            ranks=ranks,
            start_method=choose_start_method(start_method),
            timeout_s=timeout_s,
        )
        reference = _start(job)
        ignored = _compare_undisturbed(reference, _start(_in_folder(job, "again")))
        killed = _in_folder(job, "killed")
        plan = _plan_kills(reference.records[0], kills, seed)
        done = 0
        for number, kill in enumerate([*plan, None]):
            attempt = _start(replace(killed, kill=kill, number=number))
            _compare_resumed(reference, attempt, ignored, plan[:number])
            done = _check_coverage(reference.records[0], attempt, kill, done)


def _in_folder(job: Job, name: str) -> Job:
    return replace(job, folder=job.folder.with_name(name))


def _start(job: Job) -> Attempt:
    job.folder.mkdir(exist_ok=True)
    return run(job)


def _plan_kills(records: Sequence[Record], kills: int | Sequence[int], seed: int) -> list[Kill]:
    """Choose where to kill, in the order of the run, so that each start comes further."""
    places = [record.place for record in records if record.batch]
    if isinstance(kills, int):
        if not 0 < kills <= len(places) - 1:
            raise ValueError(
                f"kills must be 1 to {len(places) - 1}, one less than the run has batches, got "
                f"{kills!r}. Train on more batches, or kill less often."
            )
        draw = random.Random(seed)  # noqa: S311  # no secret
        chosen = sorted(draw.sample(range(1, len(places)), kills))
        return [Kill(places[i], before=draw.random() < 0.5) for i in chosen]  # noqa: PLR2004
    for number in kills:
        if not 1 <= number <= len(places):
            raise ValueError(
                f"kills must name batches from 1 to {len(places)}, got {number!r}: that is how "
                "many the undisturbed run trained on and evaluated."
            )
    return [Kill(places[number - 1], before=False) for number in sorted(set(kills))]


def _compare_undisturbed(reference: Attempt, again: Attempt) -> set[str]:
    """Make sure that two undisturbed runs are one; return what may differ all the same."""
    ignored: set[str] = set()
    for rank, (one, other) in enumerate(zip(reference.records, again.records, strict=True)):
        difference = first_difference(one, other)
        if difference is not None:
            raise AssertionError(
                "The run must be the same each time before it can go on exactly, but two that "
                f"nobody disturbed differ.\nFirst difference{_of(rank, reference)}: "
                f"{difference.what}.\n"
                f"Likely cause: {explain_chance(one, other, difference.at)}."
            )
        ignored |= unstable_pieces(one, other)
    return ignored


def _compare_resumed(
    reference: Attempt, attempt: Attempt, ignored: set[str], kills: Sequence[Kill]
) -> None:
    history = ", ".join(f"{'before' if k.before else 'after'} {k.place}" for k in kills)
    pairs = list(zip(reference.records, attempt.records, strict=True))
    found = [first_difference(expected, records, ignored) for expected, records in pairs]
    differences = [(each.at, rank, each) for rank, each in enumerate(found) if each is not None]
    if not differences:
        return
    at, rank, difference = min(differences)  # the earliest is nearest to the cause
    cause = explain_resume(*pairs[rank], at, ignored)
    raise AssertionError(
        f"The run that was killed {history} and started again must be the undisturbed one, and is "
        f"not.\nFirst difference{_of(rank, reference)}: {difference.what}.\n"
        f"Likely cause: {cause}."
    )


def _check_coverage(
    reference: Sequence[Record], attempt: Attempt, kill: Kill | None, done: int
) -> int:
    """Make sure that nothing was left out; return how many records of the run are done by now."""
    places = [record.place for record in reference]
    if not all(attempt.records):
        raise AssertionError("The run that was started again must go on, and did nothing.")
    for records in attempt.records:
        first, last = places.index(records[0].place), places.index(records[-1].place)
        if first > done:
            raise AssertionError(
                "Each batch must be done once, but the run that was started again left out "
                f"{places[done]} to {places[first - 1]}.\nLikely cause: the position in the data, "
                "or the epoch, is saved ahead of what was trained on."
            )
    if attempt.killed != (kill is not None) or (kill is None and places[last].stage != "END"):
        due = "its end" if kill is None else str(kill.place)
        raise AssertionError(f"The run that was started again must reach {due}, and did not.")
    return last + (records[-1].loss is not None)


def _of(rank: int, attempt: Attempt) -> str:
    return f" on rank {rank}" if len(attempt.records) > 1 else ""
