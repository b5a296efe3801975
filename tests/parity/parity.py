"""Runs small programs on SpeechBrain and on these packages, and compares what they return.

A program takes a generator of random numbers and the names of one library. It is run with the same
seed on both, so that both get the same arguments, made afresh. Where SpeechBrain returns a value,
ours has to return an equal one of the same type; where it raises, ours may do anything.
"""

from __future__ import annotations

import importlib
import math
import random
import types
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from brain_core.move import table

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OURS", "THEIRS", "Difference", "Random", "compare"]


class Random(random.Random):
    """Draws the forms in which a user writes an argument."""

    def tensor(self, *shape: int, kind: str = "float") -> torch.Tensor:
        """Draw a tensor of one of the common types."""
        if kind == "int":
            values = np.array([self.randint(-9, 9) for _ in range(math.prod(shape))])
            dtype = self.choice([torch.int64, torch.int64, torch.int32, torch.int16])
        else:
            values = np.array([self.uniform(-2, 2) for _ in range(math.prod(shape))])
            dtype = self.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
        return torch.from_numpy(values).to(dtype).reshape(shape)

    def number(self, value: float) -> Any:
        """Return a number as a number of Python, of NumPy, or as a tensor of one element."""
        forms = [lambda x: x, lambda x: x, np.asarray, torch.tensor, lambda x: torch.tensor([x])]
        forms += [np.int64, np.int32] if isinstance(value, int) else [np.float64, np.float32]
        forms += [float] if isinstance(value, int) else []
        return self.choice(forms)(value)

    def listed(self, values: list[Any]) -> Any:
        """Return a list as a list, a tuple, or a generator's values."""
        return self.choice([list, list, tuple, lambda x: list(iter(x))])(values)


def _library(old: bool) -> types.SimpleNamespace:
    """Return all names of the table, from SpeechBrain or from here."""
    found = {}
    for package, module, names in table._ROWS:
        source = importlib.import_module(
            ".".join(filter(None, (table.OLD, module))) if old else package
        )
        found |= {name: getattr(source, name) for name in names}
    return types.SimpleNamespace(**found)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    THEIRS, OURS = _library(old=True), _library(old=False)


class Difference(NamedTuple):
    """A seed with which the two give different results."""

    seed: int
    theirs: Any
    ours: Any


def compare(program: Callable[[Random, Any], Any], runs: int) -> tuple[list[Difference], int]:
    """Return the differences in some runs of a program, and how many of SpeechBrain's raised."""
    found, raised = [], 0
    for seed in range(runs):
        theirs, ours = outcome(program, seed, THEIRS), outcome(program, seed, OURS)
        if isinstance(theirs, BaseException):
            raised += 1
        elif isinstance(ours, BaseException) or not equal(theirs, ours):
            found.append(Difference(seed, theirs, ours))
    return found, raised


def outcome(program: Callable[[Random, Any], Any], seed: int, library: Any) -> Any:
    """Return what a program returns or raises."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return program(Random(seed), library)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - any error is an outcome
            return error


def equal(theirs: Any, ours: Any) -> bool:
    """Return whether two results are the same: values, types, shapes and the order of keys."""
    if isinstance(theirs, torch.Tensor):
        same = isinstance(ours, torch.Tensor) and ours.dtype == theirs.dtype
        return same and ours.shape == theirs.shape and torch.equal(_bits(ours), _bits(theirs))
    if isinstance(theirs, np.ndarray):
        same = isinstance(ours, np.ndarray) and ours.dtype == theirs.dtype
        return same and ours.shape == theirs.shape and bool((ours == theirs).all())
    if isinstance(theirs, dict):
        return isinstance(ours, dict) and equal(list(theirs.items()), list(ours.items()))
    if isinstance(theirs, (list, tuple)):
        kind = tuple if isinstance(theirs, tuple) else list
        same = isinstance(ours, kind) and len(ours) == len(theirs)
        return same and all(map(equal, theirs, ours))
    if isinstance(theirs, float) and math.isnan(theirs):
        return isinstance(ours, float) and math.isnan(ours)
    return bool(theirs == ours) and isinstance(ours, type(theirs))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().nan_to_num(12345.0) if tensor.is_floating_point() else tensor
