"""Reading sharded state (FSDP2, tensor parallel), through torch's distributed checkpoint.

The tensors of which each rank holds a part are in ``shards/``; what remains of a state is in its
usual file, with a place holder for each of them.  Any number of ranks can put them together again.
"""

from __future__ import annotations

import enum
import pickle
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from brain_ckpt.compat import load_distributed
from brain_ckpt.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    UnsafeCheckpointError,
)
from brain_ckpt.recoverables.states import bare_module
from brain_ckpt.storage.manifest import safe_name

if TYPE_CHECKING:
    from pathlib import Path

PLACE_HOLDER = "__brain_ckpt_shard__"
SHARDS_INDEX = ".metadata"

# What the metadata of a distributed checkpoint is made of; it is a pickle.
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


def is_sharded(obj: Any) -> bool:
    """Say whether an object's state has tensors of which this rank holds a part."""
    if "torch.distributed.tensor" not in sys.modules:
        return False
    if isinstance(obj, nn.Module):
        return any(is_dtensor(tensor) for tensor in bare_module(obj).parameters())
    if isinstance(obj, torch.optim.Optimizer):
        return any(is_dtensor(p) for group in obj.param_groups for p in group["params"])
    return False


def is_dtensor(value: Any) -> bool:
    """Say whether a value is a tensor of which this rank holds a part."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def assemble(obj: Any, state: Any, directory: Path, name: str) -> Any:
    """Put the tensors back into a state, each in the form in which the object holds it.

    Without communication: each rank reads what it needs.

    Parameters
    ----------
    obj : object
        What the state is for.
    state : object
        As `split` returned it, or one that was never sharded.
    directory : Path
        Where the shards are.
    name : str
        The recoverable's.

    Raises
    ------
    CheckpointDamagedError
        If a tensor is not there.
    CheckpointMismatchError
        If one does not fit.
    """
    wanted = _own_tensors(obj, name) if is_sharded(obj) else {}
    targets: dict[str, Any] = {}
    sizes = _sizes(directory) if _has_place_holders(state) else {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            key = value.get(PLACE_HOLDER)
            if isinstance(key, str):
                if key not in targets:
                    targets[key] = _target(key, sizes, wanted)
                return targets[key]
            return {inner: walk(child, f"{path}/{inner}") for inner, child in value.items()}
        if type(value) in (list, tuple):
            return type(value)(walk(child, f"{path}/{n}") for n, child in enumerate(value))
        own = wanted.get(path)
        if own is not None and isinstance(value, torch.Tensor) and value.shape == own.shape:
            return _distribute(value, own)
        return value

    assembled = walk(state, name)
    if targets:
        _load(targets, directory)
    return assembled


def _has_place_holders(state: Any) -> bool:
    if isinstance(state, Mapping):
        return PLACE_HOLDER in state or any(map(_has_place_holders, state.values()))
    return isinstance(state, (list, tuple)) and any(map(_has_place_holders, state))


def _own_tensors(obj: Any, name: str) -> dict[str, Any]:
    if isinstance(obj, nn.Module):
        state = bare_module(obj).state_dict()
        return {f"{name}/{key}": value for key, value in state.items() if is_dtensor(value)}
    parameters = [p for group in obj.param_groups for p in group["params"]]
    kinds = {key for entry in obj.state.values() for key in entry} or _MOMENTS
    return {
        f"{name}/state/{number}/{key}": parameter
        for number, parameter in enumerate(parameters)
        for key in kinds | _MOMENTS
        if is_dtensor(parameter)
    }


# Moments of torch's optimizers: of their parameter's shape, sharded as it is.
_MOMENTS = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg"}
    | {"acc_delta", "sum", "exp_inf", "prev", "step_size", "mu_product", "eta", "ax"}
)


def _target(key: str, sizes: Mapping[str, Any], wanted: Mapping[str, Any]) -> torch.Tensor:
    if key not in sizes:
        raise CheckpointDamagedError(f"the shards have to hold {key!r}, which they do not")
    size, dtype = sizes[key]
    own = wanted.get(key)
    if own is None:
        return torch.empty(size, dtype=dtype)
    if own.shape != size:
        raise CheckpointMismatchError(
            f"what was saved as {key!r} has to have the shape {tuple(own.shape)}, got "
            f"{tuple(size)}; build the object as it was when the checkpoint was written"
        )
    return torch.empty_like(own.detach(), dtype=dtype)


def _distribute(value: torch.Tensor, own: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def _sizes(directory: Path) -> dict[str, Any]:
    metadata = _reader(directory).read_metadata()
    return {
        key: (entry.size, entry.properties.dtype)
        for key, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "size")
    }


def _load(targets: dict[str, Any], directory: Path) -> None:
    with warnings.catch_warnings():
        # It takes no group for a mistake; each rank reads by itself on purpose.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load_distributed(targets, _reader(directory))


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA_CLASSES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("builtins", "getattr"):
            return _enumerated
        raise UnsafeCheckpointError(
            f"the metadata of shards holds sizes and places only, got {module}.{name}, which may "
            f"run code; do not load this checkpoint"
        )


def _enumerated(kind: Any, name: Any) -> enum.Enum:
    """Stand for getattr, with which early Pythons 3.11 pickle what belongs to an enumeration."""
    if isinstance(kind, enum.EnumMeta) and name in kind.__members__:
        return kind.__members__[name]
    raise UnsafeCheckpointError(
        f"the metadata of shards holds sizes and places only, got the attribute {name!r} of "
        f"{kind!r}, which may run code; do not load this checkpoint"
    )


def _reader(directory: Path) -> Any:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    class Reader(FileSystemReader):
        """Reads the metadata without unpickling whatever it names."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            del args, kwargs
            file = directory / SHARDS_INDEX
            try:
                with file.open("rb") as content:
                    metadata = _MetadataUnpickler(content).load()
            except (OSError, EOFError, pickle.UnpicklingError, AttributeError, TypeError) as error:
                raise CheckpointDamagedError(f"{file} cannot be read: {error}") from error
            for place in (metadata.storage_data or {}).values():
                safe_name(place.relative_path, str(file))
            if getattr(metadata, "storage_meta", None) is not None:
                metadata.storage_meta.load_id = self.load_id
            return metadata

    return Reader(directory)
