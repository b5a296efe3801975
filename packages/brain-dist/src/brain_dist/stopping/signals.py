"""Stop requests of this process: signals, a time limit, or code."""

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

# EX_TEMPFAIL of sysexits.h, which a script that requeues jobs can tell from a failure.
EXIT_REQUEUE = 75

# A terminal's Ctrl-C reaches torchrun's workers twice: directly, and forwarded by torchrun.
_FORWARDED_WITHIN_S = 2.0
# How long a loader's worker waits to see whether its main process got the signal as well.
_MAIN_PROCESS_S = 5.0
# What torchrun and SLURM leave between SIGTERM and SIGKILL.
_WORKER_GRACE_S = 30.0


class StopSignal:
    """Records requests to stop this process, for the training loop to read.

    ::

        with StopSignal() as stop:
            for batch in batches:
                train_batch(batch)
                if stop.requested:
                    save()
                    sys.exit(EXIT_REQUEUE)

    Inside the block SIGTERM and SIGUSR1 only record a request; at its end the former handlers are
    restored.  Outside the main thread, where Python allows no handlers, only `request` and the
    time limit work.

    A scheduler signals the processes that this one has forked, too.  In those, SIGUSR1 and SIGINT
    do nothing; SIGTERM ends them, as ``Process.terminate`` expects, but see
    `shield_from_stop_signals`.

    Parameters
    ----------
    time_limit_s : float, optional
        Seconds from the start of the block after which a stop is requested.
    interrupts : bool
        If True, the first SIGINT (Ctrl-C) records a request as well and prints a line; the second
        raises KeyboardInterrupt as usual.  SIGINT is not handled if it is ignored, as in a
        process that a shell starts in the background, or if the program has a handler of its own.

    Attributes
    ----------
    reason : str or None
        The first request: "SIGTERM", "SIGUSR1", "SIGINT", "time limit", or the argument of
        `request`.
    """

    def __init__(self, *, time_limit_s: float | None = None, interrupts: bool = False) -> None:
        if time_limit_s is not None and not time_limit_s > 0:
            raise ValueError(
                f"a time limit is above zero seconds, got {time_limit_s!r}; omit it for no limit"
            )
        self.reason: str | None = None
        self._time_limit_s = time_limit_s
        self._interrupts = interrupts
        self._interrupted_at: float | None = None
        self._deadline: float | None = None
        self._former_handlers: list[tuple[int, Any]] = []
        self._signalled: mmap.mmap | bytearray = bytearray(1)
        self._pid = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether a stop was requested; cheap enough to read at every step."""
        if (
            self.reason is None
            and self._deadline is not None
            and time.monotonic() >= self._deadline
        ):
            self.reason = "time limit"
        return self.reason is not None

    def request(self, reason: str = "requested") -> None:
        """Request a stop; the first reason is kept."""
        if self.reason is None:
            self.reason = reason

    def clear(self) -> None:
        """Discard the request; the time limit requests a stop once a block only."""
        self.reason = self._deadline = self._interrupted_at = None

    def __enter__(self) -> Self:
        """Install the handlers and start the time limit."""
        self._pid = os.getpid()
        self._signalled = mmap.mmap(-1, 1)  # shared with processes that this one forks
        self._interrupted_at = None
        if self._time_limit_s is not None:
            self._deadline = time.monotonic() + self._time_limit_s
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGUSR1"):
                number = getattr(signal, name, None)
                if number is not None:
                    self._former_handlers.append((number, signal.signal(number, self._on_signal)))
            if self._interrupts and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                former = signal.signal(signal.SIGINT, self._on_interrupt)
                self._former_handlers.append((signal.SIGINT, former))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the former handlers; the request stays readable."""
        while self._former_handlers:
            number, former = self._former_handlers.pop()
            # None stands for a handler that C code installed, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if former is None else former)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - Python's interface
        if os.getpid() == self._pid:
            self.request(signal.Signals(number).name)
            self._signalled[0] = 1
        elif number == signal.SIGTERM:
            self._end_fork()

    def _end_fork(self) -> None:
        """End a process that was forked inside the block: it has no loop that reads the request."""
        is_worker = torch.utils.data.get_worker_info() is not None
        deadline = time.monotonic() + _MAIN_PROCESS_S
        while is_worker and not self._signalled[0] and time.monotonic() < deadline:
            time.sleep(0.01)  # or was only this process signalled, by Process.terminate()?
        if is_worker and self._signalled[0] == 1:
            # The main process may need more batches to reach its next checkpoint.
            self._signalled = bytearray((2,))  # the next SIGTERM ends this process
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, _WORKER_GRACE_S)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        now_s = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now_s
            self.request("SIGINT")
            if if_main_process():
                _write_to_terminal("Stopping after saving. Press Ctrl-C again to exit at once.")
        elif not (_under_torchrun() and now_s - self._interrupted_at < _FORWARDED_WITHIN_S):
            signal.default_int_handler(number, frame)


def shield_from_stop_signals() -> None:
    """Keep a loader's worker alive for 30 s after SIGTERM; the worker calls it when it starts.

    A scheduler sends SIGTERM to all processes, and it ends torch's workers at once: the main
    process could not load the batches up to the step boundary where it saves.  It does nothing in
    a worker that was not forked inside a `StopSignal`.
    """
    handler = signal.getsignal(signal.SIGTERM)  # inherited; torch has set its own in C
    if isinstance(getattr(handler, "__self__", None), StopSignal):
        signal.signal(signal.SIGTERM, handler)


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _write_to_terminal(text: str) -> None:
    """Write a line from a signal handler, which may have interrupted a print()."""
    try:
        os.write(sys.stderr.fileno(), f"\n{text}\n".encode())
    except (AttributeError, OSError, ValueError):  # a notebook's, a test's or no stderr
        if sys.stderr is not None:
            sys.stderr.write(f"\n{text}\n")
