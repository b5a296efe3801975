"""The package loads a module when a name of it is first used."""

import subprocess
import sys

import pytest

import brain_ckpt


def test_every_public_name_has_a_module_that_holds_it():
    """The list of names and the list of their modules are one list."""
    assert sorted(brain_ckpt._home) == sorted(brain_ckpt.__all__)
    assert all(getattr(brain_ckpt, name) is not None for name in brain_ckpt.__all__)


def test_public_names_are_seen_before_they_are_loaded():
    """``dir()`` and completion do not depend on what was used before."""
    program = "import brain_ckpt; assert set(brain_ckpt.__all__) <= set(dir(brain_ckpt))"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_name_that_is_not_there_is_an_attribute_error():
    """As for any module, so that ``hasattr`` and a misspelt import say what they always say."""
    with pytest.raises(AttributeError, match="has no attribute 'Chekpointer'"):
        brain_ckpt.Chekpointer  # noqa: B018 - the look-up is what is tested


def test_yaml_is_loaded_where_a_file_is_read():
    """It takes longer to import than this package."""
    program = (
        "import sys, torch; before = set(sys.modules); from brain_ckpt import Checkpointer; "
        "assert 'yaml' not in set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
