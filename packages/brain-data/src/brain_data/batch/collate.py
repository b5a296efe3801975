"""Padding and stacking: many tensors into one, with one copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from brain_data.errors import PaddingError

if TYPE_CHECKING:
    from collections.abc import Sequence


def batch_pad_right(
    tensors: Sequence[Tensor], mode: str = "constant", value: float = 0
) -> tuple[Tensor, Tensor]:
    """Pad tensors at the end of their first dimension, and stack them.

    Parameters
    ----------
    tensors : sequence of Tensor
        Shapes ``(time_i, *rest)``, with one ``rest``.
    mode : str
        ``"constant"``, or another mode of :func:`torch.nn.functional.pad`.
    value : float
        The padding value in the mode ``"constant"``.

    Returns
    -------
    padded : Tensor, shape ``(batch, max time, *rest)``
    lengths : Tensor, shape ``(batch,)``, float32
        Length of each, relative to the longest.

    Raises
    ------
    PaddingError
        If the shapes differ in another dimension than the first.

    Notes
    -----
    SpeechBrain pads each tensor and stacks the results. Here the tensors and slices of one block of
    padding are concatenated once.
    """
    padded, lengths, _ = pad_and_count(tensors, mode, value)
    return padded, lengths


def pad_and_count(
    tensors: Sequence[Tensor], mode: str = "constant", value: float = 0
) -> tuple[Tensor, Tensor, list[int]]:
    """Pad as :func:`batch_pad_right`, and return the lengths in steps too."""
    if len(tensors) == 1 and getattr(tensors[0], "ndim", None) == 0:
        return torch.stack(list(tensors)), torch.ones(1), [1]
    counts = _checked_lengths(tensors)
    longest = max(counts)
    if longest == min(counts):
        padded = torch.stack(list(tensors))
    elif mode == "constant":
        padded = _padded_by_constant(tensors, counts, longest, value)
    else:
        padded = torch.stack([_padded_by_mode(tensor, longest, mode) for tensor in tensors])
    return padded, _relative_lengths(counts, longest), counts


def undo_padding(batch: Tensor, lengths: Tensor | Sequence[Any]) -> list[Any]:
    """Return the rows of a padded batch as lists, without their padding.

    Parameters
    ----------
    batch : Tensor, shape ``(batch, time, ...)``
    lengths : Tensor, shape ``(batch,)`` or ``(batch, 1)``; or a sequence of numbers
        Relative lengths, or lengths in steps (``PaddedData.integer_lengths``), which are exact for
        any length.

    Raises
    ------
    ValueError
        If there is not one length for each row; SpeechBrain drops the rows without one.

    Examples
    --------
    >>> undo_padding(torch.tensor([[1, 2, 0], [3, 4, 5]]), torch.tensor([2 / 3, 1.0]))
    [[1, 2], [3, 4, 5]]
    """
    if not isinstance(lengths, Tensor):
        lengths = torch.stack([torch.as_tensor(length).reshape(()) for length in lengths])
    lengths = lengths.flatten()  # a beam search returns a column
    if batch.ndim < 2 or len(lengths) != len(batch):  # noqa: PLR2004 - batch and time
        raise ValueError(
            "undo_padding needs a batch of shape (batch, time, ...) and one length for each row; "
            f"got shape {tuple(batch.shape)} and {len(lengths)} lengths: pass the two of one "
            "PaddedData."
        )
    counts = integer_lengths(lengths, batch.shape[1]).tolist()
    return [row[:count] for row, count in zip(batch.tolist(), counts, strict=True)]


def integer_lengths(lengths: Tensor, longest: int) -> Tensor:
    """Convert relative lengths to steps; integers are returned unchanged."""
    if not lengths.is_floating_point():
        return lengths
    return torch.round(lengths.double() * longest).long()


def stack_if_possible(values: list[Any]) -> Any:
    """Return one tensor of numbers, tensors or arrays of one shape; else the list unchanged."""
    first = values[0]
    if isinstance(first, Tensor):
        if any(not isinstance(value, Tensor) or value.shape != first.shape for value in values):
            return values
        return torch.stack(values)
    if not isinstance(first, (int, float)) or not all(
        isinstance(value, (int, float)) for value in values
    ):
        return _stack_arrays(values) if isinstance(first, (np.ndarray, np.generic)) else values
    has_float = any(isinstance(value, float) for value in values)
    try:
        return torch.tensor(values, dtype=torch.float64 if has_float else None)
    except (RuntimeError, ValueError, OverflowError):  # an integer of more than 64 bits
        return values


def _stack_arrays(values: list[Any]) -> Any:
    try:
        return stack_if_possible([torch.as_tensor(value) for value in values])
    except TypeError:  # of text or objects
        return values


def _checked_lengths(tensors: Sequence[Tensor]) -> list[int]:
    if not len(tensors):
        raise PaddingError(
            "Padding needs at least one tensor; got an empty list: check that the batch has rows."
        )
    try:
        shapes = [tensor.shape for tensor in tensors]
        rest = shapes[0][1:]
        if not rest:
            return [count for (count,) in shapes]
        if all(shape[1:] == rest for shape in shapes):
            return [shape[0] for shape in shapes]
    except (AttributeError, ValueError):  # no tensor, or no vector among vectors
        pass
    raise PaddingError(
        "Tensors that are padded together must have the same number of dimensions (at least one) "
        f"and agree in all but the first; got {_shapes(tensors)}: transpose them so that the "
        "varying dimension comes first, or leave this key out of padded_keys."
    )


def _relative_lengths(counts: list[int], longest: int) -> Tensor:
    # Divided in double precision and rounded once, as in SpeechBrain. NumPy, since making a tensor
    # of a list takes as long as copying a clip. If all tensors are empty, each has length 1.
    relative = np.array(counts) / longest if longest else np.ones(len(counts))
    return torch.from_numpy(relative.astype(np.float32))


def _padded_by_constant(
    tensors: Sequence[Tensor], counts: list[int], longest: int, value: float
) -> Tensor:
    rest = tensors[0].shape[1:]
    # block: (longest - shortest, *rest); all padding is a slice of it, so it stays in the cache
    shape = (longest - min(counts), *rest)
    pieces: list[Any] = []
    try:
        # NumPy makes a slice in a tenth of the time that torch takes.
        arrays: list[Any] = [tensor.numpy() for tensor in tensors]
    except (RuntimeError, TypeError):  # bfloat16, another device, or requires_grad
        arrays = []
    if not arrays or any(array.dtype != arrays[0].dtype for array in arrays):
        padding = tensors[0].new_full(shape, value)
        for tensor, count in zip(tensors, counts, strict=True):
            pieces.append(tensor)
            if count < longest:
                # Without empty tensors: with one among them, cat takes ten times as long.
                pieces.append(padding[: longest - count])
        return torch.cat(pieces).view(len(counts), longest, *rest)
    block = np.full(shape, value, arrays[0].dtype)
    for array, count in zip(arrays, counts, strict=True):
        pieces.append(array)
        pieces.append(block[: longest - count])
    return torch.from_numpy(np.concatenate(pieces)).view(len(counts), longest, *rest)


def _padded_by_mode(tensor: Tensor, longest: int, mode: str) -> Tensor:
    # functional.pad requires the padded dimension last, after two others: (1, rest, time)
    flat = tensor.reshape(tensor.shape[0], -1).t().unsqueeze(0)
    flat = torch.nn.functional.pad(flat, (0, longest - tensor.shape[0]), mode=mode)
    return flat.squeeze(0).t().reshape(longest, *tensor.shape[1:])


def _shapes(tensors: Sequence[Any], most: int = 8) -> str:
    shown = [
        str(tuple(tensor.shape)) if isinstance(tensor, Tensor) else type(tensor).__name__
        for tensor in tensors[:most]
    ]
    return ", ".join(shown) + (f" and {len(tensors) - most} more" if len(tensors) > most else "")
