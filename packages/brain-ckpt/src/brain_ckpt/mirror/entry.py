"""A checkpoint in a mirror: the names of its objects, and its manifest there.

::

    <mirror>/BRAIN_MIRROR                      says what this is; the first writer makes it
    <mirror>/commits/0000000012.json           the manifest of publication 12; empty: deleted
    <mirror>/parts/<commit id>/<file>/00000    the first 16 MiB of a file

A manifest holds the MANIFEST.json and CKPT.yaml of its checkpoint as they are on disk.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from brain_ckpt.errors import CheckpointDamagedError, CheckpointError
from brain_ckpt.retention.checkpoint import Checkpoint
from brain_ckpt.storage.checksum import CHUNK_BYTES
from brain_ckpt.storage.layout import META_NAME, PARAMFILE_EXT, PREFIX
from brain_ckpt.storage.manifest import MANIFEST_NAME, Manifest, append_crc, load_manifest
from brain_ckpt.storage.meta import load_meta
from brain_ckpt.storage.meta_arrays import restore_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARKER = "BRAIN_MIRROR"
COMMITS = "commits/"
PARTS = "parts/"
FORMAT = 1

_DIGITS = 10


class Part(NamedTuple):
    """One object: the number of the chunk of a file, its bytes, and its checksum."""

    key: str
    file: str
    start: int
    size: int
    checksum: str


@dataclass(frozen=True)
class Entry:
    """The manifest of a checkpoint in a mirror.

    Parameters
    ----------
    number : int
        The number of its publication; each is one more than the one before.
    name : str
        The name of its directory.
    writer : str
        The process that published it, for the error of a second one.
    manifest_text, meta_text : str
        The content of its MANIFEST.json and CKPT.yaml.
    manifest : Manifest
        The parsed manifest.
    """

    number: int
    name: str
    writer: str
    manifest_text: str
    meta_text: str
    manifest: Manifest

    @property
    def commit_id(self) -> str:
        """The identity of the save, the same as on disk."""
        return self.manifest.commit_id

    @property
    def size_bytes(self) -> int:
        """The size of all its files in bytes."""
        return sum(digest.size for digest in self.manifest.files.values())

    def checkpoint(self, root: Path) -> Checkpoint:
        """Return it as a checkpoint in a directory, where its files may be missing."""
        path = root / self.name
        meta = load_meta(self.meta_text.encode(), f"the {META_NAME} of {self.name}")
        restore_arrays(meta, self.manifest.meta_arrays)
        files = {
            name.removesuffix(PARAMFILE_EXT): path / name
            for name in self.manifest.files
            if "/" not in name and name.endswith(PARAMFILE_EXT)
        }
        return Checkpoint(path, meta, files, commit_id=self.commit_id, size_bytes=self.size_bytes)


def commit_key(number: int) -> str:
    """Return the key of a manifest; keys sort by number."""
    return f"{COMMITS}{number:0{_DIGITS}d}.json"


def number_of(key: str) -> int | None:
    """Return the number in the key of a manifest; None for another key."""
    digits = key.removeprefix(COMMITS).removesuffix(".json")
    return int(digits) if digits.isdecimal() and commit_key(int(digits)) == key else None


def parts_prefix(commit_id: str) -> str:
    """Return what the keys of all parts of a checkpoint begin with."""
    return f"{PARTS}{commit_id}/"


def commit_of(key: str) -> str:
    """Return the commit id in the key of a part."""
    return key.removeprefix(PARTS).partition("/")[0]


def parts_of(manifest: Manifest) -> Iterator[Part]:
    """Yield the parts of all files of a checkpoint."""
    for file in sorted(manifest.files):
        yield from parts_of_file(manifest, file)


def parts_of_file(manifest: Manifest, file: str) -> Iterator[Part]:
    """Yield the parts of one file; an empty file has none."""
    digest = manifest.files[file]
    for number, checksum in enumerate(digest.chunks):
        start = number * CHUNK_BYTES
        size = min(CHUNK_BYTES, digest.size - start)
        key = f"{parts_prefix(manifest.commit_id)}{file}/{number:05d}"
        yield Part(key, file, start, size, checksum)


def dump_entry(entry: Entry) -> bytes:
    """Return the content of a manifest, which ends in its own checksum."""
    return append_crc(
        {
            "format": FORMAT,
            "number": entry.number,
            "name": entry.name,
            "commit": entry.commit_id,
            "writer": entry.writer,
            META_NAME: entry.meta_text,
            MANIFEST_NAME: entry.manifest_text,
        }
    )


def load_entry(content: bytes | bytearray, where: str) -> Entry:
    """Parse a manifest; `where` is its URL, for the errors.

    Raises
    ------
    CheckpointDamagedError
        If it does not match its own checksum.
    UnsafeCheckpointError
        If it names a file outside its directory.
    CheckpointError
        If a newer version of this package wrote it.
    """
    try:
        fields = json.loads(content)
        is_newer = fields["format"] != FORMAT
        entry_fields = (
            int(fields["number"]),
            str(fields["name"]),
            str(fields["writer"]),
            str(fields[MANIFEST_NAME]),
            str(fields[META_NAME]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointDamagedError(f"{where} is damaged: {error!r}") from error
    if is_newer:
        raise CheckpointError(
            f"{where} must be of format {FORMAT}, got {fields['format']!r}; read it with the "
            f"brain-ckpt that wrote it, or a newer one"
        )
    manifest = load_manifest(entry_fields[3].encode(), f"the {MANIFEST_NAME} in {where}")
    entry = Entry(*entry_fields, manifest)
    if dump_entry(entry) != content:
        raise CheckpointDamagedError(f"{where} is damaged: it does not match its own checksum")
    if not entry.name.startswith(f"{PREFIX}+") or "/" in entry.name or "\0" in entry.name:
        raise CheckpointDamagedError(f"{where} must name a checkpoint, got {entry.name!r}")
    return entry
