"""Steps of a save or a load, on several ranks: an error is a value until all ranks know it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from brain_dist import gather_objects, main_process_only, raise_together

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
U = TypeVar("U")


def together(action: Callable[[], T]) -> list[T]:
    """Run something on every rank; any error is raised on all.

    Returns
    -------
    list
        What each rank returned, in rank order.
    """
    error: BaseException | None = None
    results: list[T] = []
    try:
        results.append(action())
    except BaseException as caught:  # noqa: BLE001 - the other ranks wait, and have to hear of it
        error = caught
    raise_together(error)
    return gather_objects(results[0])


def decide(action: Callable[[], T]) -> T:
    """Run something on the first rank only; every rank gets what it returned or raised."""
    return main_process_only(action)()


def beside(read: Callable[[], T], check: Callable[[], U], *, worth_it: bool) -> tuple[T, U]:
    """Read something while it is checked; what the check finds comes before what reading raises.

    Parameters
    ----------
    read : callable
        Touches nothing that lasts, since the check may refuse what it reads.
    check : callable
        Raises if it may not be used.
    worth_it : bool
        False checks first, then reads.
    """
    if not worth_it:
        checked = check()
        return read(), checked
    with ThreadPoolExecutor(1, "brain-ckpt-check") as pool:
        checking = pool.submit(check)
        error: Exception | None = None
        results: list[T] = []
        try:
            results.append(read())
        except Exception as caught:  # noqa: BLE001 - raised below, unless the check says more
            error = caught
        checked = checking.result()
    if error is not None:
        raise error
    return results[0], checked
