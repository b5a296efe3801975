"""Averages of parameters over checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.loading.state_file import read_state_file
from brain_ckpt.recoverables.serialization import rename_old_keys
from brain_ckpt.storage.opened import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from brain_ckpt.retention.checkpoint import Checkpoint

_MAX_KEYS_SHOWN = 5


def average_state_dicts(state_dicts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Average states, key by key, without changing them.

    Parameters
    ----------
    state_dicts : iterable of mapping
        From str to tensor.  They are read one at a time, and each is released before the next.

    Returns
    -------
    dict
        With the keys of the first state, on its device.  Floating-point tensors are summed in at
        least float32 (complex and float64 tensors in their own precision) and cast back to their
        dtype.  Anything else, such as the batch count of a BatchNorm, is copied from the first
        state.

    Raises
    ------
    ValueError
        If there is no state, or one has other keys, shapes or types of values than the first; the
        text names them.
    """
    sums: dict[str, Any] = {}
    dtypes: dict[str, torch.dtype] = {}
    count = 0
    iterator = iter(state_dicts)
    with torch.no_grad():
        while (state := next(iterator, None)) is not None:
            count += 1
            _check_mapping(state, count)
            if count == 1:
                _start(sums, dtypes, state)
            else:
                _check_same(sums, state, count)
                for key in dtypes:
                    sums[key] += state[key].detach().to(sums[key])
            # Release this state before the next one is read.
            state = None
        if count == 0:
            raise ValueError(
                "an average needs at least one state dict, got none; save a checkpoint first"
            )
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
        The name of the recoverable.
    parameter_loader : callable, optional
        ``parameter_loader(path, map_location="cpu")``; by default one that verifies the file and
        runs no code from it.
    averager : callable
        Takes an iterable of the loaded states.

    Returns
    -------
    object
        The result of the averager; a state dict by default.

    Raises
    ------
    ValueError
        If there is no checkpoint, or one does not hold the recoverable.
    CheckpointGoneError
        If a checkpoint was deleted or replaced since it was listed.
    CheckpointDamagedError
        If a file differs from what was written.
    UnsafeCheckpointError
        If a file names code to run.

    Examples
    --------
    >>> import tempfile, torch
    >>> from brain_ckpt import Checkpointer
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> checkpointer = Checkpointer(tempfile.mkdtemp(), {"model": model})
    >>> for value in (7.0, 8.0, 9.0):
    ...     _ = torch.nn.init.constant_(model.weight, value)
    ...     _ = checkpointer.save_checkpoint()
    >>> average_checkpoints(checkpointer.find_checkpoints(max_num_checkpoints=2), "model")
    {'weight': tensor([[8.5000]])}
    """

    def load(checkpoint: Checkpoint) -> Any:
        path = _file(checkpoint, recoverable_name)
        if parameter_loader is None:
            return read_state_file(path, recoverable_name, listed=checkpoint, mmap=True)
        state = parameter_loader(path, map_location="cpu")
        if checkpoint.commit_id is not None:
            # It reads the path itself: make sure that this was still the checkpoint.
            with open_checkpoint(checkpoint.path) as opened:
                opened.check_same(checkpoint)
        return rename_old_keys(state)

    return averager(map(load, checkpoint_list))


def _file(checkpoint: Checkpoint, name: str) -> Path:
    if name not in checkpoint.paramfiles:
        raise ValueError(
            f"{checkpoint.path} must hold {name!r} to be averaged, got "
            f"{sorted(checkpoint.paramfiles)!r}; name one of those"
        )
    return checkpoint.paramfiles[name]


def _start(sums: dict[str, Any], dtypes: dict[str, torch.dtype], state: Mapping[str, Any]) -> None:
    for key, value in state.items():
        if _is_averaged(value):
            dtypes[key] = value.dtype
            wide = torch.promote_types(value.dtype, torch.float32)
            sums[key] = value.detach().to(wide, copy=True)
        else:
            sums[key] = value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


def _is_averaged(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _check_mapping(state: Any, number: int) -> None:
    if not isinstance(state, Mapping):
        raise ValueError(  # noqa: TRY004 - one type for all states that cannot be averaged
            f"only state dicts can be averaged, got a {type(state).__name__} as number {number}; "
            f"name a recoverable that is a module"
        )


def _check_same(first: Mapping[str, Any], other: Mapping[str, Any], number: int) -> None:
    if first.keys() != other.keys():
        differing = sorted(map(str, first.keys() ^ other.keys()))
        hidden = len(differing) - _MAX_KEYS_SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        raise ValueError(
            f"states to average must have the same keys, got number {number} that differs from the "
            f"first in {differing[:_MAX_KEYS_SHOWN]!r}{more}; average checkpoints of one model"
        )
    for key, value in other.items():
        if _is_averaged(value) != _is_averaged(first[key]):
            raise ValueError(
                f"states to average must have the same types of values, got {_type_name(value)} "
                f"for {key!r} in number {number}, and {_type_name(first[key])} in the first; "
                f"average checkpoints of one model"
            )
        if isinstance(value, torch.Tensor) and value.shape != first[key].shape:
            raise ValueError(
                f"states to average must have the same shapes, got {tuple(value.shape)} for "
                f"{key!r} in number {number}, and {tuple(first[key].shape)} in the first; average "
                f"checkpoints of one model"
            )


def _type_name(value: Any) -> str:
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
