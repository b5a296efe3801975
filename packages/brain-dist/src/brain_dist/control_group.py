"""Control traffic: small messages between ranks over a gloo group of its own.

The control group is separate from the group that reduces gradients: it works with any backend of
that group, never waits for a device, and has its own timeout.
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

DEFAULT_TIMEOUT_S = 7200.0  # run_on_main may prepare a data set for an hour while others wait

# A message up to this size needs one collective instead of two.
_INLINE_BYTES = 504
_HEADER_BYTES = 8
# How long the ranks that lost another rank wait for each other's report.
_REPORT_S = 3.0

# False inside `propagate_failures`, which finds lost ranks whatever collective failed.
search_lost_ranks = True

# True inside a function that only some ranks run: a collective there would wait for ever.
_disabled: ContextVar[bool] = ContextVar("brain_dist_collectives_disabled", default=False)


class ControlGroup:
    """The control group that belongs to one default process group.

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

    def run(self, name: str, operation: Callable[[], Any]) -> None:
        """Run one collective; if it fails, raise an error that names the missing ranks."""
        self.operations += 1
        number = self.operations
        try:
            work = operation()
            if work is not None:
                work.wait()
        except RuntimeError as error:
            raise RanksLostError(self._lost_message(name, number)) from error

    def all_gather_bytes(self, payload: bytes, name: str) -> list[bytes]:
        """Return the byte strings of all ranks, in rank order."""
        world_size = get_world_size()
        # first: (header + inline,) uint8; firsts: (world_size, header + inline) uint8
        first = torch.zeros(_HEADER_BYTES + _INLINE_BYTES, dtype=torch.uint8)
        first[:_HEADER_BYTES] = _bytes_tensor(len(payload).to_bytes(_HEADER_BYTES, "little"))
        inline = payload[:_INLINE_BYTES]
        if inline:
            first[_HEADER_BYTES : _HEADER_BYTES + len(inline)] = _bytes_tensor(inline)
        firsts = self._all_gather(first, world_size, name)
        heads = [row.numpy().tobytes() for row in firsts]
        sizes = [int.from_bytes(head[:_HEADER_BYTES], "little") for head in heads]
        parts = [
            head[_HEADER_BYTES : _HEADER_BYTES + size]
            for head, size in zip(heads, sizes, strict=True)
        ]
        longest_rest = max(sizes) - _INLINE_BYTES
        if longest_rest <= 0:
            return parts
        rest = torch.zeros(longest_rest, dtype=torch.uint8)
        if len(payload) > _INLINE_BYTES:
            rest[: len(payload) - _INLINE_BYTES] = _bytes_tensor(payload[_INLINE_BYTES:])
        rests = self._all_gather(rest, world_size, name)
        return [
            part + row[: max(0, size - _INLINE_BYTES)].numpy().tobytes()
            for part, row, size in zip(parts, rests, sizes, strict=True)
        ]

    def broadcast_bytes(self, payload: bytes | None, src: int, name: str) -> bytes:
        """Return the byte string of rank `src`; the other ranks pass None."""
        size = torch.zeros(1, dtype=torch.int64)
        if payload is not None:
            size[0] = len(payload)
        self.run(name, lambda: distributed.broadcast(size, src, group=self.group, async_op=True))
        data = torch.zeros(int(size), dtype=torch.uint8)
        if payload:
            data.copy_(_bytes_tensor(payload))
        self.run(name, lambda: distributed.broadcast(data, src, group=self.group, async_op=True))
        return data.numpy().tobytes() if payload is None else payload

    def _all_gather(self, row: torch.Tensor, world_size: int, name: str) -> list[torch.Tensor]:
        rows = [torch.empty_like(row) for _ in range(world_size)]
        self.run(name, lambda: distributed.all_gather(rows, row, group=self.group, async_op=True))
        return rows

    def _lost_message(self, name: str, number: int) -> str:
        rank = get_rank()
        missing = self._missing_ranks(number, rank) if search_lost_ranks else []
        who = f"rank(s) {', '.join(map(str, missing))} did not" if missing else "not all did"
        return (
            f"every rank has to reach {name} within {self.timeout_s:g} s, got on rank {rank}: "
            f"{who}; read the log of the missing rank(s) first, and where they were only slow "
            f"give more time with ddp_init_group(control_timeout_s=...)"
        )

    def _missing_ranks(self, number: int, rank: int) -> list[int]:
        """Return the ranks that do not report operation `number` as failed: dead or elsewhere."""
        key = f"brain_dist/lost/{number}"
        missing = set(range(get_world_size())) - {rank}
        with contextlib.suppress(RuntimeError, ValueError):
            store = compat.default_store()
            store.set(f"{key}/{rank}", "waiting")
            deadline = time.monotonic() + _REPORT_S
            while missing and time.monotonic() < deadline:
                missing = {other for other in missing if not store.check([f"{key}/{other}"])}
                time.sleep(0.05)
        return sorted(missing)


def collectives_are_local() -> bool:
    """Return whether a collective returns its argument here, without waiting for other ranks.

    It does without a process group, and inside a function that only some ranks run.
    """
    return _disabled.get() or not is_distributed_initialized()


@contextlib.contextmanager
def local_collectives() -> Iterator[None]:
    """Make every collective inside return its argument, as in a single process."""
    token = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(token)


def control_group() -> ControlGroup:
    """Return the control group; all ranks make the first call at the same place, which makes it."""
    key = compat.default_group()
    group = _control_groups.get(key)
    if group is None:
        group = _control_groups[key] = ControlGroup(DEFAULT_TIMEOUT_S)
    return group


def set_control_timeout(timeout_s: float) -> None:
    """Set how long a rank waits for the others in control traffic.

    Every rank has to call it, with the same value.  It does nothing in one process.

    Parameters
    ----------
    timeout_s : float
        Seconds, above zero.

    Raises
    ------
    ValueError
        If the timeout is not above zero.
    """
    if not timeout_s > 0:
        raise ValueError(f"a timeout is above zero seconds, got {timeout_s!r}; try 1800.0")
    if not collectives_are_local():
        _control_groups[compat.default_group()] = ControlGroup(timeout_s)


# By default group; an entry is gone with its group.
_control_groups: WeakKeyDictionary[Any, ControlGroup] = WeakKeyDictionary()


def to_bytes(value: object) -> bytes:
    """Pickle a message for another rank of this run."""
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def from_bytes(payload: bytes) -> Any:
    """Unpickle a message that another rank of this run sent."""
    return pickle.loads(payload)  # noqa: S301 - from a process of this very run


def _bytes_tensor(payload: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8)
