"""Functions that one process of all, or of each machine, runs for the others."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from brain_dist.collectives import broadcast_outcome, raise_on_all_ranks
from brain_dist.control_group import local_collectives
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

    Every rank has to call it, once the group exists: before that, the other ranks continue with
    None, and a warning.  Inside, every collective of this package returns its argument.  What the
    function raises on rank 0, KeyboardInterrupt too, every rank raises at once: the same type with
    the same arguments, and on the others with rank 0's traceback as its cause.

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
        is_main = if_main_process()
        if not is_main and not is_distributed_initialized():
            logger.warning(
                "Rank %d continues without the result of %s, which rank 0 runs: ranks can wait "
                "for each other once there is a process group. Call "
                "brain_dist.ddp_init_group(run_opts) before.",
                get_rank(),
                getattr(function, "__name__", function),
            )
        outcome: T = broadcast_outcome(0, *_run_if(is_main, function, args, kwargs))
        return outcome

    return on_main


def once_per_node(function: Callable[P, T]) -> Callable[P, T | None]:
    """Decorate a function so that one process of each machine runs it.

    Every rank has to call it; each waits until all are done.  Inside, every collective of this
    package returns its argument.  What the function raises anywhere, every rank raises at once.

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
        return _run_on_some_ranks(is_local_rank_zero(), function, args, kwargs)

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
    """Run a function on rank 0 only, then optionally another on the other ranks.

    Parameters
    ----------
    func : callable
        Run on rank 0; its result has to be picklable.
    args, kwargs : sequence and mapping, optional
        Its arguments.
    post_func : callable, optional
        Run afterwards on the other ranks, for example to load what `func` wrote.
    post_args, post_kwargs : sequence and mapping, optional
        Its arguments.
    run_post_on_main : bool
        Run `post_func` on rank 0 too; then no rank waits after it.

    Returns
    -------
    object
        What `func` returned, on every rank.

    Raises
    ------
    BaseException
        What `func` raised, on every rank; what `post_func` raised, on every rank too unless it
        runs on rank 0 as well.
    """
    result = main_process_only(func)(*_arguments(args), **(kwargs or {}))
    if post_func is None:
        return result
    post_args, post_kwargs = _arguments(post_args), post_kwargs or {}
    if run_post_on_main:
        post_func(*post_args, **post_kwargs)
    else:
        _run_on_some_ranks(not if_main_process(), post_func, post_args, post_kwargs)
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
    """Run a function in one process of each machine, then optionally another in the others.

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
        Run `post_func` in every process; then no rank waits after it.

    Returns
    -------
    object
        The result of whichever function ran here last; None where none ran.

    Raises
    ------
    BaseException
        What a function raised on any rank, on every rank, except from a `post_func` that runs in
        every process.
    """
    result: Any = once_per_node(func)(*_arguments(args), **(kwargs or {}))
    if post_func is None:
        return result
    post_args, post_kwargs = _arguments(post_args), post_kwargs or {}
    if run_post_on_all:
        return post_func(*post_args, **post_kwargs)
    runs_post = not is_local_rank_zero()
    post_result = _run_on_some_ranks(runs_post, post_func, post_args, post_kwargs)
    return post_result if runs_post else result


def _arguments(given: Sequence[Any] | None) -> Sequence[Any]:
    return () if given is None else given  # an array has no truth value


def _run_on_some_ranks(
    runs_here: bool, function: Callable[..., T], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> T | None:
    """Run a function on some ranks; raise on every rank what it raises on any."""
    result, error = _run_if(runs_here, function, args, kwargs)
    raise_on_all_ranks(error)
    return result


def _run_if(
    runs_here: bool, function: Callable[..., T], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[T | None, BaseException | None]:
    """Return what a function returned or raised; (None, None) where it does not run."""
    if not runs_here:
        return None, None
    try:
        with local_collectives():
            return function(*args, **kwargs), None
    except BaseException as caught:  # noqa: BLE001 - raised by the caller, on every rank
        return None, caught
