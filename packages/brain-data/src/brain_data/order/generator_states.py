"""The states of random number generators, as plain values that JSON can hold."""

from __future__ import annotations

import base64
import random
import zlib
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

State = dict[str, Any]


@cache
def generator_types() -> tuple[type, ...]:
    """Return the types of generators whose states are kept.

    A function, since naming NumPy's types loads `numpy.random`: 4 ms that an import need not take.
    """
    return random.Random, np.random.Generator, np.random.RandomState, torch.Generator


def capture_global(*, devices: bool = True) -> State:
    """Return the states of Python's, NumPy's and torch's generators, and those of devices."""
    state: State = {
        "python": _from_python(random.getstate()),
        "torch": _encode(torch.default_generator.get_state().numpy()),
        "numpy": _encode_arrays(np.random.get_state(legacy=False)),  # noqa: NPY002 - global
    }
    for name in ("cuda", "xpu") if devices else ():
        device = getattr(torch, name)
        if device.is_available() and device.is_initialized():
            states = [device.get_rng_state(index) for index in range(device.device_count())]
            state[name] = [_encode(each.numpy()) for each in states]
    return state


def restore_global(state: Mapping[str, Any]) -> None:
    """Set the global generators to what `capture_global` returned."""
    random.setstate(_to_python(state["python"]))
    torch.default_generator.set_state(_to_tensor(state["torch"]))
    if "numpy" in state:
        np.random.set_state(_decode_arrays(state["numpy"]))  # noqa: NPY002 - global
    for name in ("cuda", "xpu"):
        device = getattr(torch, name)
        if name in state and device.is_available():
            for index, each in zip(range(device.device_count()), state[name], strict=False):
                device.set_rng_state(_to_tensor(each), index)


def capture_generator(generator: Any) -> Any:
    """Return the state of a generator of one of `generator_types`."""
    if isinstance(generator, random.Random):
        return _from_python(generator.getstate())
    if isinstance(generator, np.random.Generator):
        return _encode_arrays(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _encode_arrays(generator.get_state(legacy=False))
    return _encode(generator.get_state().numpy())


def restore_generator(generator: Any, state: Any) -> None:
    """Set a generator to what `capture_generator` returned."""
    if isinstance(generator, random.Random):
        generator.setstate(_to_python(state))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = _decode_arrays(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_decode_arrays(state))
    else:
        generator.set_state(_to_tensor(state))


def _from_python(state: tuple[Any, ...]) -> list[Any]:
    version, words, gauss = state
    return [version, _encode(np.asarray(words, dtype=np.uint32)), gauss]


def _to_python(state: list[Any]) -> tuple[Any, ...]:
    version, words, gauss = state
    return version, tuple(_decode(words).tolist()), gauss


def _to_tensor(state: Mapping[str, str]) -> torch.Tensor:
    return torch.from_numpy(_decode(state))


def _encode_arrays(state: Any) -> Any:
    """Return nested dicts with arrays encoded, and numpy's numbers as Python's."""
    if isinstance(state, dict):
        return {key: _encode_arrays(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return _encode(state)
    return state.item() if isinstance(state, np.generic) else state


def _decode_arrays(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    if state.keys() == {"dtype", "zlib"}:
        return _decode(state)
    return {key: _decode_arrays(value) for key, value in state.items()}


def _encode(array: Any) -> dict[str, str]:
    """Return a vector as text: compressed, since torch keeps 32 random bits in 64."""
    text = base64.b85encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 1)).decode()
    return {"dtype": str(array.dtype), "zlib": text}


def _decode(state: Mapping[str, str]) -> Any:
    data = zlib.decompress(base64.b85decode(state["zlib"]))
    return np.frombuffer(data, dtype=state["dtype"]).copy()
