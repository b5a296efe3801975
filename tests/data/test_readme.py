"""The examples of the README and of the docstrings print what they say."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import brain_data

README = Path(__file__).parents[2] / "packages" / "brain-data" / "README.md"
MODULES = [
    module.name
    for module in pkgutil.walk_packages(brain_data.__path__, "brain_data.")
    if not module.ispkg
]


@pytest.mark.parametrize("section", ["## Datasets and batches", "## Loader and samplers"])
def test_the_first_example_of_a_section_prints_what_the_readme_says(
    section, tmp_path, monkeypatch, capsys
):
    """A section begins with a program and its output."""
    if not README.exists():
        pytest.skip("the tests run without the repository")
    text = README.read_text(encoding="utf-8").split(section)[1]
    program, printed = re.findall(r"```(?:python|text)\n(.*?)```", text, re.DOTALL)[:2]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SB_GLOBAL_SEED", raising=False)
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_hold(name):
    """Every module's doctests pass."""
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
