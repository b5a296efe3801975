"""The command ``brain-move``: its options, its output and its exit codes."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING

from brain_core.move.edits import Left, MoveError
from brain_core.move.files import RecipeFile, find_files
from brain_core.move.table import OLD, as_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

NOT_MOVED, USAGE_ERROR, _PIPE_CLOSED = 1, 2, 141

_DESCRIPTION = f"""\
Move a recipe from {OLD}: rewrite the imports and names of its Python files, and the tags of its
YAML files. The changes are shown as a diff; nothing is written without --write. What is not part
of Brain stays on {OLD}, and is listed.
"""
_EPILOG = """\
{}

Names of these modules that are not listed stay. Strings and comments stay as they are. The diff
goes to the standard output, everything else to the standard error, so that
"brain-move recipe > move.patch" makes a patch. Moving twice changes nothing more.

exit codes:
  0  fine
  1  a file could not be moved, and stays as it is
  2  usage error: no such file or folder, or an invalid option
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The arguments after the name of the command; by default those of the process.

    Returns
    -------
    int
        The exit code: 0 if all is fine, 1 if a file could not be moved, 2 for a usage error.
    """
    options = _parser().parse_args(arguments)
    try:
        paths = sorted({path for each in options.paths for path in find_files(each)})
    except (OSError, MoveError) as error:
        _say(f"brain-move: {error}")
        return USAGE_ERROR
    try:
        code = _move_all(paths, write=options.write)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head, closed the pipe; avoid an error of the interpreter at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "brain-move",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(as_text()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a .py or .yaml file, or a folder")
    parser.add_argument("--write", action="store_true", help="write the files")
    return parser


def _move_all(paths: Sequence[Path], *, write: bool) -> int:
    """Show, and write if told to, what becomes of each file; return the exit code."""
    outcomes = Counter(outcome for path in paths for outcome in _move(path, write=write))
    done = "moved" if write else "would change (--write writes them)"
    _say(
        f"{len(paths)} files: {outcomes['changed']} {done}, {outcomes['stays']} still need {OLD}, "
        f"{outcomes['failed']} not moved"
    )
    return NOT_MOVED if outcomes["failed"] else 0


def _move(path: Path, *, write: bool) -> list[str]:
    """Move one file; return which of "changed", "stays" and "failed" hold."""
    try:
        file = RecipeFile.read(path)
        result = file.moved()
        changed = result.text != file.text
        if changed:
            sys.stdout.writelines(_diff(path, file.text, result.text))
        if changed and write:
            file.write(result.text)
    except BrokenPipeError:
        raise
    except (MoveError, OSError) as error:
        _say(f"{path}: not moved: {error}")
        return ["failed"]
    for line in _left_lines(path, result.left):
        _say(line)
    return ["changed"] * changed + ["stays"] * bool(result.left)


def _diff(path: Path, old: str, new: str) -> Iterable[str]:
    """Give the lines of a unified diff, with the file's own line ends."""
    name = os.path.relpath(path).replace(os.sep, "/")
    lines = difflib.unified_diff(_lines(old), _lines(new), f"a/{name}", f"b/{name}")
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(text: str) -> list[str]:
    """Return the lines of a text, ended by a line feed only, as in a patch."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _left_lines(path: Path, left: Iterable[Left]) -> list[str]:
    """Return a line for each name that stays, with all its places."""
    places: dict[tuple[str, str], list[int]] = {}
    for line, name, why in left:
        places.setdefault((name, why), []).append(line)
    return [
        f"{path}:{','.join(map(str, sorted(set(lines))))}: {name} stays: {why}"
        for (name, why), lines in places.items()
    ]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
