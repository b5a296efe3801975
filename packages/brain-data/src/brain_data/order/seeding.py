"""Random draws of a batch, seeded by the place of the batch in the plan.

What a dataset or a collate function draws from torch, numpy or random depends on (seed, epoch,
place) only. It is therefore the same in any worker, without workers, and after a restart, and none
of it is saved. Without workers the code runs in the main process, whose generators are restored.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_SEED = 563375142
"""SpeechBrain's, used if neither a seed nor SB_GLOBAL_SEED is given."""

_MASK64 = (1 << 64) - 1
_MT19937_BYTES = 2500  # 624 words and a position: what numpy documents at `state_address`


def global_seed() -> int:
    """Return the seed of the run: SB_GLOBAL_SEED if it is set, else SpeechBrain's default."""
    text = os.environ.get("SB_GLOBAL_SEED")
    if text is None:
        return DEFAULT_SEED
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"SB_GLOBAL_SEED must be an integer, got {text!r}: set it to one, or unset it"
        ) from None


def hash_integers(*numbers: int) -> int:
    """Hash integers into 64 bits, the same on any machine (splitmix64's finaliser after each)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + (number & _MASK64) * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def seed_generators(seed: int) -> None:
    """Seed torch's CPU generator, random, and numpy if it is loaded; for a worker process.

    `torch.manual_seed` is not called: it also seeds every accelerator, which takes a hundred
    times as long and initializes CUDA in a forked process.
    """
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Seed the generators of the main process for a block, and restore them after it.

    Takes about 30 µs if the training loop has not drawn from numpy's global generator since the
    last call, and 170 µs if it has.
    """
    torch_state = torch.default_generator.get_state()
    random_state = random.getstate()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    saved = None if numpy is None else _numpy_swap.install(numpy, seed & 0xFFFFFFFF)
    try:
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        random.setstate(random_state)
        if saved is not None:
            _numpy_swap.restore(numpy, saved)


@dataclass
class _NumpySwap:
    """Replaces numpy's global generator by swapping a pointer.

    ``numpy.random.get_state`` takes 70 µs and ``set_bit_generator`` less than one, but the latter
    loses the second value of a pair of normal numbers, which numpy keeps for the next call. The
    whole state is therefore read and restored unless the generator's memory is unchanged since the
    last time that it had no such value.
    """

    replacement: Any = None
    known: tuple[int, bytes] | None = None

    def install(self, numpy: Any, seed: int) -> tuple[Any, Any]:
        """Install a seeded generator; return what `restore` needs."""
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

    def restore(self, numpy: Any, saved: tuple[Any, Any]) -> None:
        """Install the original generator again."""
        original, state = saved
        numpy.random.set_bit_generator(original)
        if state is not None:
            numpy.random.set_state(state)


def _memory_of(numpy: Any, generator: Any) -> tuple[int, bytes] | None:
    """Return address and content of the generator's state; None unless it is an MT19937."""
    if type(generator) is not numpy.random.MT19937:
        return None
    address = generator.ctypes.state_address
    return address, ctypes.string_at(address, _MT19937_BYTES)


_numpy_swap = _NumpySwap()
