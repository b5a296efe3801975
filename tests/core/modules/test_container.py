"""What is logged of the modules when a Brain is made."""

from __future__ import annotations

import doctest
import logging

import torch

from brain_core import Brain
from brain_core.modules import container


def test_the_documented_table_is_right():
    """The examples of the module pass."""
    result = doctest.testmod(container)
    assert (result.failed, result.attempted > 2) == (0, True)


def test_several_modules_are_logged_as_a_table_and_one_as_a_sentence(caplog):
    """With the share of parameters that is trainable."""
    caplog.set_level(logging.INFO)
    encoder, head = torch.nn.Linear(100, 100), torch.nn.Linear(100, 10)
    encoder.requires_grad_(requires_grad=False)
    Brain({"head": head}, run_opts={"device": "cpu"})
    Brain({"encoder": encoder, "head": head}, run_opts={"device": "cpu"})
    one, several = [r.getMessage() for r in caplog.records if "trainable" in r.getMessage()]
    assert one == "Brain has 1.0k parameters, 1.0k of them trainable (100.00%)."
    assert several.splitlines() == [
        "Brain has 11.1k parameters, 1.0k of them trainable (9.09%).",
        "  module   parameters  trainable",
        "  encoder       10.1k      0.00%",
        "  head           1.0k    100.00%",
    ]
