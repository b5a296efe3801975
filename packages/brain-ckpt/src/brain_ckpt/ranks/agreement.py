"""Steps of a save or a load on several ranks: an error is a value until all ranks know it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from brain_dist import gather_objects, main_process_only, raise_together

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def together(action: Callable[[], T]) -> list[T]:
    """Run something on every rank; any error is raised on all.

    Returns
    -------
    list
        What each rank returned, in rank order.
    """
    results: list[T] = []
    agree(lambda: results.append(action()))
    return gather_objects(results[0])


def agree(action: Callable[[], object]) -> None:
    """Run something on every rank; any error, and that a rank is lost, is raised on all.

    Every rank hears from every other one, which is more than `decide` can say: what one rank
    sends to all may reach some of them only.
    """
    error: BaseException | None = None
    try:
        action()
    except BaseException as caught:  # noqa: BLE001 - the other ranks wait, and have to hear of it
        error = caught
    raise_together(error)


def decide(action: Callable[[], T]) -> T:
    """Run something on the first rank only; every rank gets what it returned or raised."""
    return main_process_only(action)()
