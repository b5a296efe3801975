"""Read sharded states (FSDP2, tensor parallel) with torch's distributed checkpoint.

The parts of sharded tensors are in ``shards/``; the rest of a state is in the usual file, with
placeholders.  Any number of ranks can assemble them.
"""

from __future__ import annotations

import enum
import pickle
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from brain_ckpt.compat import load_distributed
from brain_ckpt.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    UnsafeCheckpointError,
)
from brain_ckpt.recoverables.sharding import (
    PLACEHOLDER,
    has_placeholders,
    is_dtensor,
    is_sharded,
    map_parts,
)
from brain_ckpt.recoverables.states import bare_module
from brain_ckpt.storage.layout import SHARDS_DIRECTORY, SHARDS_INDEX
from brain_ckpt.storage.manifest import safe_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# The classes in the metadata of a distributed checkpoint, which is a pickle.
_METADATA_CLASSES = frozenset(
    {
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            )
        ),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.distributed.checkpoint.filesystem", "SerializationFormat"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib._local", "PosixPath"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
    }
)


def assemble(
    obj: Any,
    state: Any,
    locate: Callable[[str], Path],
    name: str,
    groups: Sequence[Sequence[torch.Tensor]] | None = None,
) -> Any:
    """Put sharded tensors back into a state, each sharded as the object has it.

    Each rank reads the parts that it needs, without communication.

    Parameters
    ----------
    obj : object
        The object to load the state into; None gives whole tensors.
    state : object
        A state from `split`, or one that was never sharded.
    locate : callable
        Returns the path to read a file of the checkpoint from, by its name below the directory.
    name : str
        The name of the recoverable.
    groups : sequence of sequence of Tensor, optional
        The parameters of an optimizer's groups; by default those that it has.

    Raises
    ------
    CheckpointDamagedError
        If a tensor is missing.
    CheckpointMismatchError
        If a tensor does not fit.
    """
    sharded = _sharded_tensors(obj, name, groups) if groups or is_sharded(obj) else {}
    targets: dict[str, Any] = {}
    sizes = _sizes(locate) if has_placeholders(state) else {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            key = value.get(PLACEHOLDER)
            if isinstance(key, str):
                if key not in targets:
                    targets[key] = _target(key, sizes, sharded)
                return targets[key]
        like = sharded.get(path)
        if like is not None and isinstance(value, torch.Tensor) and value.shape == like.shape:
            return _distribute(value, like)
        return map_parts(value, path, walk)

    assembled = walk(state, name)
    if targets:
        _load(targets, locate)
    return assembled


def _sharded_tensors(
    obj: Any, name: str, groups: Sequence[Sequence[torch.Tensor]] | None
) -> dict[str, Any]:
    if isinstance(obj, nn.Module):
        state = bare_module(obj).state_dict()
        return {f"{name}/{key}": value for key, value in state.items() if is_dtensor(value)}
    groups = groups or [group["params"] for group in obj.param_groups]
    parameters = [parameter for group in groups for parameter in group]
    keys = {key for entry in obj.state.values() for key in entry}
    return {
        f"{name}/state/{number}/{key}": parameter
        for number, parameter in enumerate(parameters)
        for key in keys | _MOMENTS
        if is_dtensor(parameter)
    }


# State of torch's optimizers with the shape of the parameter, sharded like the parameter.
_MOMENTS = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg"}
    | {"acc_delta", "sum", "exp_inf", "prev", "step_size", "mu_product", "eta", "ax"}
)


def _target(key: str, sizes: Mapping[str, Any], sharded: Mapping[str, Any]) -> torch.Tensor:
    if key not in sizes:
        raise CheckpointDamagedError(f"the shards must hold {key!r}, which is missing")
    size, dtype = sizes[key]
    like = sharded.get(key)
    if like is None:
        return torch.empty(size, dtype=dtype)
    if like.shape != size:
        raise CheckpointMismatchError(
            f"the tensor saved as {key!r} must have the shape {tuple(like.shape)}, got "
            f"{tuple(size)}; build the object as it was when the checkpoint was written"
        )
    return torch.empty_like(like.detach(), dtype=dtype)


def _distribute(value: torch.Tensor, like: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _sizes(locate: Callable[[str], Path]) -> dict[str, Any]:
    metadata = _reader(locate).read_metadata()
    return {
        key: (entry.size, entry.properties.dtype)
        for key, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "size")
    }


def _load(targets: dict[str, Any], locate: Callable[[str], Path]) -> None:
    with warnings.catch_warnings():
        # torch warns if there is no process group; each rank reads on its own here.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load_distributed(targets, _reader(locate))


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA_CLASSES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        raise UnsafeCheckpointError(
            f"the metadata of shards may hold sizes and positions only, got {module}.{name}, which "
            f"may run code; do not load this checkpoint"
        )


def _enum_member(kind: Any, name: Any) -> enum.Enum:
    """Replace getattr, with which early versions of Python 3.11 pickle members of enums."""
    if isinstance(kind, enum.EnumMeta) and name in kind.__members__:
        return kind.__members__[name]
    raise UnsafeCheckpointError(
        f"the metadata of shards may hold sizes and positions only, got the attribute {name!r} of "
        f"{kind!r}, which may run code; do not load this checkpoint"
    )


def _reader(locate: Callable[[str], Path]) -> Any:
    from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader

    class Files(FileSystem):
        """Finds files that are held open."""

        def concat_path(self, path: Any, suffix: str) -> Path:
            del path
            return locate(f"{SHARDS_DIRECTORY}/{suffix}")

    class Reader(FileSystemReader):
        """Unpickles only known classes from the metadata."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            del args, kwargs
            file = locate(f"{SHARDS_DIRECTORY}/{SHARDS_INDEX}")
            try:
                with file.open("rb") as content:
                    metadata = _MetadataUnpickler(content).load()
            except (OSError, EOFError, pickle.UnpicklingError, AttributeError, TypeError) as error:
                raise CheckpointDamagedError(f"{file} cannot be read: {error}") from error
            for position in (metadata.storage_data or {}).values():
                safe_name(position.relative_path, str(file))
            if getattr(metadata, "storage_meta", None) is not None:
                metadata.storage_meta.load_id = self.load_id
            return metadata

    reader = Reader(SHARDS_DIRECTORY)
    reader.fs = Files()
    return reader
