"""Collectives that return their argument in one process."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from brain_dist import compat
from brain_dist.calls.agreement import Call
from brain_dist.control_group import (
    collectives_are_local,
    control_group,
    from_bytes,
    to_bytes,
)
from brain_dist.errors import ErrorReport, RemoteError, report_error, with_rank_numbers
from brain_dist.process_exit import register_exit_handler
from brain_dist.world import get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


def ddp_barrier() -> None:
    """Wait until every rank has called it.

    Raises
    ------
    OutOfStepError
        If other ranks call something else instead.
    RanksLostError
        If a rank does not call it within the timeout.
    """
    if not collectives_are_local():
        control_group().agree(Call.BARRIER)


def ddp_broadcast(communication_object: T, src: int = 0) -> T:
    """Send an object of one rank to all ranks.

    Parameters
    ----------
    communication_object : object
        What rank `src` sends; it has to be picklable.  Ignored on the other ranks.
    src : int
        The rank that sends.

    Returns
    -------
    object
        The object of rank `src`; on that rank the same object, not a copy.

    Raises
    ------
    Exception
        On every rank, if the object cannot be pickled.
    RanksLostError
        If a rank does not call it within the timeout.
    """
    if collectives_are_local():
        return communication_object
    received: T = _broadcast(src, communication_object, None)
    return received


def ddp_all_reduce(
    communication_object: torch.Tensor, reduce_op: distributed.ReduceOp.RedOpType
) -> torch.Tensor:
    """Reduce a tensor over the ranks, in place.

    Parameters
    ----------
    communication_object : torch.Tensor
        Of the same shape and dtype on every rank.
    reduce_op : torch.distributed.ReduceOp
        SUM, AVG, MAX and so on; AVG works on gloo too.

    Returns
    -------
    torch.Tensor
        The tensor that was passed.
    """
    if collectives_are_local():
        return communication_object
    register_exit_handler(compat.default_group())
    gloo = distributed.get_backend() == "gloo"
    on_cpu = communication_object.device.type == "cpu"
    group = control_group().group if on_cpu and not gloo else None
    average = reduce_op == distributed.ReduceOp.AVG and (gloo or on_cpu)
    if average:
        reduce_op = distributed.ReduceOp.SUM
    distributed.all_reduce(communication_object, op=reduce_op, group=group)
    if average:
        communication_object /= get_world_size()
    return communication_object


def gather_objects(obj: T, dst: int | None = None, error: BaseException | None = None) -> list[T]:
    """Return the objects of all ranks, on every rank or on one of them.

    Parameters
    ----------
    obj : object
        Has to be picklable; move tensors to the CPU first.
    dst : int, optional
        The only rank that gets the objects, for large ones or many ranks.
    error : BaseException, optional
        What this rank raised instead of making its object. It is raised on every rank, as by
        `raise_on_all_ranks`, without a message of its own.

    Returns
    -------
    list
        In rank order; ``[obj]`` in one process. Empty on other ranks than `dst`.

    Raises
    ------
    Exception
        On every rank, if any rank has an error, or an object that cannot be pickled.
    RanksLostError
        If a rank does not call it within the timeout.
    """
    if collectives_are_local():
        if error is not None:
            raise error
        return [obj]
    message, error = _encode(obj, error)
    group = control_group()
    if dst is not None:
        return _gather_to(dst, obj, message, error)
    group.agree(Call.GATHER)
    messages = group.all_gather_bytes(message, Call.GATHER.value)
    reports = [from_bytes(part[1:]) if part[:1] == b"e" else None for part in messages]
    _raise_reported(reports, error)
    rank = get_rank()
    return [obj if i == rank else from_bytes(part[1:]) for i, part in enumerate(messages)]


def raise_on_all_ranks(error: BaseException | None) -> None:
    """Raise on every rank if any rank has an error; every rank has to call it.

    Use it where code that can raise stands between two collectives::

        error = None
        try:
            write_shard()
        except OSError as caught:
            error = caught
        raise_on_all_ranks(error)

    Parameters
    ----------
    error : BaseException or None
        The error of this rank.

    Raises
    ------
    BaseException
        On every rank an exception of the type that the lowest failing rank has, its text
        followed by the numbers of all failing ranks (unless the exception's arguments are
        not one string); its cause holds the tracebacks.  In one process `error` itself.
    RanksLostError
        If a rank does not call it within the timeout.
    """
    if collectives_are_local():
        if error is not None:
            raise error
        return
    if control_group().agree(Call.RAISE, payload=int(error is not None)):
        exchange_errors(error, Call.RAISE.value)


def exchange_errors(error: BaseException | None, name: str) -> None:
    """Raise the error of the lowest failing rank; the ranks have agreed that one has failed.

    Parameters
    ----------
    error : BaseException or None
        The error of this rank.
    name : str
        Of the call, for messages.
    """
    message = b"" if error is None else to_bytes(report_error(error))
    messages = control_group().all_gather_bytes(message, name)
    _raise_reported([from_bytes(part) if part else None for part in messages], error)


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Return the sums of the ranks' values, each rounded once and the same on every rank.

    Parameters
    ----------
    values : sequence of float
        Of the same length on every rank.

    Returns
    -------
    list of float
        The sums; ``list(values)`` in one process.

    Raises
    ------
    ValueError
        On every rank, if the lengths differ.
    """
    if collectives_are_local():
        return [float(value) for value in values]
    rows = gather_objects([float(value) for value in values])
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"every rank passes equally many values, got {lengths!r} in rank order; "
            f"pass a zero for each value that a rank does not have"
        )
    return [math.fsum(column) for column in zip(*rows, strict=True)]


