"""Padding and stacking: many tensors into one, each byte written once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brain_data.errors import PaddingError


def batch_pad_right(
    tensors: Sequence[Tensor], mode: str = "constant", value: float = 0
) -> tuple[Tensor, Tensor]:
    """Pad tensors at the end of their first dimension, and put them together.

    Parameters
    ----------
    tensors : sequence of Tensor
        Shapes ``(time_i, *rest)``, with one ``rest``.
    mode : str
        ``"constant"``, or another mode of :func:`torch.nn.functional.pad`.
    value : float
        Fills the padding in the mode ``"constant"``.

    Returns
    -------
    padded : Tensor, shape ``(batch, max time, *rest)``
    lengths : Tensor, shape ``(batch,)``, float32
        Length of each, relative to the longest.

    Raises
    ------
    PaddingError
        When the shapes do not fit together.

    Notes
    -----
    SpeechBrain pads each and then stacks; here the pieces and slices of one small filler go
    through one concatenation.
    """
    padded, lengths, _ = pad_and_count(tensors, mode, value)
    return padded, lengths


def pad_and_count(
    tensors: Sequence[Tensor], mode: str = "constant", value: float = 0
) -> tuple[Tensor, Tensor, list[int]]:
    """Pad as :func:`batch_pad_right`, and give the lengths as whole numbers too."""
    counts = _checked_lengths(tensors)
    longest = max(counts)
    if longest == min(counts):
        padded = torch.stack(list(tensors))
    elif mode == "constant":
        padded = _padded_by_constant(tensors, counts, longest, value)
    else:
        padded = torch.stack([_padded_by_mode(one, longest, mode) for one in tensors])
    return padded, _relative_lengths(counts, longest), counts


def undo_padding(batch: Tensor, lengths: Tensor) -> list[Any]:
    """Give the rows of a padded batch as lists, without their padding.

    Parameters
    ----------
    batch : Tensor, shape ``(batch, time, ...)``
    lengths : Tensor, shape ``(batch,)``
        Relative lengths, or whole numbers (``PaddedData.integer_lengths``), which are exact for
        any length.

    Examples
    --------
    >>> undo_padding(torch.tensor([[1, 2, 0], [3, 4, 5]]), torch.tensor([2 / 3, 1.0]))
    [[1, 2], [3, 4, 5]]
    """
    if batch.ndim < 2 or len(lengths) != len(batch):  # noqa: PLR2004 - batch and time
        raise ValueError(
            "undo_padding needs a batch of shape (batch, time, ...) and one length for each row; "
            f"got shape {tuple(batch.shape)} and {len(lengths)} lengths: pass the two of one "
            "PaddedData."
        )
    counts = integer_lengths(lengths, batch.shape[1]).tolist()
    return [row[:count] for row, count in zip(batch.tolist(), counts, strict=True)]


def integer_lengths(lengths: Tensor, longest: int) -> Tensor:
    """Turn relative lengths into whole numbers; whole numbers are left as they are."""
    if not lengths.is_floating_point():
        return lengths
    return torch.round(lengths.double() * longest).long()


def stack_if_possible(values: list[Any]) -> Any:
    """Make one tensor of numbers or of tensors of one shape; leave anything else a list."""
    first = values[0]
    if isinstance(first, Tensor):
        if any(not isinstance(one, Tensor) or one.shape != first.shape for one in values):
            return values
        return torch.stack(values)
    if not isinstance(first, (int, float)) or not all(
        isinstance(one, (int, float)) for one in values
    ):
        return values
    broken = any(isinstance(one, float) for one in values)
    try:
        return torch.tensor(values, dtype=torch.float64 if broken else None)
    except (RuntimeError, ValueError, OverflowError):  # a whole number of more than 64 bits
        return values


def move(data: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply ``.to`` to the tensors in nested containers; a dtype changes only what can take it."""
    if isinstance(data, Tensor):
        return _move_tensor(data, args, kwargs)
    if hasattr(data, "to"):
        return data.to(*args, **kwargs)
    if isinstance(data, Mapping):
        return {key: move(value, *args, **kwargs) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(move(value, *args, **kwargs) for value in data))
    if isinstance(data, (list, tuple)):
        return [move(value, *args, **kwargs) for value in data]
    return data


