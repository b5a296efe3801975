"""Randomness of a batch, seeded by where the batch stands in the plan.

What a dataset or a collate function draws from torch, numpy or random depends on (seed, epoch,
position) only, so it is the same in any worker, in no worker, and after a restart, and nothing of
it is saved. With no workers the code runs in the main process, whose generators are put back.
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
"""SpeechBrain's, used when neither a seed nor SB_GLOBAL_SEED is given."""

_MASK64 = (1 << 64) - 1
_MT19937_BYTES = 2500  # 624 words and a position: what numpy documents at `state_address`


def global_seed() -> int:
    """Return the seed of the run: SB_GLOBAL_SEED where it is set, else SpeechBrain's default."""
    text = os.environ.get("SB_GLOBAL_SEED")
    if text is None:
        return DEFAULT_SEED
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"SB_GLOBAL_SEED must be an integer, got {text!r}: set it to one, or unset it"
        ) from None


def mix(*numbers: int) -> int:
    """Hash integers into 64 bits (splitmix64's finaliser after each), the same on any machine."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + (number & _MASK64) * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def seed_generators(seed: int) -> None:
    """Seed torch's CPU generator, random, and numpy where it is loaded; for a worker process.

    `torch.manual_seed` is not called: it also visits every accelerator, which takes a hundred
    times as long and starts CUDA in a process that was forked.
    """
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the main process's generators for a block and put them back after it.

    About 30 µs where the block's end is reached with numpy's own generator untouched by the
    training loop, and 170 µs where the loop draws from it.
    """
    torch_state = torch.default_generator.get_state()
    random_state = random.getstate()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    restore = None if numpy is None else _numpy_swap.enter(numpy, seed & 0xFFFFFFFF)
    try:
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        random.setstate(random_state)
        if restore is not None:
            _numpy_swap.leave(numpy, restore)


@dataclass
class _NumpySwap:
    """Numpy's global generator, exchanged for one of ours at the cost of a pointer.

    ``numpy.random.get_state`` takes 70 µs, ``set_bit_generator`` less than one, but it forgets the
    second value of a pair of normal numbers that numpy keeps back. So the whole state is read and
    put back unless the generator is seen not to have moved since it was last known to keep nothing.
    """

    ours: Any = None
    seen: tuple[int, bytes] | None = None

    def enter(self, numpy: Any, seed: int) -> tuple[Any, Any]:
        """Exchange and seed; returns what `leave` needs."""
        theirs = numpy.random.get_bit_generator()
        state = None
        now = _fingerprint(numpy, theirs)
        if now is None or now != self.seen:
            state = numpy.random.get_state(legacy=False)
            self.seen = None if state.get("has_gauss") else now
        if self.ours is None:
            self.ours = numpy.random.MT19937(0)
        numpy.random.set_bit_generator(self.ours)
        numpy.random.seed(seed)
        return theirs, state if state is not None and state.get("has_gauss") else None

    def leave(self, numpy: Any, restore: tuple[Any, Any]) -> None:
        """Give numpy its own generator back."""
        theirs, state = restore
        numpy.random.set_bit_generator(theirs)
        if state is not None:
            numpy.random.set_state(state)


def _fingerprint(numpy: Any, generator: Any) -> tuple[int, bytes] | None:
    """Read the generator's memory, to see later whether it has moved; None for other kinds."""
    if type(generator) is not numpy.random.MT19937:
        return None
    address = generator.ctypes.state_address
    return address, ctypes.string_at(address, _MT19937_BYTES)


_numpy_swap = _NumpySwap()
