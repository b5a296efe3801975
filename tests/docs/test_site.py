"""The site: every page is in it, every public name has a place, and every path in it exists."""

from __future__ import annotations

import ast
import importlib
import re

import pytest
import yaml
from pages import DOCS, PAGES, ROOT, blocks, name_of

PACKAGES = ("brain_dist", "brain_ckpt", "brain_data", "brain_core")
TEXTS = {name_of(path): path.read_text(encoding="utf-8") for path in PAGES}
MKDOCS = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_on_its_page_of_the_reference(package):
    """Once, and no other name is."""
    text = TEXTS[f"docs/reference/{package}.md"]
    named = re.findall(rf"^::: {package}\.(\S+)$", text, flags=re.MULTILINE)
    expected = list(importlib.import_module(package).__all__)
    if package == "brain_core":
        testing = importlib.import_module("brain_core.testing")
        expected += [f"testing.{name}" for name in testing.__all__]
    assert sorted(named) == sorted(expected)


def test_every_page_is_in_the_navigation():
    """A reader finds each page without the search."""
    listed = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", MKDOCS, flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in PAGES)


def test_links_between_pages_lead_to_files():
    """`nox -s docs` checks the anchors, too."""
    wrong = [
        (path.name, link)
        for path in PAGES
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", without_code(path))
        if not (path.parent / link).resolve().is_file()
    ]
    assert wrong == []


def test_the_site_asks_no_other_host():
    """No font and no script is loaded from elsewhere: see docs/_site.py, which checks the pages."""
    settings = yaml.load(MKDOCS, Loader=yaml.BaseLoader)
    assert settings["theme"]["font"] == "false"
    assert settings["strict"] == "true"
    assert settings["hooks"] == ["docs/_site.py"]
    assert "extra_javascript" not in settings


def test_tests_that_a_page_names_exist():
    """As `tests/file.py` or `tests/file.py::test_name`."""
    named = [
        (page, *pair)
        for page, text in TEXTS.items()
        for pair in re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", text)
    ]
    assert len(named) > 40
    assert [row for row in named if not defines(row[1], row[2])] == []


def test_files_that_a_page_names_exist():
    """As a path from the root of the repository."""
    pattern = r"[`\s\"](?=(?:examples|benchmarks|packages|docs|chaos)/)([\w./-]*\w)[`\s\",]"
    named = [(page, path) for page, text in TEXTS.items() for path in re.findall(pattern, text)]
    assert named
    assert [row for row in named if not (ROOT / row[1]).exists()] == []


def test_commands_of_a_page_have_sessions_and_options_that_exist():
    """A session of nox, an option of a run, a subcommand of `brain-ckpt`."""
    surface = (ROOT / "tests/packaging/surface.txt").read_text(encoding="utf-8")
    options = set(re.findall(r"--[\w-]+", surface))
    subcommands = set(re.findall(r"^brain-ckpt (\w+)", surface, flags=re.MULTILINE))
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    wrong = []
    for page, line in commands():
        words = line.split()
        wrong += [
            (page, line)
            for name in re.findall(r"nox -s (\w+)", line)
            if f"def {name}(session" not in noxfile
        ]
        if words[:1] == ["brain-ckpt"] and words[1] not in subcommands:
            wrong.append((page, line))
        if re.match(r"python \S*train\.py", line):
            given = re.findall(r"(?<= )(--\w+)", line)
            wrong += [(page, option) for option in given if option not in options]
    assert wrong == []


def commands():
    """Return each line of each shell block, with its page."""
    for path in PAGES:
        for block in blocks(path):
            if block.language in {"bash", "console"}:
                for line in block.code.splitlines():
                    yield name_of(path), line.removeprefix("$ ")


def without_code(path):
    """Return a page's text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", TEXTS[name_of(path)], flags=re.MULTILINE | re.DOTALL)


def defines(path, name):
    """Return whether a file exists and defines a function."""
    file = ROOT / path
    if not file.exists():
        return False
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return not name or name in {n.name for n in body if isinstance(n, ast.FunctionDef)}
