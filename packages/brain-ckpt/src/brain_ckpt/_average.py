"""Averages of parameters over checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt._tensor_files import read_state, respell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from brain_ckpt._retention import Checkpoint


def average_state_dicts(state_dicts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Average states, key by key, and leave them alone.

    Parameters
    ----------
    state_dicts : iterable of mapping
        From str to tensor; read one at a time.

    Returns
    -------
    dict
        Of the first one's keys.  A floating-point tensor is summed in at least float32 (complex
        and float64 in their own precision), divided, and given its dtype back; anything else
        (an integer buffer such as the batches that a BatchNorm counted) is the first one's.

    Raises
    ------
    ValueError
        If there is none, or one has other keys or shapes than the first.
    """
    sums: dict[str, Any] = {}
    dtypes: dict[str, torch.dtype] = {}
    count = 0
    with torch.no_grad():
        for count, state in enumerate(state_dicts, start=1):
            if count > 1:
                _check_same(sums, state, count)
            for key, value in state.items():
                if not _is_averaged(value):
                    if count == 1:
                        sums[key] = value.clone() if isinstance(value, torch.Tensor) else value
                elif count == 1:
                    dtypes[key] = value.dtype
                    wide = torch.promote_types(value.dtype, torch.float32)
                    sums[key] = value.detach().to(wide, copy=True)
                else:
                    sums[key] += value.detach().to(sums[key].dtype)
        if count == 0:
            raise ValueError("an average needs at least one state dict, got none; save first")
        for key, dtype in dtypes.items():
            sums[key] = (sums[key] / count).to(dtype)
    return sums


def average_checkpoints(
    checkpoint_list: Iterable[Checkpoint],
    recoverable_name: str,
    parameter_loader: Callable[..., Any] | None = None,
    averager: Callable[[Iterable[Any]], Any] = average_state_dicts,
) -> Any:
    """Average the parameters of one recoverable over checkpoints.

    Parameters
    ----------
    checkpoint_list : iterable of Checkpoint
        As `Checkpointer.find_checkpoints` returns them.
    recoverable_name : str
        Whose parameters.
    parameter_loader : callable, optional
        ``parameter_loader(path, map_location="cpu")``; a safe torch.load by default.
    averager : callable
        Takes an iterable of what was loaded.

    Returns
    -------
    object
        What the averager returns; a state dict by default.

    Raises
    ------
    ValueError
        If there is no checkpoint, or one has no such recoverable.
    """

    def load(path: Path) -> Any:
        if parameter_loader is None:
            return read_state(path)
        return respell(parameter_loader(path, map_location="cpu"))

    return averager(load(_file(one, recoverable_name)) for one in checkpoint_list)


def _file(checkpoint: Checkpoint, name: str) -> Path:
    if name not in checkpoint.paramfiles:
        raise ValueError(
            f"{checkpoint.path} has to hold {name!r} to be averaged, got "
            f"{sorted(checkpoint.paramfiles)!r}; name one of those"
        )
    return checkpoint.paramfiles[name]


def _is_averaged(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _check_same(first: Mapping[str, Any], other: Mapping[str, Any], number: int) -> None:
    if first.keys() != other.keys():
        odd = sorted(map(str, first.keys() ^ other.keys()))
        raise ValueError(
            f"states to average have the same keys, got number {number} that differs from the "
            f"first in {odd[:5]!r}; average checkpoints of one model"
        )
    for key, value in other.items():
        if isinstance(value, torch.Tensor) and value.shape != first[key].shape:
            raise ValueError(
                f"states to average have the same shapes, got {tuple(value.shape)} for {key!r} in "
                f"number {number}, and {tuple(first[key].shape)} in the first"
            )
