"""The examples of the README and of the docstrings are run."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "packages" / "brain-data" / "README.md"


def test_the_example_of_the_readme_prints_what_it_says(capsys):
    """The block of the section and the text below it."""
    if not README.exists():
        pytest.skip("the tests run without the repository")
    section = README.read_text(encoding="utf-8").split("## Datasets and batches")[1]
    code, printed = re.search(
        r"```python\n(.*?)```.*?```text\n(.*?)```", section, re.DOTALL
    ).groups()
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    "name", ["batch", "collate", "dataset", "environment", "items", "manifest", "pipeline"]
)
def test_the_examples_of_the_docstrings_hold(name):
    """Each is run as it stands."""
    module = importlib.import_module(f"brain_data._{name}")
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
