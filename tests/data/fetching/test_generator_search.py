"""The generators and counters that a loader holds."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import numpy as np
import pytest
import torch

from brain_data.fetching.generator_search import GeneratorSearch

GENERATORS: dict[str, tuple[Any, Any]] = {
    "random.Random": (lambda: random.Random(1), lambda g: (g.random(), g.gauss(0, 1))),
    "PCG64": (lambda: np.random.default_rng(1), lambda g: g.random(3).tolist()),
    "MT19937": (lambda: np.random.Generator(np.random.MT19937(1)), lambda g: g.random()),
    "Philox": (lambda: np.random.Generator(np.random.Philox(1)), lambda g: g.random()),
    "SFC64": (lambda: np.random.Generator(np.random.SFC64(1)), lambda g: g.random()),
    "RandomState": (lambda: np.random.RandomState(1), lambda g: (g.rand(), g.randn())),
    "torch": (torch.Generator, lambda g: torch.rand(3, generator=g).tolist()),
}


class Holder:
    """Holds a value as an attribute."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def method(self) -> None:
        """Stand for a collate function."""


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_of_any_type_continues_from_its_captured_state(name: str) -> None:
    """The state is JSON; the second value of a pair of normal numbers is part of it."""
    make, draw = GENERATORS[name]
    holder = Holder(make())
    draw(holder.value)
    state = json.loads(json.dumps(GeneratorSearch(holder).capture()))
    expected = draw(holder.value)
    other = Holder(make())
    GeneratorSearch(other).restore(state)
    assert draw(other.value) == expected


@pytest.mark.parametrize(
    "hold",
    [
        lambda g: Holder(Holder(g)),
        lambda g: Holder([{"a": (g,)}]),
        lambda g: Holder(Holder(g).method),
        lambda g: Holder(functools.partial(sorted, key=Holder(g))),
        lambda g: Holder(lambda: g),
    ],
    ids=["nested", "containers", "method", "partial", "closure"],
)
def test_a_generator_is_found_at_any_depth(hold: Any) -> None:
    """In attributes, containers, bound methods, partials and closures."""
    assert len(GeneratorSearch(hold(random.Random(1))).paths()) == 1


def test_global_generators_modules_and_data_are_not_searched() -> None:
    """They are captured in another way, or are large."""
    held = [random.Random(number) for number in range(1000)]
    holder = Holder([torch.default_generator, held, torch.nn.Linear(1, 1), random])
    assert GeneratorSearch(holder).paths() == []


def test_objects_that_refer_to_each_other_are_searched_once() -> None:
    """A cycle does not hang."""
    first, second = Holder(random.Random(1)), Holder(None)
    first.other, second.value = second, first
    assert GeneratorSearch(first).paths() == [".value"]


def test_counters_that_have_changed_are_captured_and_restored() -> None:
    """Settings that have not changed are left alone."""
    holder = Holder(Holder(5))
    search = GeneratorSearch(holder)
    holder.value.value = 7
    state = search.capture()
    assert state["counters"] == {".value.value": 7}
    other = Holder(Holder(5))
    GeneratorSearch(other).restore(state)
    assert other.value.value == 7


def test_a_state_of_other_objects_is_ignored() -> None:
    """A generator may have been removed."""
    state = GeneratorSearch(Holder(random.Random(1))).capture()
    other = Holder(3)
    GeneratorSearch(other).restore(state | {"counters": {".gone.epoch": 3}})
    assert vars(other) == vars(Holder(3))
