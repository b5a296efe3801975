"""Reading what torch.save wrote: never running code, unless that is asked for by name."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, cast

import torch

from brain_ckpt.errors import CheckpointDamagedError, UnsafeCheckpointError
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.meta import load_plain_yaml

if TYPE_CHECKING:
    from pathlib import Path

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_TEXT_LIMIT_BYTES = 2**20
_READ_BYTES = 2**20

# Keys that SpeechBrain has respelled since (its pull requests 2489 and 2463).
_RESPELLED = {
    ".mutihead_attn": ".multihead_attn",
    ".convs_intermedite": ".convs_intermediate",
}


def read_state(path: Path, *, trusted: bool = False, mmap: bool = False) -> Any:
    """Read a state that torch.save wrote, or one of SpeechBrain's text formats.

    Parameters
    ----------
    path : Path
        The file.
    trusted : bool
        True unpickles anything, which runs whatever code the file names.
    mmap : bool
        Tensors come from the page cache when they are read; only for who copies them.

    Returns
    -------
    object
        On the CPU.

    Raises
    ------
    UnsafeCheckpointError
        If the file asks for code, and is not trusted.
    CheckpointDamagedError
        If it cannot be read.
    """
    magic = _magic(path)
    if not magic.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        return load_plain_yaml(filesystem.read(path, _TEXT_LIMIT_BYTES), str(path))
    mmap = mmap and magic.startswith(_ZIP_MAGIC)
    try:
        state = torch.load(path, map_location="cpu", weights_only=not trusted, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise CheckpointDamagedError(f"{path} cannot be unpickled: {error}") from error
        raise UnsafeCheckpointError(
            f"{path} may hold tensors and plain values only, got more: {_first_line(error)}; "
            f"if you trust who wrote it, load it with trusted=True"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, struct.error, OSError) as error:
        raise CheckpointDamagedError(f"{path} cannot be read: {_first_line(error)}") from error
    return respell(state)


def respell(state: Any) -> Any:
    """Give keys of old SpeechBrain models the names that they have now."""
    if not isinstance(state, dict) or not any(
        old in key for key in state if isinstance(key, str) for old in _RESPELLED
    ):
        return state
    renamed = type(state)()
    for key, value in state.items():
        for old, new in _RESPELLED.items():
            key = key.replace(old, new) if isinstance(key, str) else key  # noqa: PLW2901
        renamed[key] = value
    return renamed


def own_damage(path: Path, *, trusted: bool = False) -> str | None:
    """Find damage by what a file itself holds, for checkpoints without a manifest.

    Parameters
    ----------
    path : Path
        The file.
    trusted : bool
        Whether tensors without checksums are let through.

    Returns
    -------
    str or None
        What is wrong, naming the file.  A file in a text format of SpeechBrain's holds no
        checksum; that it is not empty is all that can be said of it.
    """
    try:
        magic = _magic(path)
        if not magic:
            return f"{path.name} is empty"
        if magic.startswith(_ZIP_MAGIC):
            return _zip_damage(path, trusted=trusted)
        if magic.startswith(_PICKLE_MAGIC):
            # The old format has no checksum; that it can be read to its end has to do.
            torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = "weights_only" in str(error).lower() and "Unsupported" in str(error)
        return None if unsafe else f"{path.name} cannot be unpickled: {_first_line(error)}"
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes a reader raise
        return f"{path.name} cannot be read: {_first_line(error)}"
    return None


def _magic(path: Path) -> bytes:
    with filesystem.opened(path) as (descriptor, _):
        return filesystem.read_at(descriptor, 4, 0)


def _zip_damage(path: Path, *, trusted: bool) -> str | None:
    with (
        filesystem.opened(path) as (descriptor, size),
        zipfile.ZipFile(_file(descriptor)) as archive,
    ):
        for entry in archive.infolist():
            # torch.save stores, never compresses: anything else is a bomb, or not torch's.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                return f"{path.name} holds {entry.filename!r}, which torch.save did not write"
        if all(entry.CRC == 0 for entry in archive.infolist()):
            # With torch's checksums turned off, as this package writes it: beside a manifest.
            if trusted:
                return None
            return (
                f"MANIFEST.json is missing, and {path.name} has no checksums of its own (load it "
                f"with trusted=True if something other than brain-ckpt wrote it)"
            )
        for entry in archive.infolist():
            with archive.open(entry) as content:
                crc = 0
                while part := content.read(_READ_BYTES):
                    crc = zlib.crc32(part, crc)
            if crc != entry.CRC:
                return f"{path.name} is damaged in {entry.filename!r}"
    return None


def _file(descriptor: int) -> Any:
    return cast("Any", open(descriptor, "rb", closefd=False))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
