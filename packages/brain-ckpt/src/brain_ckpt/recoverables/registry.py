"""The objects to save and restore, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from brain_ckpt.ranks.agreement import run_on_all_ranks
from brain_ckpt.recoverables.encoding import encode_state
from brain_ckpt.recoverables.hooks import HookRegistry, PathHook, find_loader, find_saver
from brain_ckpt.recoverables.parameter_groups import named_parameters
from brain_ckpt.recoverables.safe_globals import SafeGlobal, SafeGlobals
from brain_ckpt.recoverables.sharding import is_sharded, split
from brain_ckpt.recoverables.size import estimate_bytes
from brain_ckpt.recoverables.states import get_state
from brain_ckpt.storage.layout import check_name, check_recoverable
from brain_dist import get_world_size

RecoverableFilter = Callable[[str, Any], bool]


@dataclass(frozen=True)
class Recoverable:
    """One object to save and restore, and how.

    Parameters
    ----------
    name : str
        Its name, and that of its file.
    obj : object
        The object.
    saver, loader : PathHook or None
        The hook that writes or reads the file; None saves or loads the state of the object.
    optional : bool
        Whether a checkpoint without it can be loaded.
    per_rank : bool
        Whether each rank has its own state.
    safe_globals : SafeGlobals
        Registered classes, whose objects its state can hold.
    parameters : mapping of str to Tensor
        For an optimizer, the parameters of all modules that are saved, by name.
    """

    name: str
    obj: Any
    saver: PathHook | None
    loader: PathHook | None
    optional: bool = False
    per_rank: bool = False
    safe_globals: SafeGlobals = field(default_factory=SafeGlobals)
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def encoded_state(self) -> Any:
        """Return the state of the object as it is saved, without sharded tensors."""
        state = get_state(self.obj)
        if is_sharded(self.obj):
            state, _ = split(state, self.name)
        return encode_state(state, self.name, self.safe_globals)


class RecoverableRegistry:
    """Holds the objects to save and restore, by name.

    Parameters
    ----------
    custom_load_hooks, custom_save_hooks : mapping of str to callable, optional
        Hooks by the names of their objects.
    hooks : HookRegistry, optional
        Hooks by type.
    safe_globals : iterable of type or callable
        Registered classes, whose objects states can hold.
    """

    def __init__(
        self,
        custom_load_hooks: Mapping[str, Callable[..., Any]] | None,
        custom_save_hooks: Mapping[str, Callable[..., Any]] | None,
        hooks: HookRegistry | None,
        safe_globals: Iterable[SafeGlobal] = (),
    ) -> None:
        self.recoverables: dict[str, Any] = {}
        self.optional_recoverables: dict[str, bool] = {}
        self.custom_load_hooks = dict(custom_load_hooks or {})
        self.custom_save_hooks = dict(custom_save_hooks or {})
        self.hooks = hooks or HookRegistry()
        self._safe_globals = SafeGlobals(safe_globals)
        self._per_rank: set[str] = set()

    def add_recoverable(
        self,
        name: str,
        obj: Any,
        custom_load_hook: Callable[..., Any] | None = None,
        custom_save_hook: Callable[..., Any] | None = None,
        optional_load: bool = False,
        *,
        per_rank: bool = False,
    ) -> None:
        """Add an object to save and restore; an object of the same name is replaced.

        Parameters
        ----------
        name : str
            Its name, which becomes the name of its file.
        obj : object
            Anything with a state, marked methods or hooks.
        custom_load_hook : callable, optional
            ``hook(obj, path, end_of_epoch)``, or without the flag.
        custom_save_hook : callable, optional
            ``hook(obj, path)``; called on the first rank.
        optional_load : bool
            Whether a checkpoint without it can be loaded.
        per_rank : bool
            Whether each rank has its own state, such as its random number generators.  A rank
            without a state in the checkpoint keeps its current one.

        Raises
        ------
        TypeError
            If there is no way to save or load it.
        ValueError
            If the name is not a valid file name, or differs from another one only by case.
        """
        check_recoverable(name, self.recoverables)
        find_saver(obj, custom_save_hook or self.custom_save_hooks.get(name), self.hooks)
        find_loader(obj, custom_load_hook or self.custom_load_hooks.get(name), self.hooks)
        self.recoverables[name] = obj
        self.optional_recoverables[name] = optional_load
        (self._per_rank.add if per_rank else self._per_rank.discard)(name)
        if custom_load_hook is not None:
            self.custom_load_hooks[name] = custom_load_hook
        if custom_save_hook is not None:
            self.custom_save_hooks[name] = custom_save_hook

    def add_recoverables(self, recoverables: Mapping[str, Any]) -> None:
        """Add several objects to save and restore.

        Raises
        ------
        AttributeError
            If the argument is not a mapping; the type is SpeechBrain's.
        """
        if not isinstance(recoverables, Mapping):
            raise AttributeError(  # noqa: TRY004 - SpeechBrain's type
                f"recoverables must be a mapping from names to objects, got {recoverables!r}; "
                f"write "
                f'{{"model": model}}'
            )
        for name, obj in recoverables.items():
            self.add_recoverable(name, obj)

    def check_restorable(self) -> None:
        """Check that the current states could be restored; every rank calls it.

        Nothing is written, and no tensor is copied.  The files of custom savers are checked when
        they are saved.

        Raises
        ------
        CheckpointSaveError
            If a state has a value that could not be restored without running code; the text has
            its path and type.
        """

        def check() -> None:
            for recoverable in self._select():
                if recoverable.saver is None:
                    recoverable.encoded_state()

        run_on_all_ranks(check)

    def estimate_bytes(self) -> int:
        """Return about how many bytes a checkpoint takes; every rank calls it.

        Tensors are counted, and what torch's optimizers add at their first step.  Files of custom
        savers count as empty.
        """
        return sum(
            estimate_bytes(one.obj) * (get_world_size() if one.per_rank else 1)
            for one in self._select()
            if one.saver is None
        )

    def _select(self, only: RecoverableFilter | None = None) -> list[Recoverable]:
        # Built at each save and load, because users may change the mappings in between.
        optimizers = {
            n for n, o in self.recoverables.items() if isinstance(o, torch.optim.Optimizer)
        }
        parameters = named_parameters(self.recoverables) if optimizers else {}
        return [
            Recoverable(
                check_name(name, "the name of a recoverable"),
                obj,
                find_saver(obj, self.custom_save_hooks.get(name), self.hooks),
                find_loader(obj, self.custom_load_hooks.get(name), self.hooks),
                optional=self.optional_recoverables.get(name, False),
                per_rank=name in self._per_rank,
                safe_globals=self._safe_globals,
                parameters=parameters if name in optimizers else {},
            )
            for name, obj in self.recoverables.items()
            if only is None or only(name, obj)
        ]
