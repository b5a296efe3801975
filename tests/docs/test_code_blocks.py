"""Every Python block of the documentation runs, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys

import pytest
import torch
from pages import PAGES, ROOT, Block, blocks, name_of, read

# Pages whose blocks a test of their own runs.
RUN_ELSEWHERE = {"docs/my-machine-can-vanish.md": "tests/ckpt/mirror/test_page.py"}
# The title of a block that is only compiled says what it needs.
NEEDS = "needs "
NUMBER = re.compile(r"\d+\.\d+(?:e[-+]?\d+)?")
EXAMPLES = {read(name_of(path)) for path in (ROOT / "examples").rglob("*.py")}


def python_blocks(path):
    """Return the Python blocks of a page, but for whole examples, which test_examples.py runs."""
    found = [block for block in blocks(path) if block.language == "python"]
    return [block for block in found if block.code.removesuffix("\n") not in EXAMPLES]


CODE = {name_of(path): python_blocks(path) for path in [ROOT / "README.md", *PAGES]}
RUN = [name for name, found in CODE.items() if found and name not in RUN_ELSEWHERE]


@pytest.fixture
def own_directory(tmp_path, monkeypatch):
    """Work in an empty directory; afterwards logging and the generators are as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with torch.random.fork_rng(devices=[]):
        yield tmp_path
    root.level, root.handlers[:] = before


@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run_in_order(page, own_directory):
    """As one program; a text block after a Python block is what it prints or raises."""
    names = {"__name__": "__main__"}
    following = blocks(ROOT / page)
    for block, after in zip(following, [*following[1:], None], strict=True):
        if block not in CODE[page]:
            continue
        code = compile("\n" * block.line + block.code, page, "exec")
        if block.title.startswith(NEEDS):
            continue
        printed = io.StringIO()
        if after is not None and after.title == "raises":
            with pytest.raises(Exception, match=r"\w") as raised:
                exec(code, names)
            message = f"{raised.typename}: {raised.value}\n".replace(str(own_directory), "/home/me")
            assert without_operator(message) == after.code
            continue
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if is_output(after):
            assert without_fractions(printed.getvalue()) == without_fractions(after.code)


def is_output(block: Block | None) -> bool:
    """Return whether a block shows what the Python block before it prints."""
    return block is not None and block.language == "text" and block.title == "prints"


def without_operator(message: str) -> str:
    """Leave out the operator's name, which later versions of torch put before their messages."""
    return re.sub(r"^RuntimeError: \w+: ", "RuntimeError: ", message)


def without_fractions(text: str) -> str:
    """Leave the digits out that may differ between processors and versions of torch."""
    return NUMBER.sub("#", text)


def test_blocks_that_do_not_run_say_what_they_need():
    """They are few, and a reader sees it in their title."""
    titles = [block.title for found in CODE.values() for block in found if block.title]
    needs = [title for title in titles if title.startswith(NEEDS)]
    assert len(needs) <= 6
    assert all(title.startswith(NEEDS) or re.fullmatch(r"[\w/]+\.py", title) for title in titles)


def test_pages_that_another_test_runs_are_named_in_it():
    """That test reads the page."""
    for page, test in RUN_ELSEWHERE.items():
        assert page.rpartition("/")[2] in (ROOT / test).read_text(encoding="utf-8")


def test_every_block_is_found():
    """A mistake in the pattern would leave these tests without work."""
    for path in [ROOT / "README.md", *PAGES]:
        fences = re.findall(r"^ *`{3,}\w+", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert len(fences) == sum(block.language != "" for block in blocks(path)), path
