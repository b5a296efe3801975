"""What a user has changed in a script since a checkpoint was saved, and what becomes of it."""

from __future__ import annotations

import itertools
import logging
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from brain_ckpt import CheckpointMismatchError
from brain_core.resume import settings
from brain_dist import RemoteError, is_sharded, unwrap_module

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from brain_ckpt import Checkpoint, Checkpointer
    from brain_core.options.run_options import RunOptions
    from brain_core.resume.setup_state import SetupState

__all__ = ["ScriptChanges"]

logger = logging.getLogger(__name__)

# What --accept_changes may name, and what it then does.
_CONSEQUENCES = {
    "data": "the epoch then starts again at its first batch, with the weights that it has reached",
    "optimizer": "optimizers, and schedulers of the learning rate, then start anew",
    "optimizer_options": "the script's options then count",
    "modules": "the parameters that fit are then loaded, and the others, new recoverables and "
    "optimizers start as the script makes them",
}
_KINDS_THAT_LOAD_LESS = ("data", "optimizer", "modules")


class ScriptChanges:
    """Compares a script with the one that saved a checkpoint, and decides what is loaded.

    Parameters
    ----------
    checkpointer : Checkpointer
        Has the recoverables.
    setup : SetupState
        Of this run.
    options : RunOptions
        ``accept_changes`` is used.
    train_set : loader
        The training loader.

    Attributes
    ----------
    restarts_epoch : bool
        Whether the loader's position was not loaded.
    """

    def __init__(
        self, checkpointer: Checkpointer, setup: SetupState, options: RunOptions, train_set: Any
    ) -> None:
        self._checkpointer = checkpointer
        self._setup = setup
        self._accepted = options.accept_changes
        self._train_set = train_set
        self._loads_less: tuple[str, ...] = ()
        setup.settings = {
            "data": settings.data_settings(train_set),
            "computation": settings.computation_settings(options),
        }

    def note_optimizers(self) -> None:
        """Remember the optimizers as the script has made them."""
        optimizers = dict(self._optimizers())
        self._setup.settings["optimizer"] = {
            name: settings.optimizer_class(optimizer) for name, optimizer in optimizers.items()
        }
        self._setup.settings["optimizer_options"] = {
            name: settings.optimizer_options(optimizer) for name, optimizer in optimizers.items()
        }

    @property
    def restarts_epoch(self) -> bool:
        """Whether the loader's position is not loaded."""
        return "data" in self._loads_less

    def check(self, epoch: str | None) -> None:
        """Raise if something was changed that the checkpoint does not fit, unless it is accepted.

        Parameters
        ----------
        epoch : str, optional
            The epoch inside which the checkpoint was saved; None at the end of one, where another
            loader needs no position.

        Raises
        ------
        CheckpointMismatchError
            Names what was changed, and the run option with which to resume all the same.
        """
        data, optimizer = self._changed("data"), self._changed("optimizer")
        if data and (epoch is None or self.accepts("data")):
            self._loads_less += ("data",)
        elif data:
            raise CheckpointMismatchError(
                f"A position inside epoch {epoch} is valid only for the batches that it was saved "
                f"with, but the script was changed: {'; '.join(data)}. {self._advice('data')}."
            )
        if optimizer and self.accepts("optimizer"):
            self._loads_less += ("optimizer",)
        elif optimizer:
            raise CheckpointMismatchError(
                "The state of an optimizer is valid only for another one of its class, but the "
                f"script was changed: {'; '.join(optimizer)}. {self._advice('optimizer')}."
            )

    def load(self, load: Callable[[Callable[[str, Any], bool]], Checkpoint | None]) -> Any:
        """Load a checkpoint, or as much of it as accepted changes leave; return it.

        Parameters
        ----------
        load : callable
            Takes a function of a recoverable's name and object that says whether to restore it.

        Raises
        ------
        CheckpointMismatchError
            If it does not fit; the text has the option that is to be given.
        """
        first: Exception | None = None
        for kinds in self._attempts():
            self._loads_less = kinds
            try:
                is_partial = "modules" in kinds
                with _loading_what_fits(self._checkpointer) if is_partial else nullcontext():
                    return load(self._is_restored)
            except (CheckpointMismatchError, RemoteError, ValueError) as error:
                first = first or error
        assert first is not None
        kind = self._kind_of(first)
        if kind is None or self.accepts(kind):
            raise first
        raise CheckpointMismatchError(f"{first}. {self._advice(kind)}") from first

    def restores(self, name: str) -> bool:
        """Return whether a recoverable is loaded if the checkpoint holds it."""
        return self._is_restored(name, self._checkpointer.recoverables[name])

    def load_again(
        self, names: Collection[str], load: Callable[[Callable[[str, Any], bool]], object]
    ) -> None:
        """Load some of what `load` has loaded a second time; optimizers and schedulers together."""
        steps = (torch.optim.Optimizer, LRScheduler)
        recoverables = self._checkpointer.recoverables
        again = {n for n, obj in recoverables.items() if n in names or isinstance(obj, steps)}
        is_partial = "modules" in self._loads_less
        with _loading_what_fits(self._checkpointer) if is_partial else nullcontext():
            load(lambda name, obj: name in again and self._is_restored(name, obj))
        self.use_accepted_options()

    def use_accepted_options(self) -> None:
        """Give optimizers the script's options where it has changed them, if that is accepted."""
        if not self.accepts("optimizer_options"):
            return
        changed = self._setup.changed_settings("optimizer_options")
        schedulers = list(self._checkpointer.recoverables.values())
        for name, optimizer in self._optimizers():
            if name in changed and self._is_restored(name, optimizer):
                saved, present = changed[name]
                settings.use_options(optimizer, saved, present, schedulers)

    def described(self, checkpoint: Checkpoint) -> list[str]:
        """Return what was changed, for the line of the resumed run."""
        changes = [*self._changed("data"), *self._changed("optimizer")]
        if self.restarts_epoch:
            changes.append("the loader starts at the first batch of an epoch")
        if "optimizer" in self._loads_less or "modules" in self._loads_less:
            changes.append("optimizers start anew")
        if "modules" in self._loads_less:
            changes.append("only parameters that fit were loaded")
        changes += self._changed_options()
        changes += self._changed("computation") + self._setup.changed_flags()
        extra = sorted(set(checkpoint.paramfiles) - set(self._checkpointer.recoverables))
        not_loaded = [name for name in extra if name != "gradient_order"]
        if not_loaded:
            changes.append(f"{', '.join(not_loaded)} of the checkpoint not loaded")
        return changes

    def accepts(self, kind: str) -> bool:
        """Return whether the user accepts what becomes of changes of a kind."""
        return self._accepted is True or (
            isinstance(self._accepted, list) and kind in self._accepted
        )

    def _changed(self, kind: str) -> list[str]:
        return [
            f"{name} {saved} -> {present}"
            for name, (saved, present) in self._setup.changed_settings(kind).items()
        ]

    def _changed_options(self) -> list[str]:
        changes = []
        accepted = self.accepts("optimizer_options")
        for name, (saved, present) in self._setup.changed_settings("optimizer_options").items():
            for number, (old, new) in enumerate(zip(saved, present, strict=False)):
                for key in [key for key in new if key in old and old[key] != new[key]]:
                    where = f"{key} of {name}" + (f", group {number}" if number else "")
                    changes.append(f"{where} {old[key]} -> {new[key]}")
        if changes and not accepted:
            changes[-1] += f" (not used; {self._advice('optimizer_options')})"
        return changes

    def _attempts(self) -> Iterator[tuple[str, ...]]:
        """Yield what to load less of, with as little as possible first."""
        known = self._loads_less
        accepted = [k for k in _KINDS_THAT_LOAD_LESS if self.accepts(k) and k not in known]
        for count in range(len(accepted) + 1):
            for more in itertools.combinations(accepted, count):
                yield known + more

    def _is_restored(self, name: str, obj: Any) -> bool:
        del name
        if obj is self._train_set:
            return "data" not in self._loads_less
        if isinstance(obj, (torch.optim.Optimizer, LRScheduler)):
            return not {"optimizer", "modules"} & set(self._loads_less)
        return True

    def _kind_of(self, error: Exception) -> str | None:
        """Return the kind of change that keeps a checkpoint from being loaded."""
        if not isinstance(error, CheckpointMismatchError):
            return None
        for name, obj in self._checkpointer.recoverables.items():
            if f"saved as {name!r}" in str(error):
                kinds = {"data": obj is self._train_set}
                kinds["optimizer"] = isinstance(obj, torch.optim.Optimizer)
                kinds["modules"] = isinstance(obj, torch.nn.Module)
                return next((kind for kind, is_it in kinds.items() if is_it), None)
        return "modules" if "must hold a file for each recoverable" in str(error) else None

    def _advice(self, kind: str) -> str:
        return f"To resume all the same, write --accept_changes={kind}: {_CONSEQUENCES[kind]}"

    def _optimizers(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        for name, obj in self._checkpointer.recoverables.items():
            if isinstance(obj, torch.optim.Optimizer):
                yield name, obj


@contextmanager
def _loading_what_fits(checkpointer: Checkpointer) -> Iterator[None]:
    """Let a checkpointer load the parameters that fit, and leave out what is not there."""
    hooks, partial = checkpointer.custom_load_hooks, checkpointer.allow_partial_load
    modules = [n for n, o in checkpointer.recoverables.items() if isinstance(o, torch.nn.Module)]
    checkpointer.custom_load_hooks = {**dict.fromkeys(modules, _load_what_fits), **hooks}
    checkpointer.allow_partial_load = True
    try:
        yield
    finally:
        checkpointer.custom_load_hooks, checkpointer.allow_partial_load = hooks, partial


def _load_what_fits(obj: torch.nn.Module, path: Any) -> None:
    if is_sharded(obj):
        raise CheckpointMismatchError(
            f"--accept_changes=modules needs whole parameters, got an FSDP2 module to load {path} "
            "into. Resume once with --parallel=ddp, save, and go on with --parallel=fsdp."
        )
    module = unwrap_module(obj)
    state, present = torch.load(path, map_location="cpu", weights_only=True), module.state_dict()
    fitting = {
        key: value
        for key, value in state.items()
        if key in present and getattr(present[key], "shape", None) == getattr(value, "shape", None)
    }
    module.load_state_dict(fitting, strict=False)
    logger.warning(
        "Loaded %d of %d parameters and buffers of %s from %s. Left as the script makes them: %s",
        len(fitting),
        len(present),
        type(module).__name__,
        path,
        ", ".join(key for key in present if key not in fitting) or "none",
    )
