"""Publish a checkpoint in a mirror: its parts, then its manifest, which only one writer can put.

Every publication has a number that is one more than the last one.  The manifest is put by "create,
or fail" under that number, and a deleted one leaves an empty object there: of two writers that
know the same last number, the second finds the next one taken, however late it comes.
"""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from typing import TYPE_CHECKING

from brain_ckpt.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointGoneError,
    CheckpointLockedError,
)
from brain_ckpt.mirror.entry import (
    MARKER,
    Entry,
    Part,
    commit_key,
    dump_entry,
    load_entry,
    parts_of,
    parts_prefix,
)
from brain_ckpt.mirror.objects import MissingObjectError, RefusedError, UnavailableError
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.checksum import new_checksum
from brain_ckpt.storage.layout import META_NAME
from brain_ckpt.storage.manifest import MANIFEST_LIMIT_BYTES, MANIFEST_NAME, Manifest, load_manifest
from brain_ckpt.storage.meta import META_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from brain_ckpt.mirror.objects import ObjectInfo, ObjectStore
    from brain_ckpt.mirror.workers import Workers

_MARKER_TEXT = b"A mirror of checkpoints, written by brain-ckpt; format 1.\n"
# The numbers that this process has published, by URL: its own publications are no second writer.
_own_numbers: dict[tuple[int, str], set[int]] = {}
_names: dict[int, str] = {}


def writer_name() -> str:
    """Return the identity of this process."""
    pid = os.getpid()
    return _names.setdefault(
        pid, f"{uuid.uuid4().hex[:12]} (process {pid} on {socket.gethostname()})"
    )


def check_writable(store: ObjectStore) -> None:
    """Check that a mirror can be written, and refuses to create an object twice.

    Raises
    ------
    CheckpointMirrorError
        If it cannot be used; the text says what to correct.
    """
    is_first = store.create(MARKER, _MARKER_TEXT) is not None
    if is_first and store.create(MARKER, _MARKER_TEXT) is not None:
        raise RefusedError(
            f"a mirror must refuse to create an object that exists (If-None-Match), but "
            f"{store.shown} has accepted one twice; without that, two runs could overwrite each "
            f"other: use a store that supports it"
        )


def read_local(path: Path) -> tuple[str, str, Manifest]:
    """Return MANIFEST.json, CKPT.yaml and the parsed manifest of a checkpoint on disk.

    Raises
    ------
    CheckpointGoneError
        If it is deleted.
    CheckpointDamagedError
        If it has no manifest, as those of SpeechBrain, or a damaged one.
    """
    try:
        manifest_text = filesystem.read(path / MANIFEST_NAME, MANIFEST_LIMIT_BYTES)
        meta_text = filesystem.read(path / META_NAME, META_LIMIT_BYTES)
    except FileNotFoundError:
        if filesystem.is_directory(path):
            raise CheckpointDamagedError(
                f"a checkpoint must have a {MANIFEST_NAME} to be copied to a mirror, {path} has "
                f"none: load it and save it with brain-ckpt"
            ) from None
        raise CheckpointGoneError(f"{path} was deleted before it was copied") from None
    manifest = load_manifest(manifest_text, str(path / MANIFEST_NAME))
    return manifest_text.decode(), meta_text.decode(), manifest


def upload_parts(
    store: ObjectStore,
    path: Path,
    manifest: Manifest,
    is_own: Callable[[str], bool],
    uploaded: Callable[[int], object],
    workers: Workers,
) -> None:
    """Upload the parts of a checkpoint that are not in the mirror yet.

    Parameters
    ----------
    store : ObjectStore
        The mirror.
    path : Path
        The directory of the checkpoint.
    manifest : Manifest
        Its manifest.
    is_own : callable
        Whether this process uploads a file, by name.
    uploaded : callable
        Called with the bytes of each part that is there.
    workers : Workers
        The threads for it.

    Raises
    ------
    CheckpointDamagedError
        If a file differs from its checksum; a damaged file is not uploaded.
    CheckpointGoneError
        If the checkpoint is deleted meanwhile.
    UnavailableError
        If a request fails; the parts that are there need not be uploaded again.
    """
    present = {one.key: one for one in store.list(parts_prefix(manifest.commit_id))}

    def upload(part: Part) -> int:
        data = _read_part(path, part, manifest)
        _upload_part(store, part, data, present.get(part.key))
        return part.size

    own = [part for part in parts_of(manifest) if is_own(part.file)]
    for size in workers.map(upload, own):
        uploaded(size)


