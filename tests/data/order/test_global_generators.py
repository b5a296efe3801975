"""Python's global generator is saved and restored as memory."""

from __future__ import annotations

import random
import sys

import pytest

from brain_data.order.global_generators import _PythonGenerator


@pytest.fixture
def generator() -> _PythonGenerator:
    """Return one that has checked nothing yet."""
    return _PythonGenerator()


@pytest.fixture
def elsewhere() -> _PythonGenerator:
    """Return one in an interpreter that keeps the state at another place."""
    return _PythonGenerator(header_bytes=0)


@pytest.mark.parametrize("name", ["generator", "elsewhere"])
@pytest.mark.parametrize("draws", [0, 1, 7, 623, 624, 625, 2000])
def test_what_is_saved_is_restored(request: pytest.FixtureRequest, name: str, draws: int) -> None:
    """Wherever the position is, with and without the second of a pair of normal numbers."""
    generator = request.getfixturevalue(name)
    random.seed(draws)
    for _ in range(2):
        for _ in range(draws):
            random.getrandbits(32)
        before = random.getstate()
        saved = generator.save()
        random.seed(5)
        drawn = [random.gauss(0, 1), random.random(), random.randrange(10**9)]
        generator.restore(saved)
        assert random.getstate() == before
        random.seed(5)
        assert drawn == [random.gauss(0, 1), random.random(), random.randrange(10**9)]
        generator.restore(saved)
        random.gauss(0, 1)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="other layouts are not known")
def test_in_cpython_the_state_is_found_in_memory(generator: _PythonGenerator) -> None:
    """Where it is not, a batch takes ten microseconds more."""
    generator.save()
    assert generator._address is not None


def test_elsewhere_the_public_functions_are_used(elsewhere: _PythonGenerator) -> None:
    """What lies at the address is compared with the state before it is used."""
    assert elsewhere.save() == random.getstate()


def test_a_replaced_function_of_random_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose generator is not known."""
    state = random.getstate()
    monkeypatch.setattr(random, "getstate", lambda: state)
    assert _PythonGenerator().save() is state
