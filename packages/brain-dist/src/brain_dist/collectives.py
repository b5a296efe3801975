"""Collectives that are the identity in one process."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from brain_dist.control_group import control, from_bytes, must_not_wait, to_bytes
from brain_dist.errors import ErrorReport, RemoteError, naming_ranks, report
from brain_dist.process_exit import wait_for_workers_at_exit
from brain_dist.world import get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


def ddp_barrier() -> None:
    """Wait until every rank is here."""
    if not must_not_wait():
        control().all_gather_bytes(b"", "ddp_barrier")


def ddp_broadcast(communication_object: T, src: int = 0) -> T:
    """Send an object of one rank to all.

    Parameters
    ----------
    communication_object : object
        What rank `src` sends; it has to be picklable.  Ignored on the other ranks.
    src : int
        The rank that sends.

    Returns
    -------
    object
        The object of rank `src`; on that rank the very same object.

    Raises
    ------
    Exception
        On every rank, if the object cannot be pickled.
    RanksLostError
        If a rank does not come.
    """
    if must_not_wait():
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
        SUM, AVG, MAX …; AVG works on gloo too.

    Returns
    -------
    torch.Tensor
        The tensor that was passed.
    """
    if must_not_wait():
        return communication_object
    wait_for_workers_at_exit()
    gloo = distributed.get_backend() == "gloo"
    on_cpu = communication_object.device.type == "cpu"
    group = control().group if on_cpu and not gloo else None
    average = reduce_op == distributed.ReduceOp.AVG and (gloo or on_cpu)
    if average:
        reduce_op = distributed.ReduceOp.SUM
    distributed.all_reduce(communication_object, op=reduce_op, group=group)
    if average:
        communication_object /= get_world_size()
    return communication_object


def gather_objects(obj: T) -> list[T]:
    """Collect one object of every rank, on every rank.

    Parameters
    ----------
    obj : object
        Has to be picklable; move tensors to the CPU first.

    Returns
    -------
    list
        In rank order; ``[obj]`` in one process.

    Raises
    ------
    Exception
        On every rank, if the object of any rank cannot be pickled.
    RanksLostError
        If a rank does not come.
    """
    if must_not_wait():
        return [obj]
    message, error = _pack(obj, None)
    messages = control().all_gather_bytes(message, "gather_objects")
    errors = [from_bytes(part[1:]) if part[:1] == b"e" else None for part in messages]
    _raise_reported(errors, error)
    rank = get_rank()
    return [obj if i == rank else from_bytes(part[1:]) for i, part in enumerate(messages)]


def raise_together(error: BaseException | None) -> None:
    """Raise on every rank if any rank has an error; every rank has to call it.

    So that nothing that can raise stands bare between two collectives::

        error = None
        try:
            write_my_part()
        except OSError as caught:
            error = caught
        raise_together(error)

    Parameters
    ----------
    error : BaseException or None
        What went wrong on this rank.

    Raises
    ------
    BaseException
        On every rank an exception of the type that the lowest failing rank has, its text
        followed by the numbers of all failing ranks (unless the exception's arguments are
        not one string); its cause holds the tracebacks.  In one process `error` itself.
    RanksLostError
        If a rank does not come.
    """
    if must_not_wait():
        if error is not None:
            raise error
        return
    mine = b"" if error is None else to_bytes(report(error))
    parts = control().all_gather_bytes(mine, "raise_together")
    _raise_reported([from_bytes(part) if part else None for part in parts], error)


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Add the ranks' numbers up, each sum correctly rounded and the same on every rank.

    Parameters
    ----------
    values : sequence of float
        Equally many on every rank.

    Returns
    -------
    list of float
        The sums; ``list(values)`` in one process.

    Raises
    ------
    ValueError
        On every rank, if the ranks bring unequal numbers of values.
    """
    if must_not_wait():
        return [float(value) for value in values]
    rows = gather_objects([float(value) for value in values])
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"every rank brings equally many values, got {lengths!r} in rank order; "
            f"bring a zero for what a rank has not"
        )
    return [math.fsum(column) for column in zip(*rows, strict=True)]


def broadcast_outcome(src: int, value: Any, error: BaseException | None) -> Any:
    """Send what a function returned or raised on rank `src` to every rank."""
    if must_not_wait():
        if error is not None:
            raise error
        return value
    return _broadcast(src, value, error)


def _broadcast(src: int, value: Any, error: BaseException | None) -> Any:
    if get_rank() != src:
        return _unpack(control().broadcast_bytes(None, src, "ddp_broadcast"), src)
    payload, error = _pack(value, error)
    control().broadcast_bytes(payload, src, "ddp_broadcast")
    if error is not None:
        raise error
    return value


def _pack(value: Any, error: BaseException | None) -> tuple[bytes, BaseException | None]:
    # (the message, the error that it carries): the others wait, and have to hear of any error.
    if error is None:
        try:
            return b"v" + to_bytes(value), None
        except Exception as caught:  # noqa: BLE001 - whatever a class of the user's raises
            error = caught
    return b"e" + to_bytes(report(error)), error


def _unpack(message: bytes, src: int) -> Any:
    content = from_bytes(message[1:])
    if message[:1] == b"e":
        raise content.rebuild() from RemoteError(f"raised on rank {src}:\n{content.trace}")
    return content


def _raise_reported(reports: Sequence[ErrorReport | None], mine: BaseException | None) -> None:
    failed = {rank: found for rank, found in enumerate(reports) if found is not None}
    if not failed:
        return
    ranks = list(failed)
    first = mine if ranks[0] == get_rank() and mine is not None else failed[ranks[0]].rebuild()
    named = naming_ranks(first, ranks, len(reports))
    traces = "\n".join(f"on rank {rank}:\n{found.trace}" for rank, found in failed.items())
    raise named from RemoteError(f"raised on rank(s) {ranks}\n{traces}")
