"""Read the values in the state files of a checkpoint, one by one, without running code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.errors import CheckpointDamagedError, UsageError
from brain_ckpt.loading.shards import assemble
from brain_ckpt.recoverables.serialization import read_plain_state
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.file_format import file_format
from brain_ckpt.storage.layout import PARAMFILE_EXT

if TYPE_CHECKING:
    from brain_ckpt.storage.opened import OpenedCheckpoint

_STATE_SUFFIXES = (PARAMFILE_EXT, ".pt", ".pth")
_TEXT_SUFFIXES = (".json", ".yaml", ".yml", ".txt")
_TEXT_LIMIT_BYTES = 2**20


@dataclass(frozen=True)
class Entry:
    """One value in a state.

    Parameters
    ----------
    key : str
        Its path in the state, with dots between levels.
    value : object
        A tensor or a plain value.
    """

    key: str
    value: Any

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of a tensor; None for anything else."""
        return tuple(self.value.shape) if isinstance(self.value, torch.Tensor) else None

    @property
    def dtype(self) -> str:
        """The dtype of a tensor, as in "float32"; the type of anything else."""
        if isinstance(self.value, torch.Tensor):
            return str(self.value.dtype).removeprefix("torch.")
        return type(self.value).__name__

    @property
    def size_bytes(self) -> int:
        """The size of a tensor in bytes; 0 for anything else."""
        is_tensor = isinstance(self.value, torch.Tensor)
        return self.value.numel() * self.value.element_size() if is_tensor else 0

    @property
    def single_value(self) -> Any:
        """The value, or that of a tensor of one element; None for other tensors."""
        if not isinstance(self.value, torch.Tensor):
            return self.value
        return self.value.item() if self.value.numel() == 1 else None


def state_files(opened: OpenedCheckpoint) -> list[str]:
    """Return the names of the files with states, below the directory."""
    if opened.manifest is None:
        walked = filesystem.walk(opened.directory)
        names = [name for name, directory in walked if not directory]
    else:
        names = list(opened.manifest.files)
    return [
        name
        for name in names
        if name.endswith(_STATE_SUFFIXES)
        or (name.endswith(_TEXT_SUFFIXES) and Path(name).stem + PARAMFILE_EXT in names)
    ]


def choose_file(opened: OpenedCheckpoint, requested: str) -> str:
    """Return the name of the file of a recoverable, or of a file name.

    Raises
    ------
    UsageError
        If there is none.
    """
    files = state_files(opened)
    for name in (requested, requested + PARAMFILE_EXT):
        if name in files:
            return name
    raise UsageError(
        f"FILE must be in {opened.checkpoint.path.name}, got {requested!r}; it holds "
        f"{', '.join(files) or 'none'}"
    )


def read_state_of(opened: OpenedCheckpoint, name: str) -> Any:
    """Read a state file of a checkpoint, by its name below the directory; see `read_file`."""
    return read_file(opened.locate(name), Path(name).stem, opened.locate)


def read_file(file: Path, name: str, locate: Callable[[str], Path] | None = None) -> Any:
    """Read a state; text is returned as it is, and tensors are mapped.

    Parameters
    ----------
    file : Path
        The file.
    name : str
        The name of its recoverable.
    locate : callable, optional
        Returns the paths of the shards of its checkpoint; by default they are beside the file.

    Raises
    ------
    CheckpointDamagedError, UnsafeCheckpointError
        If it cannot be read, or names code to run.
    """
    try:
        if file_format(file) in ("text", "empty"):
            return filesystem.read(file, _TEXT_LIMIT_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointDamagedError(f"{file} cannot be read: {error}") from error
    state = read_plain_state(file)
    return assemble(None, state, locate or file.parent.joinpath, name)


def entries(state: Any) -> list[Entry]:
    """Return all values of a nested state, in its order."""
    return [Entry(key, value) for key, value in _flat(state, "")]


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    children: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping) and value:
        children = iter(value.items())
    elif isinstance(value, list | tuple) and any(_is_nested(inner) for inner in value):
        children = iter(enumerate(value))
    if children is None:
        yield path, value
        return
    for key, inner in children:
        yield from _flat(inner, f"{path}.{key}" if path else str(key))


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple | torch.Tensor)
