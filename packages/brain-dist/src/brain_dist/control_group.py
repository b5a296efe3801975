"""Control traffic: small messages between ranks, on a gloo group of their own.

Being apart from the gradients' group, it works whatever their backend is, never waits for a
device, and has a timeout of its own.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import distributed

from brain_dist import compat
from brain_dist.errors import RanksLostError
from brain_dist.process_exit import wait_for_workers_at_exit
from brain_dist.world import get_rank, get_world_size, is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_TIMEOUT_S = 7200.0  # run_on_main may prepare a data set for an hour, and others wait

# A message up to this size needs one collective instead of two.
_INLINE_BYTES = 504
_HEADER_BYTES = 8
# How long the ranks that miss somebody wait for each other's report.
_REPORT_S = 3.0

# True inside `failing_together`, which searches for lost ranks whatever collective they missed.
somebody_else_searches = False

# True inside a function that not every rank runs: a collective there would wait for ever.
_alone: ContextVar[bool] = ContextVar("brain_dist_alone", default=False)


class Control:
    """The control group of one default process group.

    Parameters
    ----------
    timeout_s : float
        How long a rank waits for the others in one operation.
    """

    def __init__(self, timeout_s: float) -> None:
        wait_for_workers_at_exit()
        self.timeout_s = timeout_s
        self.group = compat.new_gloo_group(timedelta(seconds=timeout_s))
        self.operations = 0

    def run(self, what: str, operation: Callable[[], Any]) -> None:
        """Run one collective; name the ranks that did not take part if it fails."""
        self.operations += 1
        number = self.operations
        try:
            work = operation()
            if work is not None:
                work.wait()
        except RuntimeError as error:
            raise RanksLostError(self._explain(what, number)) from error

    def all_gather_bytes(self, payload: bytes, what: str) -> list[bytes]:
        """Collect one byte string of every rank, in rank order."""
        world_size = get_world_size()
        # first: (inline,) uint8; firsts: (world_size, inline) uint8
        first = torch.zeros(_HEADER_BYTES + _INLINE_BYTES, dtype=torch.uint8)
        first[:_HEADER_BYTES] = _bytes_tensor(len(payload).to_bytes(_HEADER_BYTES, "little"))
        inline = payload[:_INLINE_BYTES]
        if inline:
            first[_HEADER_BYTES : _HEADER_BYTES + len(inline)] = _bytes_tensor(inline)
        firsts = self._all_gather(first, world_size, what)
        heads = [row.numpy().tobytes() for row in firsts]
        sizes = [int.from_bytes(head[:_HEADER_BYTES], "little") for head in heads]
        parts = [
            head[_HEADER_BYTES : _HEADER_BYTES + size]
            for head, size in zip(heads, sizes, strict=True)
        ]
        longest = max(sizes) - _INLINE_BYTES
        if longest <= 0:
            return parts
        rest = torch.zeros(longest, dtype=torch.uint8)
        if len(payload) > _INLINE_BYTES:
            rest[: len(payload) - _INLINE_BYTES] = _bytes_tensor(payload[_INLINE_BYTES:])
        rests = self._all_gather(rest, world_size, what)
        return [
            part + row[: max(0, size - _INLINE_BYTES)].numpy().tobytes()
            for part, row, size in zip(parts, rests, sizes, strict=True)
        ]

    def broadcast_bytes(self, payload: bytes | None, src: int, what: str) -> bytes:
        """Send the byte string of rank `src` to every rank."""
        size = torch.zeros(1, dtype=torch.int64)
        if payload is not None:
            size[0] = len(payload)
        self.run(what, lambda: distributed.broadcast(size, src, group=self.group, async_op=True))
        data = torch.zeros(int(size), dtype=torch.uint8)
        if payload:
            data.copy_(_bytes_tensor(payload))
        self.run(what, lambda: distributed.broadcast(data, src, group=self.group, async_op=True))
        return data.numpy().tobytes() if payload is None else payload

    def _all_gather(self, row: torch.Tensor, world_size: int, what: str) -> list[torch.Tensor]:
        rows = [torch.empty_like(row) for _ in range(world_size)]
        self.run(what, lambda: distributed.all_gather(rows, row, group=self.group, async_op=True))
        return rows

    def _explain(self, what: str, number: int) -> str:
        rank = get_rank()
        search = not somebody_else_searches
        missing = self._missing_ranks(f"brain_dist/lost/{number}", rank) if search else []
        who = f"rank(s) {', '.join(map(str, missing))} did not" if missing else "not all did"
        return (
            f"every rank has to reach {what} within {self.timeout_s:g} s, got on rank {rank}: "
            f"{who}; read the log of the missing rank(s) first, and where they were only slow "
            f"give more time with ddp_init_group(control_timeout_s=...)"
        )

    def _missing_ranks(self, key: str, rank: int) -> list[int]:
        # Each rank in trouble leaves a mark; who leaves none is dead, stuck or elsewhere.
        missing = set(range(get_world_size())) - {rank}
        with contextlib.suppress(RuntimeError, ValueError):
            store = compat.default_store()
            store.set(f"{key}/{rank}", "waiting")
            deadline = time.monotonic() + _REPORT_S
            while missing and time.monotonic() < deadline:
                missing = {other for other in missing if not store.check([f"{key}/{other}"])}
                time.sleep(0.05)
        return sorted(missing)


def must_not_wait() -> bool:
    """Say whether a collective here is the identity: no group, or not every rank runs this."""
    return _alone.get() or not is_distributed_initialized()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Make every collective inside the identity, as if there were only this process."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def control() -> Control:
    """Return the control group, made at the first call; all ranks make that call together."""
    key = compat.default_group()
    found = _controls.get(key)
    if found is None:
        found = _controls[key] = Control(DEFAULT_TIMEOUT_S)
    return found


def set_control_timeout(timeout_s: float) -> None:
    """Set how long a rank waits for the others in control traffic.

    Every rank has to call it, with the same value.  It changes nothing in one process.

    Parameters
    ----------
    timeout_s : float
        Seconds, above zero.

    Raises
    ------
    ValueError
        If the time is not above zero.
    """
    if not timeout_s > 0:
        raise ValueError(f"a timeout is above zero seconds, got {timeout_s!r}; try 1800.0")
    if not must_not_wait():
        _controls[compat.default_group()] = Control(timeout_s)


# One entry for a living default group, gone with it: torch's own state, looked up from here.
_controls: WeakKeyDictionary[Any, Control] = WeakKeyDictionary()


def _bytes_tensor(payload: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8)


def to_bytes(value: object) -> bytes:
    """Pickle a message for another rank of this run."""
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def from_bytes(payload: bytes) -> Any:
    """Read a message that another rank of this run has written."""
    return pickle.loads(payload)  # noqa: S301 - from a process of this very run
