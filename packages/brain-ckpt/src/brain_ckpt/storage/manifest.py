"""MANIFEST.json: the digest of every file of a checkpoint, compared before loading."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from brain_ckpt.errors import CheckpointDamagedError, CheckpointError, UnsafeCheckpointError
from brain_ckpt.storage.checksum import CHUNK_BYTES, Algorithm, FileDigest

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST_NAME = "MANIFEST.json"
MANIFEST_LIMIT_BYTES = 64 * 2**20
FORMAT = 1

# The names of most files: neither a folder, nor "." or "..".
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest.

    Parameters
    ----------
    commit_id : str
        The identity of the save, the same on every node.
    run_id : str
        The identity of the run that wrote it.
    seq : int
        The number of the save, one more than any before it.
    step : int or None
        The optimizer step, if meta has one.
    world : int
        The number of ranks.
    torch : str
        The version of torch that wrote it.
    algorithm : str
        The algorithm of the digests.
    files : mapping of str to FileDigest
        By name below the directory, with forward slashes.
    meta_arrays : list
        The tensors and arrays in meta, as `meta_arrays` notes them.
    """

    commit_id: str
    run_id: str
    seq: int
    step: int | None
    world: int
    torch: str
    algorithm: Algorithm
    files: Mapping[str, FileDigest] = field(default_factory=dict)
    meta_arrays: list[Any] = field(default_factory=list)


def dump_manifest(manifest: Manifest) -> bytes:
    """Return the content of the file, which ends in its own checksum."""
    fields: dict[str, Any] = {"meta_arrays": manifest.meta_arrays} if manifest.meta_arrays else {}
    return append_crc(
        {
            **fields,
            "format": FORMAT,
            "commit": manifest.commit_id,
            "run": manifest.run_id,
            "seq": manifest.seq,
            "step": manifest.step,
            "world": manifest.world,
            "torch": manifest.torch,
            "algorithm": manifest.algorithm,
            "chunk_bytes": CHUNK_BYTES,
            "files": {
                name: {"size": digest.size, "chunks": list(digest.chunks)}
                for name, digest in sorted(manifest.files.items())
            },
        }
    )


def load_manifest(content: bytes, where: str) -> Manifest:
    """Parse a manifest; `where` is its path, for the errors.

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
        intact = has_crc(content) and isinstance(fields, dict)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointDamagedError(f"{where} is damaged: {error}") from error
    if not intact:
        raise CheckpointDamagedError(f"{where} is damaged: it does not match its own checksum")
    if fields.get("format") != FORMAT or fields.get("chunk_bytes") != CHUNK_BYTES:
        raise CheckpointError(
            f"{where} must be of format {FORMAT}, got {fields.get('format')!r}; "
            f"read it with the brain-ckpt that wrote it, or a newer one"
        )
    try:
        return _from_fields(fields, where)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointDamagedError(f"{where} is damaged: {error!r}") from error


def safe_name(name: str, where: str) -> str:
    """Return the name of a file if it is below its checkpoint; raise otherwise."""
    if _PLAIN.fullmatch(name):
        return name
    path = PurePosixPath(name)
    plain = not path.is_absolute() and ".." not in path.parts and "\\" not in name
    if not name or not plain or "\0" in name or str(path) != name or name == ".":
        raise UnsafeCheckpointError(
            f"{where} may only name files in its own directory, got {name!r}; do not load this "
            f"checkpoint"
        )
    return name


def _from_fields(fields: Mapping[str, Any], where: str) -> Manifest:
    if fields["algorithm"] not in ("crc32", "sha256"):
        raise ValueError(fields["algorithm"])
    step = fields["step"]
    return Manifest(
        commit_id=str(fields["commit"]),
        run_id=str(fields["run"]),
        seq=int(fields["seq"]),
        step=None if step is None else int(step),
        world=int(fields["world"]),
        torch=str(fields["torch"]),
        algorithm=fields["algorithm"],
        files={
            safe_name(name, where): FileDigest(int(entry["size"]), tuple(entry["chunks"]))
            for name, entry in fields["files"].items()
        },
        meta_arrays=[_meta_array(*note) for note in fields.get("meta_arrays", [])],
    )


def _meta_array(path: Any, kind: Any, dtype: Any, shape: Any) -> list[Any]:
    return [list(path), str(kind), str(dtype), [int(length) for length in shape]]


def has_crc(content: bytes) -> bool:
    """Return whether a text ends in the checksum that `append_crc` has put there."""
    body, comma, crc = content.rpartition(b',\n "crc32": ')
    return bool(comma) and crc == _crc_of(body + b"\n}")


def append_crc(fields: Mapping[str, Any]) -> bytes:
    """Return fields as JSON, with the checksum of what comes before it as the last key."""
    body = json.dumps(fields, indent=1).encode()
    # The checksum is the last key, so that the file is one JSON object.
    return body[:-2] + b',\n "crc32": ' + _crc_of(body)


def _crc_of(body: bytes) -> bytes:
    """Return the value of the last key, and the end of the object."""
    return f'"{zlib.crc32(body):08x}"\n}}\n'.encode()