def missing_parts(store: ObjectStore, manifest: Manifest) -> list[str]:
    """Return the keys of the parts that are not in a mirror with the right size."""
    sizes = {one.key: one.size for one in store.list(parts_prefix(manifest.commit_id))}
    return [part.key for part in parts_of(manifest) if sizes.get(part.key) != part.size]


class Publisher:
    """Puts manifests under consecutive numbers.

    Parameters
    ----------
    store : ObjectStore
        The mirror.
    last_number : int
        The number of the last publication that this writer knows.
    """

    def __init__(self, store: ObjectStore, last_number: int) -> None:
        self._store = store
        self._own = _own_numbers.setdefault((os.getpid(), store.url), set())
        self._created: set[str] = set()
        self._has_published = False
        self.last_number = last_number

    def continue_after(self, last_number: int) -> None:
        """Take note of the last publication that was read, unless this writer has made one."""
        if not self._has_published:
            self.last_number = max(self.last_number, last_number)

    def publish(self, name: str, manifest_text: str, meta_text: str, manifest: Manifest) -> Entry:
        """Put the manifest of a checkpoint whose parts are there.

        Raises
        ------
        CheckpointLockedError
            If another run has published since `last_number`.
        UnavailableError
            If the request fails; calling again is safe, also if the manifest was put.
        """
        while True:
            number = self.last_number + 1
            entry = Entry(number, name, writer_name(), manifest_text, meta_text, manifest)
            is_put = self._put(commit_key(number), dump_entry(entry))
            self.last_number = number
            self._has_published = True
            if is_put:
                self._own.add(number)
                return entry

    def _put(self, key: str, content: bytes) -> bool:
        """Put a manifest; return False if another one of this process has the number."""
        etag = self._store.create(key, content)
        if etag is None and self.last_number + 1 in self._own:
            return False
        if etag is not None:
            self._created.add(key)
        if etag == _md5(content) or (found := self._store.read(key)) == content:
            return True  # also if the answer to an earlier attempt was lost
        if key in self._created:  # it was damaged on its way
            self._store.replace(key, content)
            if self._store.read(key) == content:
                return True
            raise UnavailableError(f"{self._store.shown}/{key} differs from what was sent")
        by = "and deleted again"
        if found:
            try:
                by = f"by {load_entry(found, key).writer}"
            except CheckpointError:
                return False  # damaged, so that it is no checkpoint of anyone
        number = self.last_number + 1
        raise CheckpointLockedError(
            f"only one run may write to {self._store.shown}, got a second one: publication "
            f"{number} was made {by}, after this run had made or read publication {number - 1}. "
            f"This run stops, and its checkpoints on this disk are kept: stop the other run, or "
            f"give this one its own mirror"
        )


def _read_part(path: Path, part: Part, manifest: Manifest) -> bytes:
    try:
        with filesystem.opened(path / part.file) as (descriptor, _):
            data = filesystem.read_at(descriptor, part.size, part.start)
    except FileNotFoundError:
        raise CheckpointGoneError(f"{path} was deleted before it was copied") from None
    running = new_checksum(manifest.algorithm)
    running.update(memoryview(data))
    if len(data) != part.size or running.hexdigest() != part.checksum:
        raise CheckpointDamagedError(
            f"{path / part.file} is damaged between byte {part.start} and "
            f"{part.start + part.size}; it is not copied to the mirror"
        )
    return data


def _upload_part(store: ObjectStore, part: Part, data: bytes, present: ObjectInfo | None) -> None:
    md5 = _md5(data)
    if present is not None and (present.size, present.etag) == (part.size, md5):
        return
    # The entity tag of S3 is the MD5 of what arrived, unless the object is encrypted; where it is
    # not, the part is read back, so that a manifest never names a part that was damaged on its way.
    if present is None and store.create(part.key, data) == md5:
        return
    try:
        if store.read(part.key) == data:
            return
    except MissingObjectError:
        pass
    store.delete([part.key])
    raise UnavailableError(f"{store.shown}/{part.key} differs from what was sent")


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
