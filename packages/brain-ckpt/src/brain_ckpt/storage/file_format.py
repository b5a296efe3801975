"""The format of a state file, and the damage that the file itself can show.

torch.save writes a zip file, and wrote a bare pickle before torch 1.6.  SpeechBrain also writes
text.  A zip file holds a CRC-32 of each entry, unless torch's setting for it was turned off.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from brain_ckpt.storage import filesystem

if TYPE_CHECKING:
    from pathlib import Path

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_READ_BYTES = 2**20


def file_format(path: Path) -> Literal["zip", "pickle", "text", "empty"]:
    """Return the format of a state file by its first bytes."""
    with filesystem.opened(path) as (descriptor, _):
        magic = filesystem.read_at(descriptor, len(_ZIP_MAGIC), 0)
    if magic == _ZIP_MAGIC:
        return "zip"
    if magic.startswith(_PICKLE_MAGIC):
        return "pickle"
    return "text" if magic else "empty"


def find_damage(path: Path, name: str, *, trusted: bool = False) -> str | None:
    """Find damage in a file that has no manifest, by the checksums that the file itself holds.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        Its name, for the text.
    trusted : bool
        Whether to accept a zip file without checksums.

    Returns
    -------
    str or None
        The damage, with the name of the file.  A text file has no checksum: it is only checked
        for being empty.
    """
    try:
        kind = file_format(path)
        if kind == "empty":
            return f"{name} is empty"
        if kind == "zip":
            return _zip_damage(path, name, trusted=trusted)
        if kind == "pickle":
            # The old format has no checksum; reading it to its end is the only check there is.
            torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = "weights_only" in str(error).lower() and "Unsupported" in str(error)
        return None if unsafe else f"{name} cannot be unpickled: {first_line(error)}"
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        return f"{name} cannot be read: {first_line(error)}"
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def _zip_damage(path: Path, name: str, *, trusted: bool) -> str | None:
    with (
        filesystem.opened(path) as (descriptor, size),
        zipfile.ZipFile(_file_object(descriptor)) as archive,
    ):
        for entry in archive.infolist():
            # torch.save never compresses; a compressed entry may be a zip bomb.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                return f"{name} holds {entry.filename!r}, which torch.save did not write"
        if all(entry.CRC == 0 for entry in archive.infolist()):
            # This package turns torch's checksums off, because its manifest has its own.
            if trusted:
                return None
            return (
                f"MANIFEST.json is missing, and {name} has no checksums of its own (load it "
                f"with trusted=True if something other than brain-ckpt wrote it)"
            )
        for entry in archive.infolist():
            if _crc32(archive, entry) != entry.CRC:
                return f"{name} is damaged in {entry.filename!r}"
    return None


def _crc32(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    crc = 0
    with archive.open(entry) as content:
        while part := content.read(_READ_BYTES):
            crc = zlib.crc32(part, crc)
    return crc


def _file_object(descriptor: int) -> Any:
    return cast("Any", open(descriptor, "rb", closefd=False))
