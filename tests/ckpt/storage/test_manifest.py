"""A manifest that was damaged is refused."""

from __future__ import annotations

import pytest

from brain_ckpt.errors import CheckpointError
from brain_ckpt.storage.checksum import FileDigest
from brain_ckpt.storage.manifest import Manifest, dump_manifest, load_manifest, safe_name


@pytest.fixture
def manifest() -> Manifest:
    """Return a manifest of two files, one with a name of another alphabet."""
    files = {"model.ckpt": FileDigest(10, ("00000001",)), "ranks/0/größe.pt": FileDigest(0, ())}
    return Manifest("c", "r", 7, 3, 1, "2.13", "crc32", files)


def test_a_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    """All fields, and the names of the files."""
    assert load_manifest(dump_manifest(manifest), "here") == manifest


def test_no_flipped_bit_of_a_manifest_is_overlooked(manifest: Manifest) -> None:
    """Nor one of its own checksum, whose letters must be small."""
    content = dump_manifest(manifest)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError):
            load_manifest(bytes(damaged), "here")


def test_no_cut_or_extended_manifest_is_taken(manifest: Manifest) -> None:
    """The checksum is the last thing in the file."""
    content = dump_manifest(manifest)
    cut = [content[:length] for length in range(len(content))]
    for damaged in [*cut, content + b" ", content + b"\n", b" " + content, content + content]:
        with pytest.raises(CheckpointError):
            load_manifest(damaged, "here")


@pytest.mark.parametrize("name", ["model.ckpt", "a", "..a", "shards/0.pt", "größe", "-", "_.x"])
def test_a_name_below_the_directory_is_safe(name: str) -> None:
    """It is returned as it is."""
    assert safe_name(name, "here") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/../b", "/a", "a//b", "./a", "a\\b", "a\0", "a/"]
)
def test_a_name_that_is_not_plainly_below_the_directory_is_refused(name: str) -> None:
    """Links to elsewhere could be written so."""
    with pytest.raises(CheckpointError):
        safe_name(name, "here")
