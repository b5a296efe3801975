"""Batches of rows whose sequences differ in length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_convert

from brain_data.batch.collate import (
    batch_pad_right,
    integer_lengths,
    pad_and_count,
    stack_if_possible,
)
from brain_data.batch.move import move, pin, without_dtype
from brain_data.errors import PaddingError, UnknownKeyError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

_PLAIN = frozenset({Tensor, str, int, float, bool, bytes, type(None)})


class _DataAndLengths(NamedTuple):
    data: Tensor
    lengths: Tensor


class PaddedData(_DataAndLengths):
    """A padded tensor and the relative length of each of its rows.

    Attributes
    ----------
    data : Tensor, shape ``(batch, time, ...)``
    lengths : Tensor, shape ``(batch,)``, float32
        Length of each row, relative to ``time``. They remain float32 if the data is cast.

    Examples
    --------
    >>> wavs, lengths = PaddedData(torch.zeros(2, 4), torch.tensor([0.5, 1.0]))
    """

    _counts: tuple[int, ...] | None

    def __new__(cls, data: Tensor, lengths: Tensor, counts: Sequence[int] | None = None) -> Self:
        """Make the pair; `counts` are the lengths in steps, if they are known."""
        self = super().__new__(cls, data, lengths)
        self._counts = None if counts is None else tuple(counts)
        return self

    @property
    def integer_lengths(self) -> Tensor:
        """Lengths in steps, shape ``(batch,)``, int64, on the device of ``lengths``."""
        if self._counts is not None:
            return torch.tensor(self._counts, device=self.lengths.device)
        return integer_lengths(self.lengths, self.data.shape[1])

    def to(self, *args: Any, **kwargs: Any) -> PaddedData:
        """Move both; cast the data only. Arguments as for ``Tensor.to``."""
        lengths = self.lengths
        if isinstance(lengths, Tensor):
            place, options = without_dtype(args, kwargs)
            options.pop("memory_format", None)  # valid for the data's four dimensions only
            if place or "device" in options:
                lengths = lengths.to(*place, **options)
        return PaddedData(move(self.data, *args, **kwargs), lengths, self._counts)

    def pin_memory(self) -> PaddedData:
        """Copy both into page-locked memory."""
        lengths = self.lengths.pin_memory() if isinstance(self.lengths, Tensor) else self.lengths
        return PaddedData(self.data.pin_memory(), lengths, self._counts)


class PaddedBatch:
    """Rows with the same keys as one batch: tensors padded, numbers stacked, other values in lists.

    Values are accessed as ``batch.key``, as ``batch["key"]`` and by unpacking in the order of the
    keys. ``len(batch)`` is the number of rows.

    Parameters
    ----------
    examples : sequence of dict
        The rows, as the dataset returns them.
    padded_keys : sequence of str, optional
        Keys to pad. Default: those whose values are tensors of at least one dimension.
    device_prep_keys : sequence of str, optional
        Keys that :meth:`to` and :meth:`pin_memory` move. Default: those whose values are tensors.
    padding_func : callable
        Takes a list of tensors; returns the padded tensor and the relative lengths.
    padding_kwargs : mapping, optional
        Arguments of `padding_func` for every key.
    per_key_padding_kwargs : mapping of str to mapping, optional
        Arguments of `padding_func` for one key, instead of `padding_kwargs`.
    apply_default_convert : bool
        Convert NumPy arrays to tensors, in nested containers too.
    nonpadded_stack : bool
        Stack numbers, and tensors of one shape, that are not padded.

    Raises
    ------
    PaddingError
        If the rows cannot be one batch; the message names the key, the rows and their shapes.

    Examples
    --------
    >>> batch = PaddedBatch(
    ...     [
    ...         {"id": "a", "wav": torch.tensor([1.0]), "labels": torch.tensor([1])},
    ...         {"id": "b", "wav": torch.tensor([2.0, 1.0]), "labels": torch.tensor([2, 3])},
    ...     ],
    ...     per_key_padding_kwargs={"labels": {"value": -100}},
    ... )
    >>> batch.id, batch["wav"].data.tolist(), batch.labels.data.tolist()
    (['a', 'b'], [[1.0, 0.0], [2.0, 1.0]], [[1, -100], [2, 3]])
    >>> ids, (wavs, lengths), labels = batch
    >>> lengths, batch.wav.integer_lengths
    (tensor([0.5000, 1.0000]), tensor([1, 2]))
    """

    def __init__(
        self,
        examples: Sequence[Mapping[str, Any]],
        padded_keys: Sequence[str] | None = None,
        device_prep_keys: Sequence[str] | None = None,
        padding_func: Callable[..., tuple[Tensor, Tensor]] = batch_pad_right,
        padding_kwargs: Mapping[str, Any] | None = None,
        per_key_padding_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        apply_default_convert: bool = True,
        nonpadded_stack: bool = True,
    ) -> None:
        if not len(examples):
            raise PaddingError(
                "A batch needs at least one row; got none: check the sampler that made the batch."
            )
        self._length = len(examples)
        self._keys = list(examples[0].keys())
        self._device_prep_keys: list[str] = []
        for key in self._keys:
            try:
                values = [example[key] for example in examples]
            except KeyError:
                raise _different_keys_error(examples) from None
            if apply_default_convert and not set(map(type, values)) <= _PLAIN:
                values = default_convert(values)  # type: ignore[no-untyped-call]  # torch's
            value: Any
            if _is_padded(key, values, padded_keys):
                options = (per_key_padding_kwargs or {}).get(key, padding_kwargs or {})
                value = _pad(examples, key, values, padding_func, options)
            else:
                value = stack_if_possible(values) if nonpadded_stack else values
            self._set_value(key, value)
            holds_tensors = isinstance(value[0], Tensor)
            if key in device_prep_keys if device_prep_keys is not None else holds_tensors:
                self._device_prep_keys.append(key)
        # Each row has the keys of the first row; with the same number of keys it has no others.
        if set(map(len, examples)) != {len(self._keys)}:
            raise _different_keys_error(examples)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def __getitem__(self, key: str) -> Any:
        """Return the value of `key`."""
        if key not in self._keys:
            raise UnknownKeyError(
                f"The batch has no {key!r}{nearest(key, self._keys)}; its keys are {self._keys!r}."
            )
        return getattr(self, key)

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError that lists the keys; a key of the batch is an ordinary attribute."""
        if name.startswith("_"):
            raise AttributeError(name)
        # Python names the nearest key when it prints a traceback: `hasattr` need not look for it.
        message = f"The batch has no {name!r}; its keys are {self._keys!r}"
        raise AttributeError(message, name=name, obj=self)

    def __contains__(self, key: object) -> bool:
        """Return whether the batch has the key."""
        return key in self._keys

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the values, in the order of the keys."""
        return iter([getattr(self, key) for key in self._keys])

    def __repr__(self) -> str:
        """Show the number of rows and the keys."""
        return f"{type(self).__name__}({self._length} rows of {', '.join(map(str, self._keys))})"

    @property
    def batchsize(self) -> int:
        """Number of rows."""
        return self._length

    def keys(self) -> list[str]:
        """List the keys, in order."""
        return list(self._keys)

    def at_position(self, pos: int) -> Any:
        """Return the value of the key at position `pos`."""
        return getattr(self, self._keys[pos])

    def to(self, *args: Any, **kwargs: Any) -> PaddedBatch:
        """Move or cast tensors in place; arguments as for ``Tensor.to``.

        A floating dtype applies to floating tensors only: integers are not cast, and lengths remain
        float32 (SpeechBrain casts both, which makes them inexact).
        """
        for key in self._device_prep_keys:
            setattr(self, key, move(getattr(self, key), *args, **kwargs))
        return self

    def pin_memory(self) -> PaddedBatch:
        """Copy tensors into page-locked memory, in place."""
        for key in self._device_prep_keys:
            setattr(self, key, pin(getattr(self, key)))
        return self

    def _set_value(self, key: str, value: Any) -> None:
        if hasattr(type(self), key):
            raise ValueError(
                f"A key of a batch must not be one of its methods; got {key!r}, a method of "
                f"{type(self).__name__}: rename it with set_output_keys({{'other': {key!r}}})."
            )
        setattr(self, key, value)


def _different_keys_error(examples: Sequence[Mapping[str, Any]]) -> PaddingError:
    keys = examples[0].keys()
    odd = next(i for i, example in enumerate(examples) if example.keys() != keys)
    return PaddingError(
        f"Rows of one batch must have the same keys; {_row_name(examples, odd)} has "
        f"{list(examples[odd])!r}, and {_row_name(examples, 0)} has {list(keys)!r}: add the "
        "missing keys, or take them out of the output keys."
    )


def _is_padded(key: str, values: list[Any], padded_keys: Sequence[str] | None) -> bool:
    if padded_keys is not None:
        return key in padded_keys
    first = values[0]
    # A tensor without dimensions is a number, which is not padded.
    return isinstance(first, Tensor) and first.ndim > 0


def _pad(
    examples: Sequence[Mapping[str, Any]],
    key: str,
    values: list[Any],
    padding_func: Callable[..., tuple[Tensor, Tensor]],
    options: Mapping[str, Any],
) -> PaddedData:
    try:
        if padding_func is batch_pad_right:
            return PaddedData(*pad_and_count(values, **options))
        return PaddedData(*padding_func(values, **options))
    except Exception as error:
        odd = next((i for i, value in enumerate(values) if not isinstance(value, Tensor)), None)
        if odd is not None:
            raise PaddingError(
                f"The key {key!r} is padded, so it must be a tensor in every row; "
                f"{_row_name(examples, odd)} has a {type(values[odd]).__name__}: {values[odd]!r}. "
                "Return a tensor from its item, or list the keys to pad in padded_keys."
            ) from error
        shapes = ", ".join(
            f"{_row_name(examples, i)} {tuple(value.shape)}" for i, value in enumerate(values[:8])
        )
        raise PaddingError(
            f"The key {key!r} cannot be padded into one batch: {error} "
            f"(key {key!r}: {shapes}{', ...' if len(values) > 8 else ''})"  # noqa: PLR2004
        ) from error


def _row_name(examples: Sequence[Mapping[str, Any]], index: int) -> str:
    uid = examples[index].get("id")
    return f"row {index} of the batch" if uid is None else f"row {uid!r}"
