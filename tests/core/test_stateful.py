"""Objects with a state to save."""

from __future__ import annotations

import torch

from brain_ckpt import mark_as_saver
from brain_core.stateful import is_stateful, named_by_class


class SavesAFile:
    """Saves itself by a marked method."""

    @mark_as_saver
    def save(self, path):
        """Do nothing."""


def test_an_object_has_a_state_by_its_methods():
    """Both methods of a state, or one that saves a file."""
    assert is_stateful(torch.nn.Linear(1, 1))
    assert is_stateful(SavesAFile())
    assert not is_stateful(object())


def test_objects_of_one_class_are_numbered_from_the_second_on():
    """In their order; the name of the first does not depend on the others."""
    assert named_by_class([1, "a", 2, 3]) == {"int": 1, "str": "a", "int-2": 2, "int-3": 3}
