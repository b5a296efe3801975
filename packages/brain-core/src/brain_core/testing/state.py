"""All state of a Brain, piece by piece, in a form that two processes can compare."""

from __future__ import annotations

import enum
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from brain_ckpt import RNGState
from brain_core.resume.recoverables import (
    has_state,
    missing_modules,
    missing_states,
    named_objects,
)
from brain_dist import unwrap_module

if TYPE_CHECKING:
    from brain_core.brain import Brain

__all__ = ["Pieces", "describe", "is_outcome", "snapshot"]

Pieces = dict[str, str]

_DEEPEST = 5
_LONGEST = 64  # a longer container is one piece
_OPAQUE = ("torch.", "logging", "builtins", "functools", "brain_core", "brain_ckpt")
_OUTCOMES = ("modules.", "recoverables.", "unsaved.", "progress.")
_OWN = {"brain", "rank_state"}  # what these hold is under progress. and random.


def is_outcome(piece: str) -> bool:
    """Whether a difference in a piece is a failure, and not only evidence of its cause."""
    return piece.startswith(_OUTCOMES)


def describe(obj: Any, name: str = "batch") -> Pieces:
    """Write an object as one short text for each tensor, array and plain value in it.

    Examples
    --------
    >>> describe({"lr": 0.1, "steps": [1, 2]}, "scheduler")
    {'scheduler.lr': '0.1', 'scheduler.steps.0': '1', 'scheduler.steps.1': '2'}
    """
    return dict(_walk(obj, name, _DEEPEST, set()))


def snapshot(brain: Brain, epochs: Any) -> Pieces:
    """Describe all that training changes and that can be found, under names that tell where it is.

    ``random.`` holds the generators, ``modules.`` parameters and buffers, ``gradients.`` what a
    window has gathered, ``progress.`` the loop's own counts, ``recoverables.`` what the
    checkpointer saves besides, ``unsaved.`` what has a state and is not saved, ``attributes.`` the
    rest.
    """
    pieces: Pieces = {}
    for name, state in RNGState().state_dict().items():
        pieces[f"random.{name}"] = _digest_of(describe(state))
    for name, module in brain.modules.items():
        plain = unwrap_module(module)
        for key, tensor in (*plain.named_parameters(), *plain.named_buffers()):
            pieces[f"modules.{name}.{key}"] = _text_of_tensor(tensor)
        for key, parameter in plain.named_parameters():
            if parameter.grad is not None and bool(parameter.grad.any()):
                pieces[f"gradients.{name}.{key}"] = _text_of_tensor(parameter.grad)
    pieces |= _progress(brain)
    pieces |= _states(brain, epochs)
    return pieces


def _progress(brain: Brain) -> Pieces:
    mean = brain._run.mean  # noqa: SLF001  # of the same package
    return {
        "progress.optimizer_step": repr(brain.optimizer_step),
        "progress.nonfinite_count": repr(brain.nonfinite_count),
        "progress.mean": f"{mean.total!r} / {mean.count!r} = {float(brain.avg_train_loss)!r}",
    }


def _states(brain: Brain, epochs: Any) -> Pieces:
    """Describe what the checkpointer knows, and then what else the recipe has given a name to."""
    recoverables = brain.checkpointer.recoverables if brain.checkpointer else {}
    unsaved = missing_modules(dict(brain.modules), recoverables)
    pieces: Pieces = {"about.unsaved_modules": ", ".join(unsaved)}
    seen = {id(brain.modules), *map(id, brain.modules.values())}
    for name, obj in recoverables.items():
        seen.add(id(obj))
        if name not in _OWN and not isinstance(obj, torch.nn.Module):
            pieces |= describe(obj, f"recoverables.{name}")
    places = named_objects(vars(brain), brain.optimizers_dict or {}, vars(brain.hparams))
    forgotten = {id(obj) for obj in missing_states(places, recoverables).values()}
    places["fit"] = {"epoch_counter": epochs}
    for place, objects in places.items():
        for name, obj in objects.items():
            if id(obj) in seen or (callable(obj) and not has_state(obj)):
                continue
            stateful = id(obj) in forgotten or has_state(obj)
            if stateful:
                seen.add(id(obj))
            pieces |= describe(obj, f"{'unsaved' if stateful else 'attributes'}.{place}.{name}")
    return pieces


def _walk(obj: Any, name: str, depth: int, above: set[int]) -> Iterator[tuple[str, str]]:
    text = _text_of(obj)
    if text is not None:
        yield name, text
        return
    if depth == 0 or id(obj) in above:
        return
    above = above | {id(obj)}
    parts = _parts_of(obj)
    if len(parts) > _LONGEST:
        inside = {
            k: v for key, part in parts.items() for k, v in _walk(part, key, depth - 1, above)
        }
        yield name, f"{len(parts)} entries, {_digest_of(inside)}"
        return
    for key, part in parts.items():
        yield from _walk(part, f"{name}.{key}", depth - 1, above)


def _text_of(obj: Any) -> str | None:
    """Describe what has no parts; None if it has some."""
    text: str | None = None
    if isinstance(obj, torch.Tensor):
        text = _text_of_tensor(obj)
    elif isinstance(obj, np.ndarray):
        plain = obj if obj.dtype != object else np.array([repr(one) for one in obj.ravel()])
        text = f"{obj.dtype}{list(obj.shape)} {_hash(plain.tobytes())}"
    elif isinstance(obj, torch.Generator):
        text = _text_of_tensor(obj.get_state())
    elif isinstance(obj, random.Random):
        text = _hash(repr(obj.getstate()).encode())
    elif isinstance(obj, np.random.Generator):
        text = _digest_of(describe(obj.bit_generator.state))
    elif obj is None or isinstance(obj, (bool, int, float, complex, enum.Enum, np.generic)):
        text = repr(obj)
    elif isinstance(obj, (str, bytes)):
        text = repr(obj)
        if len(text) > _LONGEST:
            text = f"{len(obj)} characters, {_hash(text.encode())}"
    return text


def _parts_of(obj: Any) -> dict[str, Any]:
    """Return what an object consists of, as far as it can be told; empty for an opaque one."""
    if isinstance(obj, Mapping):
        return {str(key): value for key, value in obj.items()}
    if isinstance(obj, AbstractSet):
        return dict.fromkeys(sorted(map(repr, obj)), True)
    if isinstance(obj, Sequence) and not isinstance(obj, range):
        return {str(i): value for i, value in enumerate(obj)}
    if hasattr(obj, "state_dict") and hasattr(obj, "load_state_dict"):
        return {str(key): value for key, value in obj.state_dict().items()}
    if is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: getattr(obj, field.name) for field in fields(obj)}
    opaque = isinstance(obj, (Dataset, DataLoader)) or type(obj).__module__.startswith(_OPAQUE)
    return {} if (opaque and not has_state(obj)) else dict(getattr(obj, "__dict__", {}))


def _text_of_tensor(tensor: torch.Tensor) -> str:
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):  # one rank's part of a DTensor
        tensor = tensor.to_local()
    kind = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    if tensor.device.type == "meta":
        return kind
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    dense = torch.view_as_real(dense) if dense.is_complex() else dense
    data = dense.cpu().contiguous().reshape(-1)
    if data.numel() == 1:
        return f"{kind} {data.item()!r}"
    return f"{kind} {_hash(data.view(torch.uint8).numpy().tobytes())}"


def _digest_of(pieces: Pieces) -> str:
    return _hash(repr(pieces).encode())


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
