"""Download a checkpoint; every part is verified before it is written, and none is fetched twice.

What an interrupted download leaves is continued by the next one: the parts on disk are compared
with their checksums, and only the others are fetched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointDamagedError, CheckpointGoneError
from brain_ckpt.mirror.entry import Entry, Part, commit_key, parts_of, parts_of_file
from brain_ckpt.mirror.objects import MissingObjectError
from brain_ckpt.mirror.retries import retry
from brain_ckpt.mirror.workers import workers
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.checksum import Algorithm, new_checksum
from brain_ckpt.storage.layout import PREFIX, PULL
from brain_ckpt.storage.listing import published_directory
from brain_ckpt.storage.opened import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from brain_ckpt.mirror.objects import ObjectStore
    from brain_ckpt.storage.store import Store

_READS = 3  # an answer can be damaged on its way


def download(
    store: ObjectStore,
    entry: Entry,
    directory: Store,
    progress: Callable[[int], object] = int,
) -> Path:
    """Download a checkpoint and publish it in a directory; return its path.

    Parameters
    ----------
    store : ObjectStore
        The mirror.
    entry : Entry
        The checkpoint in the mirror.
    directory : Store
        The directory, whose lock is held.
    progress : callable
        Called with the bytes of each part that is there.

    Raises
    ------
    CheckpointDamagedError
        If a part in the mirror is missing or differs from its checksum.
    CheckpointGoneError
        If the checkpoint is deleted from the mirror meanwhile.
    OSError
        As reported by the disk.
    """
    staging = directory.root / f"{PULL}{entry.name}.{entry.commit_id}"
    _remove_others(directory.root, staging.name)
    if not filesystem.is_directory(staging):
        filesystem.mkdir(staging)
    for file in entry.manifest.files:
        _make_parents(staging, file)
        download_file(store, entry, file, staging / file, progress)
    directory.adopt(staging, entry.name, entry.manifest_text.encode())
    return directory.root / entry.name


def is_here(entry: Entry, root: Path) -> bool:
    """Return whether a directory has a checkpoint of this commit under its name."""
    try:
        manifest = read_manifest(published_directory(root / entry.name))
    except CheckpointDamagedError:
        return False
    return manifest is not None and manifest.commit_id == entry.commit_id


def verify_in_mirror(
    store: ObjectStore, entry: Entry, progress: Callable[[int], object] = int
) -> dict[str, str]:
    """Download and verify every part without keeping it; return the damage by file."""
    problems: dict[str, str] = {}

    def check(part: Part) -> int:
        try:
            _fetch_part(store, entry, part)
        except CheckpointDamagedError as error:
            problems.setdefault(part.file, str(error))
        return part.size

    with workers() as made:
        for size in made.map(check, parts_of(entry.manifest)):
            progress(size)
    return problems


def download_file(
    store: ObjectStore,
    entry: Entry,
    file: str,
    path: Path,
    progress: Callable[[int], object] = int,
) -> None:
    """Download one file, or what is missing of it; arguments as in `download`."""
    parts = list(parts_of_file(entry.manifest, file))
    with filesystem.opened_for_update(path) as descriptor:
        done = _intact_parts(descriptor, parts, entry.manifest.algorithm)
        for part in parts[:done]:
            progress(part.size)
        filesystem.truncate(descriptor, path, sum(part.size for part in parts[:done]))
        for part, content in zip(parts[done:], _fetch(store, entry, parts[done:]), strict=True):
            filesystem.write(descriptor, path, memoryview(content))
            progress(part.size)
        filesystem.fsync(descriptor, path)


def _intact_parts(descriptor: int, parts: list[Part], algorithm: Algorithm) -> int:
    """Return how many parts at the start of a file are there and intact."""
    for number, part in enumerate(parts):
        content = filesystem.read_at(descriptor, part.size, part.start)
        if _problem(part, content, algorithm):
            return number
    return len(parts)


def _fetch(store: ObjectStore, entry: Entry, parts: Iterable[Part]) -> Iterator[bytearray]:
    """Yield the content of parts in order, fetching one ahead."""
    with workers() as made:
        yield from made.map(lambda part: _fetch_part(store, entry, part), parts)


def _fetch_part(store: ObjectStore, entry: Entry, part: Part) -> bytearray:
    where, problem = f"{store.shown}/{part.key}", ""
    for _ in range(_READS):
        try:
            content = retry(lambda: store.read(part.key))
        except MissingObjectError:
            _raise_if_deleted(store, entry)
            raise CheckpointDamagedError(
                f"{entry.name} in {store.shown} is damaged: {where} is missing"
            ) from None
        problem = _problem(part, content, entry.manifest.algorithm)
        if not problem:
            return content
    raise CheckpointDamagedError(
        f"{entry.name} in {store.shown} is damaged: {part.file} between byte {part.start} and "
        f"{part.start + part.size}: {problem}"
    )


def _problem(part: Part, content: bytes | bytearray, algorithm: Algorithm) -> str:
    if len(content) != part.size:
        return f"it must have {part.size} bytes, got {len(content)}"
    running = new_checksum(algorithm)
    running.update(memoryview(content))
    found = running.hexdigest()
    return "" if found == part.checksum else f"its {algorithm} must be {part.checksum}, got {found}"


def _raise_if_deleted(store: ObjectStore, entry: Entry) -> None:
    try:
        is_deleted = not retry(lambda: store.read(commit_key(entry.number)))
    except MissingObjectError:
        is_deleted = True
    if is_deleted:
        raise CheckpointGoneError(
            f"a checkpoint must exist while it is downloaded, but {entry.name} was deleted from "
            f"{store.shown}; list the checkpoints again"
        )


def _make_parents(staging: Path, file: str) -> None:
    path = staging
    for name in file.split("/")[:-1]:
        path = path / name
        if not filesystem.is_directory(path):
            filesystem.mkdir(path)


def _remove_others(root: Path, staging: str) -> None:
    """Remove what is left of downloads of other checkpoints."""
    for name in filesystem.names(root):
        if name.startswith(PULL + PREFIX) and name != staging:
            filesystem.remove_tree(root / name)
