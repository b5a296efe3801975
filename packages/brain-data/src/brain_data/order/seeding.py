"""Random draws of a batch, seeded by the place of the batch in the plan.

What a dataset or a collate function draws from torch, numpy or random depends on (seed, epoch,
place) only. It is therefore the same in any worker, without workers, and after a restart, and none
of it is saved. Without workers the code runs in the main process, whose generators are restored.
"""

from __future__ import annotations

import os
import random
import sys

import torch

from brain_data.order.global_generators import numpy_generator, python_generator

DEFAULT_SEED = 563375142
"""SpeechBrain's, used if neither a seed nor SB_GLOBAL_SEED is given."""

_MASK64 = (1 << 64) - 1
_MASK63 = (1 << 63) - 1  # of seeds: torch.initial_seed() then fits into an int64 tensor


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
    seed &= _MASK63
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed & 0xFFFFFFFF)


class TemporarySeed:
    """Seeds the generators of the main process for a block, and restores them after it.

    Takes about 12 µs if the training loop has not drawn from numpy's global generator since the
    last block, and 35 µs if it has. An object is for one block.

    Parameters
    ----------
    seed : int
        Its lowest 63 bits are used, for numpy the lowest 32.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed & _MASK63

    def __enter__(self) -> None:
        """Seed the generators."""
        seed, numpy = self._seed, sys.modules.get("numpy")
        self._torch_state = torch.default_generator.get_state()
        self._random_state = python_generator.save()
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        self._numpy_state = (
            None if numpy is None else numpy_generator.replace(numpy, seed & 0xFFFFFFFF)
        )

    def __exit__(self, *exception: object) -> None:
        """Restore them."""
        torch.default_generator.set_state(self._torch_state)
        python_generator.restore(self._random_state)
        if self._numpy_state is not None:
            numpy_generator.put_back(sys.modules["numpy"], self._numpy_state)