def without_dtype(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Arguments of ``Tensor.to`` for what must keep its dtype: the device and how to get there."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, *args[1:])
    kept = {name: value for name, value in kwargs.items() if name != "dtype"}
    if isinstance(kept.get("tensor"), Tensor):
        kept["device"] = kept.pop("tensor").device
    if not any(isinstance(one, torch.dtype) for one in args):
        return args, kept
    # .to(dtype, non_blocking, copy) or .to(device, dtype, non_blocking, copy)
    place = next(i for i, one in enumerate(args) if isinstance(one, torch.dtype))
    names = ("non_blocking", "copy")
    kept.update(zip(names, args[place + 1 :], strict=False))
    return args[:place], kept


def target_dtype(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    """Find the dtype among the arguments of ``Tensor.to``."""
    for one in (*args, *kwargs.values()):
        if isinstance(one, torch.dtype):
            return one
        if isinstance(one, Tensor):
            return one.dtype
    return None


def _move_tensor(data: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    dtype = target_dtype(args, kwargs)
    if dtype is not None and dtype.is_floating_point and not data.is_floating_point():
        # Token 257 is 256 in bfloat16: like nn.Module.to, leave whole numbers whole.
        args, kwargs = without_dtype(args, kwargs)
        if not args and not kwargs:
            return data
    return data.to(*args, **kwargs)


def _checked_lengths(tensors: Sequence[Tensor]) -> list[int]:
    if not len(tensors):
        raise PaddingError(
            "Padding needs at least one tensor; got an empty list: check that the batch has rows."
        )
    try:
        shapes = [one.shape for one in tensors]
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
        "dimension that varies comes first, or list the other keys in padded_keys."
    )


def _relative_lengths(counts: list[int], longest: int) -> Tensor:
    # Divided in double precision and rounded once, as SpeechBrain does. NumPy, since making a
    # tensor of a list takes as long as copying a clip. Of nothing but empty tensors each is full.
    relative = np.array(counts) / longest if longest else np.ones(len(counts))
    return torch.from_numpy(relative.astype(np.float32))


def _padded_by_constant(
    tensors: Sequence[Tensor], counts: list[int], longest: int, value: float
) -> Tensor:
    rest = tensors[0].shape[1:]
    # filler: (longest - shortest, *rest); every gap is a slice of it, so it stays in the cache
    gap = (longest - min(counts), *rest)
    pieces: list[Any] = []
    try:
        # NumPy looks at a slice in a tenth of the time that torch takes.
        arrays: list[Any] = [one.numpy() for one in tensors]
    except (RuntimeError, TypeError):  # bfloat16, another device, or a gradient is wanted
        arrays = []
    if not arrays or any(array.dtype != arrays[0].dtype for array in arrays):
        filler = tensors[0].new_full(gap, value)
        for one, count in zip(tensors, counts, strict=True):
            pieces.append(one)
            if count < longest:
                # Without the empty ones: with one among them, cat takes ten times as long.
                pieces.append(filler[: longest - count])
        return torch.cat(pieces).view(len(counts), longest, *rest)
    block = np.full(gap, value, arrays[0].dtype)
    for array, count in zip(arrays, counts, strict=True):
        pieces.append(array)
        pieces.append(block[: longest - count])
    return torch.from_numpy(np.concatenate(pieces)).view(len(counts), longest, *rest)


def _padded_by_mode(one: Tensor, longest: int, mode: str) -> Tensor:
    # functional.pad wants the padded dimension last, behind two others: (1, rest, time)
    flat = one.reshape(one.shape[0], -1).t().unsqueeze(0)
    flat = torch.nn.functional.pad(flat, (0, longest - one.shape[0]), mode=mode)
    return flat.squeeze(0).t().reshape(longest, *one.shape[1:])


def _shapes(tensors: Sequence[Any], most: int = 8) -> str:
    shown = [
        str(tuple(one.shape)) if isinstance(one, Tensor) else type(one).__name__
        for one in tensors[:most]
    ]
    return ", ".join(shown) + (f" and {len(tensors) - most} more" if len(tensors) > most else "")
