"""Control traffic: small messages between ranks over a gloo group of its own.

The control group is separate from the group that reduces gradients: it works with any backend of
that group, never waits for a device, and has its own timeout.
"""

from __future__ import annotations

import contextlib
import pickle
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import distributed

from brain_dist import compat
from brain_dist.calls.agreement import Call, make_word, other_calls, payload_of
from brain_dist.calls.bounded import call_within
from brain_dist.calls.operation import Operation
from brain_dist.errors import OutOfStepError, is_loss
from brain_dist.process_exit import abandon, register_exit_handler
from brain_dist.world import get_rank, get_world_size, is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.distributed import ProcessGroup

DEFAULT_TIMEOUT_S = 7200.0  # run_on_main may prepare a data set for an hour while others wait

# A message up to this size needs one collective instead of two.
_INLINE_BYTES = 504
_HEADER_BYTES = 8
# How much later than its timeout making a group may end.
_MARGIN_S = 2.0

# True inside a function that only some ranks run: a collective there would wait for ever.
_disabled: ContextVar[bool] = ContextVar("brain_dist_collectives_disabled", default=False)


class Agreement(NamedTuple):
    """A reduction under way, which shows whether all ranks make the same call."""

    call: Call
    operation: Operation
    word: torch.Tensor
    work: distributed.Work


class ControlGroup:
    """The control group that belongs to one default process group.

    Every operation begins with an agreement: the ranks reduce one word by OR, in which each sets
    the bit of its call.  Ranks that are out of step therefore take part in the same collective,
    and see each other's bits.

    Parameters
    ----------
    timeout_s : float
        How long a rank waits for the others in one operation.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._operations = 0
        # Every rank counts its groups alike, so the keys of an operation are used once.
        group_number = compat.default_store().add(f"brain_dist/control_groups/{get_rank()}", 1)
        self._prefix = f"brain_dist/operations/{group_number}"
        self.group = self._make_group()
        register_exit_handler(self.group)

    def agree(self, call: Call, name: str | None = None, payload: int = 0) -> int:
        """Start and finish an agreement."""
        return self.finish_agreement(self.start_agreement(call, name, payload))

    def start_agreement(self, call: Call, name: str | None = None, payload: int = 0) -> Agreement:
        """Start the agreement of an operation; every rank has to finish it.

        Parameters
        ----------
        call : Call
            What this rank does.
        name : str, optional
            For messages; that of `call` by default.
        payload : int
            Bits 0 to 49, which are reduced by OR.
        """
        operation = self._next_operation(name or call.value)
        word = torch.tensor([make_word(call, payload)])
        reduce_or = distributed.ReduceOp.BOR
        try:
            work = distributed.all_reduce(word, op=reduce_or, group=self.group, async_op=True)
        except RuntimeError as error:
            raise operation.error_of_failure() from error
        return Agreement(call, operation, word, work)

    def finish_agreement(self, agreement: Agreement) -> int:
        """Wait for an agreement and return the payloads of all ranks, reduced by OR.

        Raises
        ------
        OutOfStepError
            If ranks make different calls.
        RanksLostError
            If a rank does not take part within the timeout.
        """
        call, operation, word, work = agreement
        try:
            operation.wait_for_agreement(work)
        except OutOfStepError:
            self.abandon(work)
            raise
        except RuntimeError as error:
            raise operation.error_of_failure() from error
        except BaseException:  # of a signal handler
            self.abandon(work)
            raise
        reduced = int(word)
        others = other_calls(reduced, call)
        if others:
            raise operation.error_of_disagreement(others)
        return payload_of(reduced)

    def run(self, name: str, start: Callable[[], distributed.Work]) -> None:
        """Run one collective, after an agreement; if it fails, name the missing ranks."""
        operation = self._next_operation(name)
        try:
            work = start()
        except RuntimeError as error:
            raise operation.error_of_failure() from error
        try:
            operation.wait(work)
        except RuntimeError as error:
            raise operation.error_of_failure() from error
        except BaseException:  # of a signal handler
            self.abandon(work)
            raise

    def abandon(self, work: distributed.Work) -> None:
        """Stop waiting for an operation, which other ranks may never join."""
        if not work.is_completed():
            abandon(self.group, work)

    def all_gather_bytes(self, payload: bytes, name: str) -> list[bytes]:
        """Return the byte strings of all ranks, in rank order, after an agreement."""
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

    def gather_bytes(self, payload: bytes, dst: int, longest: int, name: str) -> list[bytes]:
        """Return the byte strings of all ranks on rank `dst`, after an agreement; [] elsewhere.

        Parameters
        ----------
        payload : bytes
            Of this rank.
        dst : int
            The rank that gets them.
        longest : int
            As many bytes as any rank passes, or more.
        name : str
            Of the call, for messages.
        """
        # row: (header + longest,) uint8
        row = torch.zeros(_HEADER_BYTES + longest, dtype=torch.uint8)
        content = len(payload).to_bytes(_HEADER_BYTES, "little") + payload
        row[: len(content)] = _bytes_tensor(content)
        is_here = get_rank() == dst
        rows = [torch.empty_like(row) for _ in range(get_world_size())] if is_here else None
        self.run(name, lambda: distributed.gather(row, rows, dst, group=self.group, async_op=True))
        parts = []
        for each in rows or ():
            size = int.from_bytes(each[:_HEADER_BYTES].numpy().tobytes(), "little")
            parts.append(each[_HEADER_BYTES : _HEADER_BYTES + size].numpy().tobytes())
        return parts

    def broadcast_bytes(self, payload: bytes | None, src: int) -> bytes:
        """Return the byte string of rank `src`; the other ranks pass None."""
        call = Call.BROADCAST
        size = self.agree(call, payload=0 if payload is None else len(payload))
        data = torch.zeros(size, dtype=torch.uint8)
        if payload:
            data.copy_(_bytes_tensor(payload))
        self.run(
            call.value, lambda: distributed.broadcast(data, src, group=self.group, async_op=True)
        )
        return data.numpy().tobytes() if payload is None else payload

    def _all_gather(self, row: torch.Tensor, world_size: int, name: str) -> list[torch.Tensor]:
        rows = [torch.empty_like(row) for _ in range(world_size)]
        self.run(name, lambda: distributed.all_gather(rows, row, group=self.group, async_op=True))
        return rows

    def _make_group(self) -> ProcessGroup:
        operation = self._next_operation("the first collective of brain_dist")
        timeout = timedelta(seconds=self.timeout_s)
        try:
            # gloo itself waits several times one after another.
            return call_within(self.timeout_s + _MARGIN_S, lambda: compat.new_gloo_group(timeout))
        except (RuntimeError, TimeoutError) as error:
            if not isinstance(error, TimeoutError) and not is_loss(error):
                raise
            raise operation.error_of_failure() from error

    def _next_operation(self, name: str) -> Operation:
        self._operations += 1
        return Operation(
            name, self._operations, f"{self._prefix}/{self._operations}", self.timeout_s
        )


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
