"""The state of a Brain as named pieces that two processes can compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt import RNGState
from brain_core.resume.description import Pieces, describe, digest, text_of_tensor
from brain_core.resume.recoverables import (
    has_state,
    missing_modules,
    missing_states,
    named_objects,
)
from brain_dist import if_main_process, unwrap_module

if TYPE_CHECKING:
    from brain_core.brain import Brain

__all__ = ["Pieces", "describe", "is_outcome", "snapshot"]

_OUTCOMES = ("modules.", "recoverables.", "unsaved.", "progress.")
_OWN = {"brain", "brain_setup", "rank_state"}  # under progress., modules. and random.


def is_outcome(piece: str) -> bool:
    """Return whether a difference in a piece is a failure, not only evidence of its cause."""
    return piece.startswith(_OUTCOMES)


def snapshot(brain: Brain, epochs: Any) -> Pieces:
    """Return all state that training changes and that can be found, by name.

    The prefix of a name is its kind: ``random.`` for generators, ``modules.`` for parameters and
    buffers, ``gradients.`` for gradients of an unfinished accumulation window, ``progress.`` for
    the loop's counts, ``recoverables.`` for everything else that the checkpointer saves,
    ``unsaved.`` for objects that have a state and are not saved, ``attributes.`` for the rest.
    """
    pieces: Pieces = {}
    for name, state in RNGState().state_dict().items():
        pieces[f"random.{name}"] = digest(state)
    for name, module in brain.modules.items():
        plain = unwrap_module(module)
        # Those of other ranks are replaced by rank 0's before they are read.
        buffers = plain.named_buffers() if if_main_process() else ()
        for key, tensor in (*plain.named_parameters(), *buffers):
            frozen = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
            pieces[f"modules.{name}.{key}"] = text_of_tensor(tensor) + " (frozen)" * frozen
        for key, parameter in plain.named_parameters():
            if parameter.grad is not None and bool(parameter.grad.any()):
                pieces[f"gradients.{name}.{key}"] = text_of_tensor(parameter.grad)
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
    """Describe the recoverables, then all other objects that the recipe has named."""
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
