"""Functions that one process of all, or of a machine, runs for the others."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from brain_dist.collectives import broadcast_outcome, raise_together
from brain_dist.control_group import alone
from brain_dist.world import (
    get_rank,
    if_main_process,
    is_distributed_initialized,
    is_local_rank_zero,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def main_process_only(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that only rank 0 runs it and every rank gets its result.

    Every rank has to call it, once the group exists: before that, the others go on with None, and
    a warning.  Inside, every collective of this package is the identity.  What it raises on rank
    0, KeyboardInterrupt too, every rank raises at once: the same type with the same arguments, and
    on the others with rank 0's traceback as its cause.

    Parameters
    ----------
    function : callable
        Its result has to be picklable.

    Returns
    -------
    callable
    """

    @functools.wraps(function)
    def on_main(*args: P.args, **kwargs: P.kwargs) -> T:
        result, error = None, None
        main = if_main_process()
        if not main and not is_distributed_initialized():
            logger.warning(
                "Rank %d goes on without %s, which rank 0 runs: they can wait for each other once "
                "there is a process group. Call brain_dist.ddp_init_group(run_opts) before.",
                get_rank(),
                getattr(function, "__name__", function),
            )
        if main:
            try:
                with alone():
                    result = function(*args, **kwargs)
            except BaseException as caught:  # noqa: BLE001 - raised again below, on every rank
                error = caught
        outcome: T = broadcast_outcome(0, result, error)
        return outcome

    return on_main


def once_per_node(function: Callable[P, T]) -> Callable[P, T | None]:
    """Decorate a function so that one process of each machine runs it.

    Every rank has to call it; each waits until all are done.  Inside, every collective of this
    package is the identity.  What it raises anywhere, every rank raises at once.

    Parameters
    ----------
    function : callable

    Returns
    -------
    callable
        Returns the function's result where it ran, else None.
    """

    @functools.wraps(function)
    def on_node(*args: P.args, **kwargs: P.kwargs) -> T | None:
        result, error = None, None
        if is_local_rank_zero():
            try:
                with alone():
                    result = function(*args, **kwargs)
            except BaseException as caught:  # noqa: BLE001 - raised again below, on every rank
                error = caught
        raise_together(error)
        return result

    return on_node


def run_on_main(
    func: Callable[..., T],
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    post_func: Callable[..., Any] | None = None,
    post_args: Sequence[Any] | None = None,
    post_kwargs: Mapping[str, Any] | None = None,
    run_post_on_main: bool = False,
) -> T:
    """Run a function on rank 0 only, then perhaps another on the other ranks.

    Parameters
    ----------
    func : callable
        Run on rank 0; its result has to be picklable.
    args, kwargs : sequence and mapping, optional
        Its arguments.
    post_func : callable, optional
        Run afterwards on the other ranks, to load what `func` has made.
    post_args, post_kwargs : sequence and mapping, optional
        Its arguments.
    run_post_on_main : bool
        Run `post_func` on rank 0 too; then nobody waits after it.

    Returns
    -------
    object
        What `func` returned, on every rank.

    Raises
    ------
    BaseException
        Whatever `func` raised, on every rank; whatever `post_func` raised, on every rank too
        unless it runs on rank 0 as well.
    """
    result = main_process_only(func)(*(args or ()), **(kwargs or {}))
    if post_func is None:
        return result
    if run_post_on_main:
        post_func(*(post_args or ()), **(post_kwargs or {}))
    else:
        _run_and_agree(not if_main_process(), post_func, post_args, post_kwargs)
    return result


def run_once_per_node(
    func: Callable[..., T],
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    post_func: Callable[..., Any] | None = None,
    post_args: Sequence[Any] | None = None,
    post_kwargs: Mapping[str, Any] | None = None,
    run_post_on_all: bool = False,
) -> Any:
    """Run a function in one process of each machine, then perhaps another in its other processes.

    Parameters
    ----------
    func : callable
        Run once on each machine, for example to write a file to its own disk.
    args, kwargs : sequence and mapping, optional
        Its arguments.
    post_func : callable, optional
        Run afterwards in the other processes, for example to read that file.
    post_args, post_kwargs : sequence and mapping, optional
        Its arguments.
    run_post_on_all : bool
        Run `post_func` in every process; then nobody waits after it.

    Returns
    -------
    object
        The result of whichever function ran here last; None where none ran.

    Raises
    ------
    BaseException
        Whatever a function raised on any rank, on every rank, except from a `post_func` that
        runs in every process.
    """
    result: Any = once_per_node(func)(*(args or ()), **(kwargs or {}))
    if post_func is None:
        return result
    if run_post_on_all:
        return post_func(*(post_args or ()), **(post_kwargs or {}))
    here = not is_local_rank_zero()
    post_result = _run_and_agree(here, post_func, post_args, post_kwargs)
    return post_result if here else result


def _run_and_agree(
    here: bool,
    function: Callable[..., Any],
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
) -> Any:
    result, error = None, None
    if here:
        try:
            with alone():
                result = function(*(args or ()), **(kwargs or {}))
        except BaseException as caught:  # noqa: BLE001 - raised again below, on every rank
            error = caught
    raise_together(error)
    return result
