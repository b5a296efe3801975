"""Stop requests: noticed by one process, agreed on by all."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import torch

from brain_dist.world import if_main_process

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from typing_extensions import Self

# EX_TEMPFAIL of sysexits.h: "try again", which a requeue script can tell from a failure.
EXIT_TRY_AGAIN = 75

# A terminal's Ctrl-C reaches torchrun's workers twice: by itself, and passed on by torchrun.
_ECHO_S = 2.0
# How long a worker waits to hear that its main process was told to stop as well.
_WORD_S = 5.0
# What torchrun and SLURM leave between SIGTERM and SIGKILL.
_WORKER_GRACE_S = 30.0


class StopSignal:
    """Remember that somebody asked this process to stop; the training looks when it can.

    ::

        with StopSignal() as stop:
            for batch in batches:
                train_on(batch)
                if stop.requested:
                    save()
                    sys.exit(EXIT_TRY_AGAIN)

    Inside the block SIGTERM and SIGUSR1 only make a note; at its end the former handlers are
    back.  Outside the main thread, where Python allows no handlers, only `request` and the time
    limit work.

    A scheduler signals the processes that this one has forked, too.  In those, SIGUSR1 and SIGINT
    do nothing; SIGTERM ends them, as ``Process.terminate`` expects, but see `outlive_stop_signals`.

    Parameters
    ----------
    time_limit_s : float, optional
        Seconds from the block's start after which a stop is requested by itself.
    interrupts : bool
        True makes the first SIGINT (Ctrl-C) such a note as well, and says so on the screen; the
        second raises KeyboardInterrupt as usual.  SIGINT is left as it is where it is ignored, as
        by what a shell starts in the background, or where the program has a handler of its own.

    Attributes
    ----------
    reason : str or None
        Who asked first: "SIGTERM", "SIGUSR1", "SIGINT", "time limit", or what `request` was given.
    """

    def __init__(self, *, time_limit_s: float | None = None, interrupts: bool = False) -> None:
        if time_limit_s is not None and not time_limit_s > 0:
            raise ValueError(
                f"a time limit is above zero seconds, got {time_limit_s!r}; "
                f"leave it out for no limit"
            )
        self.reason: str | None = None
        self._time_limit_s = time_limit_s
        self._interrupts = interrupts
        self._interrupted_at: float | None = None
        self._deadline: float | None = None
        self._former: list[tuple[int, Any]] = []
        self._noted: mmap.mmap | bytearray = bytearray(1)
        self._pid = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for; may be read at every step."""
        if (
            self.reason is None
            and self._deadline is not None
            and time.monotonic() >= self._deadline
        ):
            self.reason = "time limit"
        return self.reason is not None

    def request(self, reason: str = "requested") -> None:
        """Ask for a stop; the first reason is kept."""
        if self.reason is None:
            self.reason = reason

    def clear(self) -> None:
        """Forget the request, which was obeyed; the time limit asks once a block."""
        self.reason = self._deadline = self._interrupted_at = None

    def __enter__(self) -> Self:
        """Install the handlers and start the clock."""
        self._pid = os.getpid()
        self._noted = mmap.mmap(-1, 1)  # shared with what is forked from here
        self._interrupted_at = None
        if self._time_limit_s is not None:
            self._deadline = time.monotonic() + self._time_limit_s
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGUSR1"):
                number = getattr(signal, name, None)
                if number is not None:
                    self._former.append((number, signal.signal(number, self._note)))
            if self._interrupts and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                former = signal.signal(signal.SIGINT, self._note_interrupt)
                self._former.append((signal.SIGINT, former))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the former handlers back; what was requested stays readable."""
        while self._former:
            number, former = self._former.pop()
            # None stands for a handler that C code installed, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if former is None else former)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - Python's interface
        if os.getpid() == self._pid:
            self.request(signal.Signals(number).name)
            self._noted[0] = 1
        elif number == signal.SIGTERM:
            self._end_fork()

    def _end_fork(self) -> None:
        """End a process that was forked inside the block: it has no loop that looks at the note."""
        is_worker = torch.utils.data.get_worker_info() is not None
        deadline = time.monotonic() + _WORD_S
        while is_worker and not self._noted[0] and time.monotonic() < deadline:
            time.sleep(0.01)  # was it for both, or only for this one, by Process.terminate()?
        if is_worker and self._noted[0] == 1:
            # The loader's next batches may be what stands between here and the next checkpoint.
            self._noted = bytearray((2,))  # next time, end
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, _WORKER_GRACE_S)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def _note_interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            self.request("SIGINT")
            if if_main_process():
                _say("Stopping once everything is saved. Press Ctrl-C again to leave at once.")
        elif not (_under_torchrun() and now - self._interrupted_at < _ECHO_S):
            signal.default_int_handler(number, frame)


def outlive_stop_signals() -> None:
    """Let a loader's worker live on for half a minute after SIGTERM; it calls this at its start.

    A scheduler's SIGTERM goes to all processes, and torch's workers end by it at once: the main
    process could not fetch the batches up to the border where it saves.  It changes nothing in a
    worker that was not forked inside a `StopSignal`.
    """
    handler = signal.getsignal(signal.SIGTERM)  # as inherited; torch has put its own in front
    if isinstance(getattr(handler, "__self__", None), StopSignal):
        signal.signal(signal.SIGTERM, handler)


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _say(text: str) -> None:
    """Write a line to the screen from a signal handler, where print() may be under way already."""
    try:
        os.write(sys.stderr.fileno(), f"\n{text}\n".encode())
    except (AttributeError, OSError, ValueError):  # a notebook's, a test's or no stderr
        if sys.stderr is not None:
            sys.stderr.write(f"\n{text}\n")
