"""Batches of rows whose sequences differ in length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_convert

from brain_data.batch.collate import (
    batch_pad_right,
    integer_lengths,
    move,
    pad_and_count,
    stack_if_possible,
    without_dtype,
)
from brain_data.errors import PaddingError, UnknownKeyError, nearest

if TYPE_CHECKING:
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
        Length of each row, relative to ``time``. They stay float32 whatever the data is cast to.

    Examples
    --------
    >>> wavs, lengths = PaddedData(torch.zeros(2, 4), torch.tensor([0.5, 1.0]))
    """

    _counts: tuple[int, ...] | None

    def __new__(cls, data: Tensor, lengths: Tensor, counts: Sequence[int] | None = None) -> Self:
        """Make the pair; `counts` are the lengths as whole numbers, when they are known."""
        self = super().__new__(cls, data, lengths)
        self._counts = None if counts is None else tuple(counts)
        return self

    @property
    def integer_lengths(self) -> Tensor:
        """Lengths as whole numbers, shape ``(batch,)``, int64, on the device of ``lengths``."""
        if self._counts is not None:
            return torch.tensor(self._counts, device=self.lengths.device)
        return integer_lengths(self.lengths, self.data.shape[1])

    def to(self, *args: Any, **kwargs: Any) -> PaddedData:
        """Move both; cast the data only. Arguments as for ``Tensor.to``."""
        lengths = self.lengths
        if isinstance(lengths, Tensor):
            place, options = without_dtype(args, kwargs)
            options.pop("memory_format", None)  # for the data's four dimensions
            if place or "device" in options:
                lengths = lengths.to(*place, **options)
        return PaddedData(move(self.data, *args, **kwargs), lengths, self._counts)

    def pin_memory(self) -> PaddedData:
        """Copy both into page-locked memory."""
        lengths = self.lengths.pin_memory() if isinstance(self.lengths, Tensor) else self.lengths
        return PaddedData(self.data.pin_memory(), lengths, self._counts)


