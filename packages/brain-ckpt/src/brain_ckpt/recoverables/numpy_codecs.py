"""NumPy values as tensors and plain values, and back.

NumPy's own pickles are not used: a crafted one can set flags of a dtype that make NumPy read bytes
as pointers.  Here a dtype is made from its description, and one with Python objects is refused.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.recoverables.codecs import Codec

if TYPE_CHECKING:
    import numpy as np

# bool, integers, floats, complex numbers, bytes, strings, datetimes, timedeltas and structures
_DTYPE_KINDS = frozenset("biufcSUMmV")
_PLAIN_ITEMS = (bool, int, float, complex)


def numpy_codec(value: Any) -> Codec | None:
    """Return the codec of a NumPy value; None for another value, or one that cannot be saved."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    cls = type(value)
    if cls is numpy.ndarray and value.dtype.kind == "O":
        return _OBJECT_ARRAY
    if cls is numpy.ndarray and _is_safe(value.dtype):
        return _ARRAY
    if isinstance(value, numpy.generic) and cls.__module__ == "numpy" and _is_safe(value.dtype):
        return _SCALAR
    if isinstance(value, numpy.dtype) and _is_safe(value):
        return _DTYPE
    return None


def _is_safe(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in _DTYPE_KINDS and not dtype.hasobject


def _describe(dtype: np.dtype[Any]) -> Any:
    from numpy.lib import format as npy

    return npy.dtype_to_descr(dtype)


def _make_dtype(description: Any) -> np.dtype[Any]:
    from numpy.lib import format as npy

    dtype = npy.descr_to_dtype(description)
    if not _is_safe(dtype):
        raise ValueError(f"arrays must not hold Python objects, got dtype {dtype}")
    return dtype


def _encode_array(array: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return a tensor; with [dtype, shape, order] if torch does not have the dtype."""
    import numpy as np

    is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    order: Any = "F" if is_fortran else "C"
    if not (array.flags.c_contiguous or is_fortran) or not array.flags.writeable:
        array = array.copy(order=order)
    try:
        return torch.from_numpy(array), None
    except (TypeError, ValueError):  # a dtype or byte order that torch does not have
        content = np.frombuffer(array.tobytes(order=order), dtype=np.uint8).copy()
        return torch.from_numpy(content), [_describe(array.dtype), list(array.shape), order]


def _decode_array(plain: Any, layout: Any) -> Any:
    import numpy as np

    content = plain.numpy()
    if layout is None:
        return content
    description, shape, order = layout
    dtype = _make_dtype(description)
    if content.dtype != np.uint8 or content.size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"expected {shape} items of {dtype}, got {content.size} bytes")
    array = np.empty(shape, dtype, order=order)
    if content.size:
        array[...] = np.frombuffer(content.tobytes(), dtype).reshape(shape, order=order)
    return array


def _encode_object_array(array: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    return array.ravel().tolist(), list(array.shape)


def _decode_object_array(plain: Any, shape: Any) -> Any:
    import numpy as np

    array = np.empty(len(plain), dtype=object)
    for number, item in enumerate(plain):  # assigning the whole list would unpack its items
        array[number] = item
    return array.reshape(shape)


def _encode_scalar(scalar: Any) -> tuple[Any, Any]:
    return _plain_scalar(scalar), _describe(scalar.dtype)


def _plain_scalar(scalar: Any) -> Any:
    """Return an equal Python value if there is one, else the bytes."""
    if isinstance(scalar, bytes):
        return bytes(scalar)
    if isinstance(scalar, str):
        return str(scalar)
    item = scalar.item() if scalar.dtype.kind in "biufc" else None
    return item if type(item) in _PLAIN_ITEMS else scalar.tobytes()


def _decode_scalar(plain: Any, description: Any) -> Any:
    import numpy as np

    dtype = _make_dtype(description)
    if isinstance(plain, bytes) and dtype.kind != "S":
        return np.frombuffer(plain, dtype)[0]
    return dtype.type(plain)


_ARRAY = Codec("numpy.array", _encode_array, _decode_array)
_OBJECT_ARRAY = Codec("numpy.object_array", _encode_object_array, _decode_object_array)
_SCALAR = Codec("numpy.scalar", _encode_scalar, _decode_scalar)
_DTYPE = Codec(
    "numpy.dtype",
    lambda dtype: (None, _describe(dtype)),
    lambda _, description: _make_dtype(description),
)
NUMPY_DECODERS = {codec.kind: codec.decode for codec in (_ARRAY, _OBJECT_ARRAY, _SCALAR, _DTYPE)}
