"""An exponential moving average of the weights."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from brain_core.callbacks.base import Callback
from brain_dist import if_main_process

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from brain_core.brain import Brain
    from brain_core.stage import Stage

__all__ = ["EMA"]


class EMA(Callback):
    """An exponential moving average of all weights, with which the model is evaluated.

    After each optimizer step, ``average = decay * average + (1 - decay) * weights``, for parameters
    and for buffers with decimals, such as BatchNorm's statistics; other buffers are copied.
    Validations and tests use the average in place of the weights, which come back after them, also
    if an exception is raised. Checkpoints hold both.

    Averages of float16 and bfloat16 weights are kept in float32. An evaluation needs memory for one
    more copy of the weights.

    Parameters
    ----------
    decay : float
        Between 0 and 1. The average is that of about the last ``1 / (1 - decay)`` steps.
    warmup : bool
        Use ``min(decay, (1 + n) / (10 + n))`` at step n, so that the first weights, which are
        random, are forgotten early.
    modules : collection of str, optional
        The names of the modules to average; by default all.

    Attributes
    ----------
    updates : int
        How many steps the average has seen.

    Raises
    ------
    ValueError
        If ``decay`` is not between 0 and 1; when `fit` begins, if a module is sharded by FSDP2, or
        there is no module of a name.

    Examples
    --------
    >>> from brain_core import Brain
    >>> brain = Brain({"model": torch.nn.Linear(2, 2)}, callbacks=[EMA(decay=0.999)])
    """

    belongs_to_model = True

    def __init__(
        self,
        decay: float = 0.999,
        *,
        warmup: bool = False,
        modules: Collection[str] | None = None,
    ) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EMA needs a decay from 0 to below 1, such as 0.999, got {decay!r}.")
        self.decay = decay
        self.warmup = warmup
        self.modules = modules
        self.updates = 0
        self._weights: dict[str, torch.Tensor] = {}
        self._average: dict[str, torch.Tensor] = {}

    def on_fit_start(self, brain: Brain, *, is_resumed: bool) -> None:
        """Begin with the weights as they are, unless a checkpoint has brought an average."""
        del is_resumed
        self._bind(brain)

    def on_stage_start(self, brain: Brain, stage: Stage, epoch: int | None) -> None:
        """Find the weights again: a hook may have replaced some."""
        del stage, epoch
        if self._weights:
            self._bind(brain)

    @torch.no_grad()
    def on_optimizer_step(self, brain: Brain, *, is_taken: bool) -> None:
        """Move the average towards the weights."""
        del brain
        if not is_taken:
            return
        self.updates += 1
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        if self._moving:  # by the function that torch.optim uses
            torch._foreach_lerp_(self._moving, self._moving_weights, 1.0 - decay)
        for average, weight in self._copied:
            average.copy_(weight)
        for average, weight in self._cast:
            average.lerp_(weight.float(), 1.0 - decay)

    @contextmanager
    def during_evaluation(self, brain: Brain, stage: Stage) -> Iterator[None]:
        """Use the average in place of the weights."""
        del stage
        if not self._average:
            yield  # nothing was trained, and no checkpoint holds an average
            return
        if not self._weights:
            self._bind(brain)
        with torch.no_grad():
            kept = [(weight, weight.clone()) for weight in self._weights.values()]
            for name, average in self._average.items():
                self._weights[name].copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, copy in kept:
                    weight.copy_(copy)

    def state_dict(self) -> dict[str, Any]:
        """Return the average by the weights' names, and the number of steps."""
        return {"updates": self.updates, "average": dict(self._average)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with an average that was saved."""
        self.updates = state["updates"]
        for name, saved in state["average"].items():
            present = self._average.get(name)
            if present is None or present.shape != saved.shape:
                self._average[name] = saved.clone()
            else:
                present.copy_(saved)

    def _bind(self, brain: Brain) -> None:
        """Find the weights, and make averages of those that have none yet."""
        self._weights = _named_weights(dict(brain.raw_modules.items()), self.modules)
        averaged = {n: w for n, w in self._weights.items() if if_main_process() or _is_trained(w)}
        for name, weight in averaged.items():
            saved = self._average.get(name)
            if saved is not None and saved.shape != weight.shape:
                raise ValueError(
                    f"EMA needs an average of the shape of {name}, {tuple(weight.shape)}, got "
                    f"{tuple(saved.shape)} from the checkpoint. Build the module as it was."
                )
            start = weight.detach() if saved is None else saved
            self._average[name] = start.to(weight.device, _dtype_of_average(weight), copy=True)
        self._average = {name: self._average[name] for name in averaged}
        self._sort()

    def _sort(self) -> None:
        """Sort the pairs by what a step does to them."""
        pairs = [(average, self._weights[name].detach()) for name, average in self._average.items()]
        moving = [p for p in pairs if p[0].is_floating_point() and p[0].dtype == p[1].dtype]
        self._moving = [average for average, _ in moving]
        self._moving_weights = [weight for _, weight in moving]
        self._cast = [p for p in pairs if p[0].is_floating_point() and p[0].dtype != p[1].dtype]
        self._copied = [p for p in pairs if not p[0].is_floating_point()]


def _is_trained(weight: torch.Tensor) -> bool:
    """Return whether a weight is no buffer, which evaluations take from the main process."""
    return isinstance(weight, torch.nn.Parameter)


def _dtype_of_average(weight: torch.Tensor) -> torch.dtype:
    return torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype


def _named_weights(
    modules: Mapping[str, torch.nn.Module], selected: Collection[str] | None
) -> dict[str, torch.Tensor]:
    """Return the parameters and saved buffers by name; a tensor with two names once."""
    missing = [name for name in selected or () if name not in modules]
    if missing:
        raise ValueError(
            f"EMA needs names of modules of the Brain ({', '.join(modules)}), got {missing!r}."
        )
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, module in modules.items():
        if selected is not None and name not in selected:
            continue
        for path, tensor in module.state_dict(keep_vars=True).items():
            if not isinstance(tensor, torch.Tensor) or id(tensor) in seen:
                continue
            if hasattr(tensor, "to_local"):
                raise ValueError(
                    f"EMA needs weights that each rank holds whole, got {name}.{path}, which FSDP2 "
                    "has sharded. Train with parallel='ddp', or without EMA."
                )
            seen.add(id(tensor))
            found[f"{name}.{path}"] = tensor
    return found