class PaddedBatch:
    """Rows with the same keys as one batch: tensors padded, numbers stacked, the rest listed.

    Values are reached as ``batch.key``, as ``batch["key"]`` and by unpacking in the order of the
    keys. ``len(batch)`` is the number of rows.

    Parameters
    ----------
    examples : sequence of dict
        The rows, as the dataset gives them.
    padded_keys : sequence of str, optional
        Keys to pad. Default: those whose values are tensors of at least one dimension.
    device_prep_keys : sequence of str, optional
        Keys that :meth:`to` and :meth:`pin_memory` move. Default: those that hold tensors.
    padding_func : callable
        From a list of tensors to the padded tensor and the relative lengths.
    padding_kwargs : mapping, optional
        Arguments of `padding_func` for every key.
    per_key_padding_kwargs : mapping of str to mapping, optional
        Arguments of `padding_func` for one key, instead of `padding_kwargs`.
    apply_default_convert : bool
        Make tensors of NumPy arrays, in nested containers too.
    nonpadded_stack : bool
        Stack numbers, and tensors of one shape, that are not padded.

    Raises
    ------
    PaddingError
        Names the key, the rows and their shapes.

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
                "A batch needs at least one row; got none: check the sampler that made it."
            )
        self._length = len(examples)
        self._keys = list(examples[0].keys())
        self._device_prep_keys: list[str] = []
        for key in self._keys:
            try:
                values = [example[key] for example in examples]
            except KeyError:
                raise _different_keys(examples) from None
            if apply_default_convert and not set(map(type, values)) <= _PLAIN:
                values = default_convert(values)  # type: ignore[no-untyped-call]  # torch's
            value: Any
            if _is_padded(key, values, padded_keys):
                options = (per_key_padding_kwargs or {}).get(key, padding_kwargs or {})
                value = _pad(examples, key, values, padding_func, options)
            else:
                value = stack_if_possible(values) if nonpadded_stack else values
            self._keep(key, value)
            holds_tensors = isinstance(value[0], Tensor)
            if key in device_prep_keys if device_prep_keys is not None else holds_tensors:
                self._device_prep_keys.append(key)
        # Each row has the keys of the first; with as many keys it has no others.
        if set(map(len, examples)) != {len(self._keys)}:
            raise _different_keys(examples)

    def __len__(self) -> int:
        """Count the rows."""
        return self._length

    def __getitem__(self, key: str) -> Any:
        """Return the value of `key`."""
        if key not in self._keys:
            raise UnknownKeyError(self._lacks(key))
        return getattr(self, key)

    def __getattr__(self, name: str) -> Any:
        """Say which keys there are; a key that is there is an ordinary attribute."""
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(self._lacks(name))

    def __contains__(self, key: object) -> bool:
        """Tell whether the batch has the key."""
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
        """Move or cast, in place, what holds tensors; arguments as for ``Tensor.to``.

        A floating dtype is for floating tensors: whole numbers stay whole, and lengths stay float32
        (SpeechBrain casts both, and loses them).
        """
        for key in self._device_prep_keys:
            setattr(self, key, move(getattr(self, key), *args, **kwargs))
        return self

    def pin_memory(self) -> PaddedBatch:
        """Copy, in place, what holds tensors into page-locked memory."""
        for key in self._device_prep_keys:
            setattr(self, key, _pinned(getattr(self, key)))
        return self

    def _keep(self, key: str, value: Any) -> None:
        if hasattr(type(self), key):
            raise ValueError(
                f"A key of a batch is an attribute of it; got {key!r}, which is a method of "
                f"{type(self).__name__}: rename it with set_output_keys({{'other': {key!r}}})."
            )
        setattr(self, key, value)

    def _lacks(self, key: object) -> str:
        return f"The batch has no {key!r}{nearest(key, self._keys)}; its keys are {self._keys!r}."


class BatchsizeGuesser:
    """Guess how many rows a batch has; never fail.

    Tried in order: ``batch.batchsize``, ``batch.shape[0]``, the first value of a mapping, the
    first element of a sequence; else 1. The way that worked for a type is tried first next time.

    Examples
    --------
    >>> guesser = BatchsizeGuesser()
    >>> guesser((torch.zeros(2, 3), torch.zeros(2))), guesser({"x": torch.zeros(5)}), guesser(7)
    (2, 5, 1)
    """

    def __init__(self) -> None:
        self.method: Callable[[Any], int] | None = None

    def __call__(self, batch: Any) -> int:
        """Guess the number of rows of `batch`."""
        if self.method is not None:
            try:
                return self.method(batch)
            except Exception:  # noqa: BLE001 - a guess never fails; another way is tried
                self.method = None
        return self.find_suitable_method(batch)

    def find_suitable_method(self, batch: Any) -> int:
        """Try the ways in turn, and remember the one that worked."""
        for method in (
            self.attr_based,
            self.torch_tensor_bs,
            self.len_of_first_value,
            self.len_of_first,
            self.len_of_iter_first,
        ):
            try:
                size = method(batch)
            except Exception:  # noqa: BLE001, S112 - a guess never fails; another way is tried
                continue
            self.method = method
            return size
        return self.fallback(batch)

    def attr_based(self, batch: Any) -> int:
        """Ask the batch."""
        return int(batch.batchsize)

    def torch_tensor_bs(self, batch: Any) -> int:
        """Take the first dimension of a tensor."""
        return int(batch.shape[0])

    def len_of_first_value(self, batch: Any) -> int:
        """Take the length of a mapping's first value."""
        return len(next(iter(batch.values())))

    def len_of_first(self, batch: Any) -> int:
        """Take the length of the first element."""
        return len(batch[0])

    def len_of_iter_first(self, batch: Any) -> int:
        """Take the length of what comes first."""
        return len(next(iter(batch)))

    def fallback(self, batch: Any) -> int:  # noqa: ARG002 - one signature for all ways
        """Guess 1."""
        return 1


def _different_keys(examples: Sequence[Mapping[str, Any]]) -> PaddingError:
    wanted = examples[0].keys()
    odd = next(i for i, example in enumerate(examples) if example.keys() != wanted)
    return PaddingError(
        f"Rows of one batch must have the same keys; {_named(examples, odd)} has "
        f"{list(examples[odd])!r}, and {_named(examples, 0)} has {list(wanted)!r}: complete the "
        "row, or do not output the key."
    )


def _is_padded(key: str, values: list[Any], padded_keys: Sequence[str] | None) -> bool:
    if padded_keys is not None:
        return key in padded_keys
    first = values[0]
    # A tensor without dimensions is a number: there is nothing to pad.
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
        odd = next((i for i, one in enumerate(values) if not isinstance(one, Tensor)), None)
        if odd is not None:
            raise PaddingError(
                f"The key {key!r} is padded, so it must be a tensor in every row; "
                f"{_named(examples, odd)} has a {type(values[odd]).__name__}: {values[odd]!r}. "
                "Return a tensor from its item, or name what is to be padded in padded_keys."
            ) from error
        shapes = ", ".join(
            f"{_named(examples, i)} {tuple(one.shape)}" for i, one in enumerate(values[:8])
        )
        raise PaddingError(
            f"The key {key!r} cannot be padded into one batch: {error} "
            f"(key {key!r}: {shapes}{', ...' if len(values) > 8 else ''})"  # noqa: PLR2004
        ) from error


def _named(examples: Sequence[Mapping[str, Any]], index: int) -> str:
    uid = examples[index].get("id")
    return f"row {index} of the batch" if uid is None else f"row {uid!r}"


def _pinned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _pinned(one) for key, one in value.items()}
    if hasattr(value, "pin_memory"):
        return value.pin_memory()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_pinned, value))
    if isinstance(value, (list, tuple)):
        return [_pinned(one) for one in value]
    return value
