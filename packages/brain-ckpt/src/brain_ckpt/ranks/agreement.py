"""Steps that all ranks take together; an error on one rank is raised on all of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar, cast

from brain_dist import (
    collective_call,
    ddp_broadcast,
    gather_objects,
    main_process_only,
    raise_on_all_ranks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


def gather_results(action: Callable[[], T], dst: int | None = None) -> list[T]:
    """Call a function on every rank and return the results of all ranks, in rank order.

    An error on any rank is raised on all of them. With ``dst``, other ranks get an empty list.
    """
    results: list[T] = []
    error = _error_of(lambda: results.append(action()))
    return gather_objects(results[0] if error is None else cast("T", None), dst, error)


@contextlib.contextmanager
def collective_result(name: str, action: Callable[[], T]) -> Iterator[T]:
    """Call a function on every rank, for a block that every rank enters with rank 0's result.

    The agreement whether an action failed also checks that no rank is in another call: it takes as
    many messages as `gather_results`.

    Parameters
    ----------
    name : str
        Of the method, as the user calls it.
    action : callable
        Checks the arguments of this rank.

    Raises
    ------
    OutOfStepError
        On every rank, if ranks are in different calls.
    """
    results: list[T] = []
    error = _error_of(lambda: results.append(action()))
    with collective_call(name, error):
        yield ddp_broadcast(results[0])


def run_on_all_ranks(action: Callable[[], object]) -> None:
    """Call a function on every rank; an error, or the loss of a rank, is raised on all of them.

    Every rank hears from every other rank.  A broadcast, as in `run_on_first_rank`, can reach only
    some of them.
    """
    raise_on_all_ranks(_error_of(action))


def run_on_first_rank(action: Callable[[], T]) -> T:
    """Call a function on the first rank; every rank gets its result or error."""
    return main_process_only(action)()


def _error_of(action: Callable[[], object]) -> BaseException | None:
    """Call a function and return what it raised, for the other ranks, which wait."""
    try:
        action()
    except BaseException as error:  # noqa: BLE001 - raised on all ranks
        return error
    return None