def broadcast_outcome(src: int, value: Any, error: BaseException | None) -> Any:
    """Return on every rank what a function returned on rank `src`, or raise its exception."""
    if collectives_are_local():
        if error is not None:
            raise error
        return value
    return _broadcast(src, value, error)


def _broadcast(src: int, value: Any, error: BaseException | None) -> Any:
    if get_rank() != src:
        return _decode(control_group().broadcast_bytes(None, src), src)
    message, error = _encode(value, error)
    control_group().broadcast_bytes(message, src)
    if error is not None:
        raise error
    return value


def _gather_to(dst: int, obj: T, message: bytes, error: BaseException | None) -> list[T]:
    group = control_group()
    # A bit for an error, and one for the size: the highest of all ranks is that of the longest.
    reduced = group.agree(
        Call.GATHER, payload=int(error is not None) | 2 << len(message).bit_length()
    )
    if reduced & 1:
        exchange_errors(error, Call.GATHER.value)
    longest = 1 << reduced.bit_length() - 2
    messages = group.gather_bytes(message, dst, longest, Call.GATHER.value)
    return [obj if i == dst else from_bytes(part[1:]) for i, part in enumerate(messages)]


def _encode(value: Any, error: BaseException | None) -> tuple[bytes, BaseException | None]:
    """Return a message, and the error that it carries: the other ranks wait, so they get it."""
    if error is None:
        try:
            return b"v" + to_bytes(value), None
        except Exception as caught:  # noqa: BLE001 - whatever a class of the user's raises
            error = caught
    return b"e" + to_bytes(report_error(error)), error


def _decode(message: bytes, src: int) -> Any:
    content = from_bytes(message[1:])
    if message[:1] == b"e":
        raise content.rebuild() from RemoteError(f"raised on rank {src}:\n{content.trace}")
    return content


def _raise_reported(
    reports: Sequence[ErrorReport | None], local_error: BaseException | None
) -> None:
    failed = {rank: report for rank, report in enumerate(reports) if report is not None}
    if not failed:
        return
    ranks = list(failed)
    is_local = ranks[0] == get_rank() and local_error is not None
    error = local_error if is_local else failed[ranks[0]].rebuild()
    assert error is not None
    named = with_rank_numbers(error, ranks, len(reports))
    traces = "\n".join(f"on rank {rank}:\n{report.trace}" for rank, report in failed.items())
    raise named from RemoteError(f"raised on rank(s) {ranks}\n{traces}")
