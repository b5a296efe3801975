"""A package whose modules are imported at the first use of a name."""

import importlib
import sys

import pytest

import brain_dist
from brain_dist.lazy import check_same_version

INIT = """
from brain_dist.lazy import load_on_first_use

__all__ = ["one", "two", "sqrt"]
__getattr__, __dir__ = load_on_first_use(__name__, {"._part": "one two", "math": "sqrt"})
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package with two names of its own module, and one of another package."""
    (tmp_path / "lazily_made").mkdir()
    (tmp_path / "lazily_made/__init__.py").write_text(INIT)
    (tmp_path / "lazily_made/_part.py").write_text("one, two = object(), 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("lazily_made")
    for name in ("lazily_made", "lazily_made._part"):
        sys.modules.pop(name, None)


def test_a_module_is_loaded_by_the_first_use_of_a_name(package):
    assert "lazily_made._part" not in sys.modules
    assert package.two == 2
    assert "lazily_made._part" in sys.modules


def test_a_name_is_looked_up_once_and_stays_the_same_object(package):
    first = package.one
    assert vars(package)["one"] is first is package.one


def test_a_name_of_another_package_can_be_exported(package):
    from lazily_made import sqrt

    assert sqrt(9) == 3 == package.sqrt(9)


def test_all_names_are_seen_before_they_are_loaded(package):
    assert {"one", "two", "sqrt", "__all__"} <= set(dir(package))
    assert "lazily_made._part" not in sys.modules


def test_a_misspelt_name_is_an_attribute_error_as_for_any_module(package):
    with pytest.raises(AttributeError, match="module 'lazily_made' has no attribute 'ome'"):
        package.ome  # noqa: B018 - the look-up is what is tested


def test_a_sibling_of_another_version_is_an_error_that_names_both():
    with pytest.raises(
        ImportError, match=r"brain-core 9\.9\.9 requires brain-dist 9\.9\.9, but .*"
    ):
        check_same_version("brain_core", "9.9.9")
    check_same_version("brain_core", brain_dist.__version__)
