"""Finds the files of a recipe, reads them, and writes them atomically."""

from __future__ import annotations

import codecs
import io
import os
import shutil
import tempfile
import tokenize
from dataclasses import dataclass
from pathlib import Path

from brain_core.move.edits import MoveError, Result
from brain_core.move.python_text import move_python
from brain_core.move.yaml_text import move_yaml

__all__ = ["RecipeFile", "find_files"]

_MOVERS = {".py": move_python, ".yaml": move_yaml, ".yml": move_yaml}


def find_files(path: str) -> list[Path]:
    """Return a file, or the Python and YAML files in a folder and the folders in it.

    Hidden folders, virtual environments and ``__pycache__`` are left out, and so are links: what
    they lead to may belong to another recipe.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    MoveError
        If the file is neither Python nor YAML.
    """
    given = Path(path)
    if not given.exists():
        raise FileNotFoundError(f"there is no file or folder {path!r}")
    if given.is_file():
        if given.suffix not in _MOVERS:
            raise MoveError(f"{path}: a file must end in .py, .yaml or .yml")
        return [given]
    found = []
    for folder, folders, names in os.walk(given):
        folders[:] = sorted(name for name in folders if _is_searched(Path(folder, name)))
        paths = [Path(folder, name) for name in sorted(names)]
        found += [each for each in paths if each.suffix in _MOVERS and not each.is_symlink()]
    return found


def _is_searched(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name == "__pycache__"
    return not hidden and not (folder / "pyvenv.cfg").exists()


@dataclass
class RecipeFile:
    """A file of a recipe.

    Attributes
    ----------
    path : Path
        Where it is.
    text : str
        Its text, with its own line ends.
    encoding : str
        Its encoding: that of a Python file's first lines, else UTF-8.
    """

    path: Path
    text: str
    encoding: str

    @classmethod
    def read(cls, path: Path) -> RecipeFile:
        """Return a file.

        Raises
        ------
        MoveError
            If it cannot be decoded.
        OSError
            If it cannot be read.
        """
        content = path.read_bytes()
        try:
            encoding = _encoding(path, content)
            return cls(path, content.decode(encoding), encoding)
        except (SyntaxError, UnicodeDecodeError, LookupError) as error:
            raise MoveError(f"this is not text in its encoding: {error}") from error

    def moved(self) -> Result:
        """Return what becomes of its text; raises MoveError if it cannot be moved."""
        return _MOVERS[self.path.suffix](self.text)

    def write(self, text: str) -> None:
        """Replace the file atomically: it has the old or the new text at any moment."""
        target = self.path.resolve()
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with open(handle, "wb") as file:
                file.write(text.encode(self.encoding))
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(target, name)
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _encoding(path: Path, content: bytes) -> str:
    """Return the encoding of a file; utf-8-sig keeps the mark at its beginning."""
    if path.suffix == ".py":
        return tokenize.detect_encoding(io.BytesIO(content).readline)[0]
    return "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-8"
