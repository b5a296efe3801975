"""Votes: what any rank requests, known to all ranks at the same step."""

from __future__ import annotations

import time

import torch
from torch import distributed

from brain_dist.control_group import Control, control, must_not_wait

_FLAG_BITS = 40
_MAX_EXPONENT = 9
_PERIOD_S = 0.5
_CLOSING_S = 5.0


class StepVote:
    """What any rank wants, known to all at the same step, for a small part of a step's time.

    A call that starts a reduction of the flags does so in the background, and the next call
    returns its result, so no rank waits for a message: on several ranks the answer comes later
    than the question, and at the same call everywhere.  In one process it is the flags
    themselves, at once.

    Parameters
    ----------
    every : int, optional
        Reduce at each `every`-th call; flags given in between are kept for it.  By default the
        ranks agree on a power of two up to 512, so that reductions are about 0.5 s apart: one
        costs as much as a very small training step.
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every counts calls, from 1 on, got {every!r}; write every=1")
        self._fixed = every
        self._interval = every or 1
        self._calls_left = 1
        self._calls_made = 0
        self._kept = 0
        self._started_at: float | None = None
        self._flags = torch.zeros(1, dtype=torch.int64)
        self._work: distributed.Work | None = None
        self._control: Control | None = None

    def vote(self, flags: int) -> int:
        """Give this rank's flags, get those that any rank gave before.

        Every rank has to call it equally often.

        Parameters
        ----------
        flags : int
            Bits 0 to 39, each with a meaning of the caller's.

        Returns
        -------
        int
            In one process `flags`; else the OR over all ranks of what was given up to the
            last reduction, each flag once.

        Raises
        ------
        RanksLostError
            If a rank does not come.
        """
        if self._work is None and self._calls_left > 1 and not flags:
            # By far the most calls: nothing to say, and not yet time to ask.
            self._calls_made += 1
            self._calls_left -= 1
            return 0
        if must_not_wait():
            return flags
        self._kept |= flags
        self._calls_made += 1
        self._calls_left -= 1
        found = 0 if self._work is None else self._collect()
        if self._calls_left <= 0:
            self._start()
        return found

    def settle(self, flags: int = 0) -> int:
        """Give flags and get all that are still open, those of this call too.

        Every rank has to call it, at the same place; it waits for all of them.
        """
        if must_not_wait():
            return flags
        self._kept |= flags
        found = self._collect()
        self._start()
        return found | self._collect()

    def close(self) -> None:
        """Let what is in flight arrive, and forget it; the object can be used again.

        For a moment only: an exception that passes here is not held up by a rank that is gone.
        """
        deadline = time.monotonic() + _CLOSING_S
        while self._work is not None and time.monotonic() < deadline:
            if self._work.is_completed():
                self._work = None
            else:
                time.sleep(0.001)
        self._work, self._kept = None, 0

    def _start(self) -> None:
        now = time.perf_counter()
        self._flags[0] = self._kept | (1 << _FLAG_BITS + self._wanted_exponent(now))
        self._kept = 0
        self._calls_made, self._started_at = 0, now
        self._calls_left = self._interval
        self._control = control()
        self._work = distributed.all_reduce(
            self._flags, op=distributed.ReduceOp.BOR, group=self._control.group, async_op=True
        )

    def _wanted_exponent(self, now: float) -> int:
        if self._started_at is None or not self._calls_made:
            return 0
        step_s = max((now - self._started_at) / self._calls_made, 1e-9)
        ratio = int(_PERIOD_S / step_s)
        return min(max(ratio.bit_length() - 1, 0), _MAX_EXPONENT)

    def _collect(self) -> int:
        work, self._work = self._work, None
        if work is None:
            return 0
        assert self._control is not None
        self._control.run("StepVote.vote", lambda: work)
        word = int(self._flags)
        if self._fixed is None:
            # The longest interval that any rank wants; every rank reads the same word here.
            self._interval = 1 << (word >> _FLAG_BITS).bit_length() - 1
        return word & ((1 << _FLAG_BITS) - 1)
