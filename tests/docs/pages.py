"""The pages of the documentation and their code blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
FENCE = re.compile(
    r'^(?P<fence>`{3,})(?P<language>\w*)(?: title="(?P<title>[^"]*)")?\n(?P<code>.*?)^(?P=fence)$',
    flags=re.MULTILINE | re.DOTALL,
)
SNIPPET = re.compile(r"^--8<--\n(.+)\n--8<--$", flags=re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, its title, its code, and the line where the code begins."""

    language: str
    title: str
    code: str
    line: int


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page; files that it shows are read."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            found["language"],
            found["title"] or "",
            SNIPPET.sub(lambda named: read(named[1]), found["code"]),
            text.count("\n", 0, found.start("code")),
        )
        for found in FENCE.finditer(text)
    ]


def read(name: str) -> str:
    """Return a file of the repository without its last line break."""
    return (ROOT / name).read_text(encoding="utf-8").removesuffix("\n")


def name_of(path: Path) -> str:
    """Return a page's path in the repository."""
    return path.relative_to(ROOT).as_posix()
