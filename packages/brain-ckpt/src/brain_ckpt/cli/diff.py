"""Compare the states of two checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.loading.contents import Entry, entries, read_state_of, state_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from brain_ckpt.storage.opened import OpenedCheckpoint


@dataclass(frozen=True)
class Difference:
    """One value that differs between two checkpoints.

    Parameters
    ----------
    file : str
        The name of its file.
    key : str
        Its path in the state; empty for a whole file.
    change : str
        "changed", "only in A" or "only in B".
    before, after : str
        The value, or the shape and dtype of a tensor.
    max_abs : float or None
        The largest difference between two elements; None if the shapes differ, or for text.
    relative : float or None
        The Euclidean norm of the difference, divided by that of the first value.
    """

    file: str
    key: str
    change: str
    before: str
    after: str
    max_abs: float | None = None
    relative: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Parameters
    ----------
    differences : list of Difference
        In the order of the files.
    equal : int
        The number of bit-equal values.
    """

    differences: list[Difference]
    equal: int


def compare(first: OpenedCheckpoint, second: OpenedCheckpoint) -> Comparison:
    """Compare the states in two checkpoints, not their metas.

    Raises
    ------
    CheckpointDamagedError, UnsafeCheckpointError
        If a file cannot be read, or names code to run.
    """
    sides = state_files(first), state_files(second)
    differences: list[Difference] = []
    equal = 0
    for name in sorted({*sides[0], *sides[1]}):
        if name not in sides[0] or name not in sides[1]:
            side = "only in A" if name in sides[0] else "only in B"
            differences.append(Difference(name, "", side, "", ""))
            continue
        before, after = _by_key(first, name), _by_key(second, name)
        changed = list(_differences(name, before, after))
        differences.extend(changed)
        equal += len({*before} | {*after}) - len(changed)
    return Comparison(differences, equal)


def distance(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
    """Return the largest absolute difference, and the relative norm of the difference.

    Parameters
    ----------
    before, after : torch.Tensor
        Tensors of the same shape.

    Returns
    -------
    max_abs, relative : float
        Computed in float64.  The relative norm is infinite if the first tensor is zero; both are
        NaN if either tensor has a NaN.
    """
    if before.numel() == 0:
        return 0.0, 0.0
    wide = torch.complex128 if before.is_complex() or after.is_complex() else torch.float64
    start = before.detach().to(wide)
    change = after.detach().to(wide) - start
    size, norm = start.norm().item(), change.norm().item()
    return change.abs().max().item(), norm / size if size else (float("inf") if norm else 0.0)


def _by_key(opened: OpenedCheckpoint, name: str) -> dict[str, Entry]:
    return {entry.key: entry for entry in entries(read_state_of(opened, name))}


def _differences(
    name: str, before: Mapping[str, Entry], after: Mapping[str, Entry]
) -> Iterator[Difference]:
    for key in [*before, *(key for key in after if key not in before)]:
        left, right = before.get(key), after.get(key)
        if left is None or right is None:
            yield Difference(name, key, _only(left), _text(left), _text(right))
        elif not is_equal(left.value, right.value):
            sizes: tuple[float, float] | tuple[None, None] = (None, None)
            if left.shape is not None and left.shape == right.shape:
                sizes = distance(_dense(left.value), _dense(right.value))
            elif _is_number(left.value) and _is_number(right.value):
                sizes = distance(torch.tensor(float(left.value)), torch.tensor(float(right.value)))
            yield Difference(name, key, "changed", _text(left), _text(right), *sizes)


def _only(left: object) -> str:
    return "only in B" if left is None else "only in A"


def _text(entry: Entry | None) -> str:
    if entry is None:
        return ""
    if entry.shape is None or entry.shape == ():
        return repr(entry.single_value)
    return f"{entry.dtype}{list(entry.shape)}"


def is_equal(left: Any, right: Any) -> bool:
    """Return whether two values are equal, tensors bit by bit."""
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
        return type(left) is type(right) and repr(left) == repr(right)
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return bool(torch.equal(_bits(left), _bits(right)))  # equal NaNs count as equal


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return _dense(tensor).detach().contiguous().reshape(-1).view(torch.uint8)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
