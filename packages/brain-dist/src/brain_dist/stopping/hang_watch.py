"""Say which rank waits where when no step ends for long."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from brain_dist import compat
from brain_dist.calls.call_site import place_of, user_frame
from brain_dist.world import get_rank, get_world_size, is_distributed_initialized

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from torch.distributed.distributed_c10d import Store
    from typing_extensions import Self

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
# How long rank 0 waits for the reports of the other ranks, which notice within a second or two.
_REPORT_S = 5.0


class HangWatch:
    """Logs who waits where, with stacks, when no step ends for some time.

    ::

        with HangWatch(seconds=600) as watch:
            for batch in batches:
                train_batch(batch)
                watch.step()

    A thread looks at the clock once a second.  When no step has ended for `seconds`, every rank
    logs the stack of the thread that entered the block, and rank 0 one line with the place of each
    rank.  It repeats this after twice, four times, eight times as long.  It ends nothing: the
    timeouts of collectives do that.

    Parameters
    ----------
    seconds : float, optional
        Longer than the longest step, an evaluation or a save included; None does nothing.

    Raises
    ------
    ValueError
        If `seconds` is not above zero.
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not seconds > 0:
            raise ValueError(
                f"a hang watch waits above zero seconds, got {seconds!r}; use None for no watch"
            )
        self._seconds = seconds
        self._steps = 0
        self._last_step_at = 0.0
        self._done = threading.Event()
        self._watch: threading.Thread | None = None
        self._watched_thread = 0
        self._exchange: _PlaceExchange | None = None

    def step(self) -> None:
        """Say that a step has ended."""
        self._steps += 1
        self._last_step_at = time.monotonic()

    def __enter__(self) -> Self:
        """Start the watch; on several ranks each of them enters."""
        if self._seconds is not None:
            self._done.clear()
            self._last_step_at = time.monotonic()
            self._watched_thread = threading.get_ident()
            if is_distributed_initialized() and get_world_size() > 1:
                rank, world_size = get_rank(), get_world_size()
                self._exchange = _PlaceExchange(compat.default_store(), rank, world_size)
            self._watch = threading.Thread(
                target=self._run, args=(self._seconds,), name="brain_dist-hang", daemon=True
            )
            self._watch.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the watch."""
        self._done.set()
        if self._watch is not None:
            self._watch.join(_REPORT_S)
        self._watch = self._exchange = None

    def _run(self, seconds: float) -> None:
        look_every_s = min(_LOOK_EVERY_S, seconds / 4)
        limit_s, reported_at_step = seconds, -1
        while not self._done.wait(look_every_s):
            steps, waited_s = self._steps, time.monotonic() - self._last_step_at
            if steps != reported_at_step:
                limit_s = seconds
            if waited_s >= limit_s:
                self._report(steps, waited_s)
                limit_s, reported_at_step = 2 * limit_s, steps

    def _report(self, steps: int, waited_s: float) -> None:
        frame = sys._current_frames().get(self._watched_thread)  # noqa: SLF001 - documented for this
        if frame is None:
            return
        place = _describe(frame)
        logger.error(
            "No step has ended for %.0f s on rank %d, which waits in %s after %d step(s):\n%s",
            waited_s,
            get_rank(),
            place,
            steps,
            "".join(traceback.format_stack(frame)),
        )
        if self._exchange is not None:
            with contextlib.suppress(RuntimeError, ValueError):  # the store is gone
                self._exchange.report(place, steps)
                if get_rank() == 0:
                    logger.error("No step ends: %s", self._exchange.read(self._done))


class _PlaceExchange:
    """Where ranks wait, as they have reported it in the store."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        # Every rank counts its watches alike, so none reads what an earlier watch wrote.
        number = store.add(f"brain_dist/hang_watches/{rank}", 1)
        self._prefix = f"brain_dist/hangs/{number}"

    def report(self, place: str, steps: int) -> None:
        self._store.set(f"{self._prefix}/{self._rank}", json.dumps([place, steps]))

    def read(self, done: threading.Event) -> str:
        """Wait for the reports of all ranks, for some seconds, and return them as one line."""
        deadline = time.monotonic() + _REPORT_S
        keys = [f"{self._prefix}/{rank}" for rank in range(self._world_size)]
        while not self._store.check(keys) and time.monotonic() < deadline and not done.wait(0.1):
            pass
        parts = []
        for rank, key in enumerate(keys):
            if self._store.check([key]):
                place, steps = json.loads(self._store.get(key))
                parts.append(f"rank {rank} waits in {place} after {steps} step(s)")
            else:
                parts.append(f"rank {rank} has not reported: it has left, or its process has ended")
        return "; ".join(parts)


def _describe(frame: FrameType) -> str:
    """Return the function in which a thread is, and the place in the user's code that called it."""
    return f"{frame.f_code.co_name}() at {place_of(user_frame(frame))}"
