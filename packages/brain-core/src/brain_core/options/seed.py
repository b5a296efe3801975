"""Seeding every generator that a training draws from."""

from __future__ import annotations

import logging
import os
import random

import numpy as np
import torch

from brain_core.options.determinism import prepare_determinism

__all__ = ["seed_everything", "seed_generators", "seed_per_rank"]

logger = logging.getLogger(__name__)

_LARGEST = 2**32 - 1  # NumPy's limit


def seed_everything(seed: int = 0, verbose: bool = True, deterministic: bool = False) -> int:
    """Seed Python, NumPy and torch on every device, and the order of the data.

    All ranks get the same seed here, so that they build the same model. `Brain` seeds each rank
    differently once the modules are wrapped, so that dropout differs between ranks.

    Parameters
    ----------
    seed : int
        0 to 2**32 - 1.
    verbose : bool
        Log the seed.
    deterministic : bool
        Also use deterministic algorithms from now on; an operation that has none raises.
        ``RunOptions.deterministic`` does so only during training and evaluation, and logs an
        operation that has none.

    Returns
    -------
    int
        The seed.

    Raises
    ------
    ValueError
        For a seed that NumPy cannot take. SpeechBrain takes 0 instead.
    """
    if not 0 <= seed <= _LARGEST:
        raise ValueError(f"A seed must be between 0 and {_LARGEST}, got {seed!r}.")
    if verbose:
        logger.info("Setting seed to %d", seed)
    os.environ["SB_GLOBAL_SEED"] = str(seed)  # where loaders look for the order's seed
    seed_generators(seed)
    if deterministic:
        prepare_determinism(device=None)
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return seed


def seed_per_rank(rank: int) -> None:
    """Seed every rank but 0 differently, from the common seed."""
    if rank > 0:
        seed_generators((torch.initial_seed() + 0x9E3779B9 * rank) % (_LARGEST + 1))


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, and nothing else."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the global one is what recipes draw from
    torch.manual_seed(seed)  # every device too
