"""The global generators of random and numpy, set aside for a batch without copying each word.

``random.getstate`` makes an object of each of 624 words, and ``numpy.random.get_state`` takes
70 µs. Both are Mersenne twisters, whose state is 2500 bytes of memory.
"""

from __future__ import annotations

import ctypes
import random
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["numpy_generator", "python_generator"]

_WORDS = 624
_STATE_BYTES = 2500  # the words of 4 bytes, and a position among them


class _PythonGenerator:
    """Saves and restores the state of random's global generator.

    In CPython the state follows the header of the object. That is checked once, against what
    ``getstate`` returns; where it does not hold, ``getstate`` and ``setstate`` are used.

    Parameters
    ----------
    header_bytes : int
        The size of the header.
    """

    def __init__(self, header_bytes: int = object.__basicsize__) -> None:
        self._generator: Any = getattr(random.getstate, "__self__", None)
        self._header_bytes = header_bytes

    def save(self) -> Any:
        """Return the state, for `restore`."""
        if self._address is None:
            return random.getstate()
        return ctypes.string_at(self._address, _STATE_BYTES), self._generator.gauss_next

    def restore(self, saved: Any) -> None:
        """Set the state to one that `save` returned."""
        if self._address is None:
            random.setstate(saved)
        else:
            memory, self._generator.gauss_next = saved
            ctypes.memmove(self._address, memory, _STATE_BYTES)

    @cached_property
    def _address(self) -> int | None:
        """Where the state is in memory; None if that is not known."""
        generator, header = self._generator, self._header_bytes
        if type(generator) is not random.Random:
            return None
        if type(generator).__basicsize__ < header + _STATE_BYTES:
            return None
        address = id(generator) + header
        position, *words = struct.unpack(f"i{_WORDS}I", ctypes.string_at(address, _STATE_BYTES))
        return address if generator.getstate()[1] == (*words, position) else None


@dataclass
class _NumpyGenerator:
    """Replaces numpy's global generator by swapping a pointer.

    ``set_bit_generator`` takes less than a microsecond, but loses the second value of a pair of
    normal numbers, which numpy keeps for the next call. The whole state is therefore read and
    restored unless the generator's memory is unchanged since the last time that it had no such
    value.
    """

    replacement: Any = None
    known: tuple[int, bytes] | None = None

    def replace(self, numpy: Any, seed: int) -> tuple[Any, Any]:
        """Install a seeded generator; return what `put_back` needs."""
        original = numpy.random.get_bit_generator()
        state = None
        memory = _memory_of(numpy, original)
        if memory is None or memory != self.known:
            state = numpy.random.get_state(legacy=False)
            self.known = None if state.get("has_gauss") else memory
        if self.replacement is None:
            self.replacement = numpy.random.MT19937(0)
        numpy.random.set_bit_generator(self.replacement)
        numpy.random.seed(seed)
        return original, state if state is not None and state.get("has_gauss") else None

    def put_back(self, numpy: Any, replaced: tuple[Any, Any]) -> None:
        """Install the original generator again."""
        original, state = replaced
        numpy.random.set_bit_generator(original)
        if state is not None:
            numpy.random.set_state(state)


def _memory_of(numpy: Any, generator: Any) -> tuple[int, bytes] | None:
    """Return address and content of the generator's state; None unless it is an MT19937."""
    if type(generator) is not numpy.random.MT19937:
        return None
    address = generator.ctypes.state_address  # documented by numpy
    return address, ctypes.string_at(address, _STATE_BYTES)


python_generator = _PythonGenerator()
numpy_generator = _NumpyGenerator()
