"""The examples and tables of the README."""

import contextlib
import io
import os
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import brain_dist

README = Path(__file__).parents[2] / "packages" / "brain-dist" / "README.md"


def _example(rank, code, folder):
    os.chdir(folder)
    sys.argv = ["train.py", "--cpu"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "train.py", "exec"), {"__name__": "__main__"})
    return printed.getvalue()


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_readmes_example_runs(ranks, tmp_path, free_port, world_size):
    """In one process and as torchrun starts it; it saves a model with plain keys."""
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    environ = {}
    if world_size > 1:
        environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        environ |= {"RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "{rank}"}
    printed = ranks(_example, world_size, code, str(tmp_path), group=False, environ=environ)
    assert re.match(
        rf"{world_size} process\(es\), mean output \S+, saved \['weight', 'bias'\]", printed[0]
    )
    assert printed[1:] == [""] * (world_size - 1)
    assert torch.load(tmp_path / "model.pt", weights_only=True).keys() == {"weight", "bias"}


def test_the_readme_says_what_each_public_name_does():
    """It lists no other names."""
    tables = re.findall(r"^\|(.*?)\|", README.read_text(), re.MULTILINE)
    listed = [name for cell in tables for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(brain_dist.__all__)


def _order_example(rank, code):
    state = {}
    for saved in (None, state):
        modules = {"m": torch.nn.Linear(2, 1)}
        names = {"dist": brain_dist, "modules": modules, "device": "cpu", "state": saved}
        if saved is None:
            head, tail = code.split("...\n")
            exec(head, names)
            modules["m"](torch.ones(1, 2)).sum().backward()
            names["state"] = state
            exec(tail, names)
        else:
            exec(code, names)
    return state


def test_the_readmes_lines_about_the_bucket_order_run(ranks):
    """In a new run and in a resumed one."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    code = textwrap.dedent(blocks[1])
    order = {"m": [("bias", False), ("weight", False)]}
    for state in ranks(_order_example, 3, code):
        assert {name: sorted(pairs) for name, pairs in state["order"].items()} == order
