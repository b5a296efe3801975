"""One operation of control traffic: waiting for it, and the error if it fails."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from brain_dist import compat
from brain_dist.calls.agreement import Call
from brain_dist.calls.bounded import call_within
from brain_dist.calls.call_site import describe_call
from brain_dist.calls.reports import CallReports, out_of_step_message
from brain_dist.errors import OutOfStepError, RanksLostError
from brain_dist.world import get_rank, get_world_size

if TYPE_CHECKING:
    from torch import distributed

# How long the ranks that lost another rank wait for each other's report.
_REPORT_S = 3.0
# How long a signal handler of Python may be delayed.
_SLICE = timedelta(seconds=1.0)

# False inside `propagate_failures`, which finds lost ranks whatever collective failed.
search_lost_ranks = True


@dataclass(frozen=True)
class Operation:
    """An operation that every rank runs with the same number.

    Parameters
    ----------
    name : str
        Of the function that runs it.
    number : int
        It counts the operations of a group.
    prefix : str
        Of the keys of this operation in the store.
    timeout_s : float
        How long a rank waits for the others.
    """

    name: str
    number: int
    prefix: str
    timeout_s: float

    def wait(self, work: distributed.Work) -> None:
        """Wait in slices, between which signal handlers of Python can run."""
        while not work.is_completed():
            _wait_for_a_slice(work)
        work.wait()

    def wait_for_agreement(self, work: distributed.Work) -> None:
        """Wait; if ranks are late, find out whether those that wait make different calls.

        Raises
        ------
        OutOfStepError
            If they do.
        """
        _wait_for_a_slice(work)
        if not work.is_completed():
            reports = self._reports()
            with reports.watched(self.name, describe_call(self.name)):
                while not work.is_completed():
                    _wait_for_a_slice(work)
                    if reports.disagreement:
                        raise OutOfStepError(out_of_step_message(reports.disagreement))
        work.wait()

    def error_of_failure(self) -> OutOfStepError | RanksLostError:
        """Return the error for an operation that has failed: which ranks are lost, or differ."""
        rank = get_rank()
        calls: dict[int, tuple[str, str]] = {}
        missing = set(range(get_world_size())) - {rank} if search_lost_ranks else set()
        # A store does not answer when its process is stopped.
        with contextlib.suppress(RuntimeError, ValueError, TimeoutError):
            calls = call_within(2 * _REPORT_S, lambda: self._search(rank, missing))
        if calls:
            return OutOfStepError(out_of_step_message(calls))
        who = (
            f"rank(s) {', '.join(map(str, sorted(missing)))} did not" if missing else "not all did"
        )
        return RanksLostError(
            f"every rank has to reach {self.name} within {self.timeout_s:g} s, got on rank {rank}: "
            f"{who}; this rank waited in {describe_call(self.name)}. Read the log of the missing "
            f"rank(s) first, and if they were only slow give more time with "
            f"ddp_init_group(control_timeout_s=...)"
        )

    def error_of_disagreement(self, others: list[Call]) -> OutOfStepError:
        """Return the error for an agreement in which ranks make different calls.

        Parameters
        ----------
        others : list of Call
            The calls that differ from this rank's.
        """
        description = describe_call(self.name)
        calls = {get_rank(): (self.name, description)}
        with contextlib.suppress(RuntimeError, ValueError, TimeoutError):
            calls |= call_within(3 * _REPORT_S, lambda: self._exchange(description))
        if len(calls) == get_world_size():
            return OutOfStepError(out_of_step_message(calls))
        # A rank in a vote reports at its next vote only.
        names = {name for name, _ in calls.values()} - {self.name}
        unreported = [call.value for call in others if call.value not in names]
        if Call.COLLECTIVE_CALL in others and names - {call.value for call in Call}:
            unreported.remove(Call.COLLECTIVE_CALL.value)
        return OutOfStepError(out_of_step_message(calls, unreported))

    def _reports(self) -> CallReports:
        return CallReports(compat.default_store(), self.prefix, get_rank(), get_world_size())

    def _exchange(self, description: str) -> dict[int, tuple[str, str]]:
        """Report the call of this rank and return those of all ranks that report."""
        reports = self._reports()
        reports.report(self.name, description)
        reports.wait_for_all(_REPORT_S)
        return reports.read()

    def _search(self, rank: int, missing: set[int]) -> dict[int, tuple[str, str]]:
        """Return the calls of ranks that differ; else remove from `missing` those that report."""
        reports = self._reports()
        if reports.differ():
            return reports.read()
        store = compat.default_store()
        store.set(f"{self.prefix}/lost/{rank}", "waiting")
        deadline = time.monotonic() + _REPORT_S
        while missing and time.monotonic() < deadline:
            missing -= {r for r in missing if store.check([f"{self.prefix}/lost/{r}"])}
            time.sleep(0.05)
        return {}


def _wait_for_a_slice(work: distributed.Work) -> None:
    with contextlib.suppress(RuntimeError):  # the slice is over, or the operation failed
        work.wait(_SLICE)
