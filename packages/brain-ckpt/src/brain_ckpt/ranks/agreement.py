"""Steps that all ranks take together; an error on one rank is raised on all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from brain_dist import gather_objects, main_process_only, raise_on_all_ranks

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def gather_results(action: Callable[[], T]) -> list[T]:
    """Call a function on every rank and return the results of all ranks, in rank order.

    An error on any rank is raised on all of them.
    """
    results: list[T] = []
    run_on_all_ranks(lambda: results.append(action()))
    return gather_objects(results[0])


def run_on_all_ranks(action: Callable[[], object]) -> None:
    """Call a function on every rank; an error, or the loss of a rank, is raised on all of them.

    Every rank hears from every other rank.  A broadcast, as in `run_on_first_rank`, can reach only
    some of them.
    """
    error: BaseException | None = None
    try:
        action()
    except BaseException as caught:  # noqa: BLE001 - the other ranks wait for it
        error = caught
    raise_on_all_ranks(error)


def run_on_first_rank(action: Callable[[], T]) -> T:
    """Call a function on the first rank; every rank gets its result or error."""
    return main_process_only(action)()
