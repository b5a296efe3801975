"""Votes: what any rank requests, known to all ranks at the same step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from brain_dist.calls.agreement import Call
from brain_dist.control_group import collectives_are_local, control_group

if TYPE_CHECKING:
    from brain_dist.control_group import Agreement, ControlGroup

_FLAG_BITS = 40
_MAX_EXPONENT = 9
_PERIOD_S = 0.5
CLOSE_TIMEOUT_S = 5.0


class StepVote:
    """Tells all ranks at the same step what any rank requests, for a small part of a step's time.

    A call that starts a reduction of the flags runs it in the background, and the next call
    returns its result, so no rank waits for a message.  On several ranks the answer therefore
    comes some calls after the request, at the same call on every rank.  In one process `vote`
    returns its own flags.

    Parameters
    ----------
    every : int, optional
        Reduce at each `every`-th call; flags of the calls between are kept for it.  By default the
        ranks agree on a power of two up to 512, so that reductions are about 0.5 s apart: one
        reduction takes as long as a very small training step.
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every counts calls, from 1 on, got {every!r}; write every=1")
        self._interval_is_fixed = every is not None
        self._interval = every or 1
        self._calls_until_reduction = 1
        self._calls_since_reduction = 0
        self._pending_flags = 0
        self._started_at: float | None = None
        self._agreement: Agreement | None = None
        self._group: ControlGroup | None = None

    def vote(self, flags: int) -> int:
        """Pass this rank's flags and return those that any rank passed before.

        Every rank has to call it equally often.

        Parameters
        ----------
        flags : int
            Bits 0 to 39, whose meaning the caller defines.

        Returns
        -------
        int
            In one process `flags`; else the OR over all ranks of the flags up to the last
            reduction, each flag once.

        Raises
        ------
        OutOfStepError
            If another rank makes another call of this package instead.
        RanksLostError
            If a rank does not call it within the timeout.
        """
        if self._agreement is None and self._calls_until_reduction > 1 and not flags:
            # By far the most calls: no flags, and no reduction is due.
            self._calls_since_reduction += 1
            self._calls_until_reduction -= 1
            return 0
        if collectives_are_local():
            return flags
        self._pending_flags |= flags
        self._calls_since_reduction += 1
        self._calls_until_reduction -= 1
        reduced = 0 if self._agreement is None else self._collect()
        if self._calls_until_reduction <= 0:
            self._start()
        return reduced

    def settle(self, flags: int = 0) -> int:
        """Pass flags and return all that are pending, those of this call too.

        Every rank has to call it, at the same place; it waits for all of them.
        """
        if collectives_are_local():
            return flags
        self._pending_flags |= flags
        reduced = self._collect()
        self._start()
        return reduced | self._collect()

    def close(self) -> None:
        """Wait for the running reduction, for at most 5 s, and discard it and all flags.

        The object can be used again.  The wait is bounded so that an exception that passes here
        is not delayed by a rank that is gone.
        """
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        while self._agreement is not None and time.monotonic() < deadline:
            if self._agreement.work.is_completed():
                self._agreement = None
            else:
                time.sleep(0.001)
        if self._agreement is not None and self._group is not None:
            self._group.abandon(self._agreement.work)
        self._agreement, self._pending_flags = None, 0

    def _start(self) -> None:
        now_s = time.perf_counter()
        word = self._pending_flags | (1 << _FLAG_BITS + self._interval_exponent(now_s))
        self._pending_flags = 0
        self._calls_since_reduction, self._started_at = 0, now_s
        self._calls_until_reduction = self._interval
        self._group = control_group()
        self._agreement = self._group.start_agreement(Call.VOTE, payload=word)

    def _interval_exponent(self, now_s: float) -> int:
        """Return the power of two of calls that take about one period at this rank's speed."""
        if self._started_at is None or not self._calls_since_reduction:
            return 0
        step_s = max((now_s - self._started_at) / self._calls_since_reduction, 1e-9)
        ratio = int(_PERIOD_S / step_s)
        return min(max(ratio.bit_length() - 1, 0), _MAX_EXPONENT)

    def _collect(self) -> int:
        agreement, self._agreement = self._agreement, None
        if agreement is None:
            return 0
        assert self._group is not None
        word = self._group.finish_agreement(agreement)
        if not self._interval_is_fixed:
            # The longest interval that any rank passed; every rank reads the same word here.
            self._interval = 1 << (word >> _FLAG_BITS).bit_length() - 1
        return word & ((1 << _FLAG_BITS) - 1)
