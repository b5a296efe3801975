"""Calls that every rank has to make."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from brain_dist.calls.agreement import Call, call_payload, has_flag
from brain_dist.calls.call_site import open_call
from brain_dist.collectives import exchange_errors
from brain_dist.control_group import collectives_are_local, control_group

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def collective_call(name: str, error: BaseException | None = None) -> Iterator[None]:
    """Check that every rank enters this block, which contains what needs all ranks.

    ::

        def evaluate(self, data):
            with collective_call("evaluate"):
                ...

    Ranks that enter blocks with different names, or run another collective of this package
    instead, raise an error that names the call of each rank and its place in the user's code.
    A rank that is late is waited for, up to the timeout of control traffic.  Blocks nest.  It
    takes one reduction of eight bytes, and none in one process.

    Parameters
    ----------
    name : str
        Of the function, as the user calls it.
    error : BaseException, optional
        What this rank raised before the block, for instance while it checked its arguments.  It is
        raised on every rank as by `raise_on_all_ranks`, without a further message if none has one.

    Raises
    ------
    BaseException
        On every rank, if any rank passes an error.
    OutOfStepError
        On every rank that waits in a collective of this package, if they differ.
    RanksLostError
        If a rank does not enter within the timeout, or its process has ended.
    """
    with open_call(name):
        if not collectives_are_local():
            payload = call_payload(name, flag=error is not None)
            if has_flag(control_group().agree(Call.COLLECTIVE_CALL, name, payload)):
                exchange_errors(error, name)
        elif error is not None:
            raise error
        yield
