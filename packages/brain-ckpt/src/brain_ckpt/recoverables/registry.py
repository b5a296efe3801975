"""What is saved, by name, and the ways in which that is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from brain_ckpt.recoverables.hooks import HookRegistry, find_loader, find_saver
from brain_ckpt.saving.files import Item
from brain_ckpt.storage.layout import check_name, check_recoverable

Only = Callable[[str, Any], bool]


class Recoverables:
    """Objects by name.

    Parameters
    ----------
    custom_load_hooks, custom_save_hooks : mapping of str to callable, optional
        By name.
    hooks : HookRegistry, optional
        Hooks by type.
    """

    def __init__(
        self,
        custom_load_hooks: Mapping[str, Callable[..., Any]] | None,
        custom_save_hooks: Mapping[str, Callable[..., Any]] | None,
        hooks: HookRegistry | None,
    ) -> None:
        self.recoverables: dict[str, Any] = {}
        self.optional_recoverables: dict[str, bool] = {}
        self.custom_load_hooks = dict(custom_load_hooks or {})
        self.custom_save_hooks = dict(custom_save_hooks or {})
        self.hooks = hooks or HookRegistry()
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
        """Add something to save and recover; a name that is there already gets the new object.

        Parameters
        ----------
        name : str
            Its name, which becomes that of its file.
        obj : object
            Anything with a state, marked methods, or hooks.
        custom_load_hook : callable, optional
            ``hook(obj, path, end_of_epoch)``, or without the flag.
        custom_save_hook : callable, optional
            ``hook(obj, path)``; runs on the first rank.
        optional_load : bool
            Whether a checkpoint without it may be loaded.
        per_rank : bool
            Whether each rank has a state of its own, such as its random numbers.  A rank that a
            checkpoint has no state for keeps the one it has.

        Raises
        ------
        TypeError
            If there is no way to save and load it.
        ValueError
            If the name cannot be that of a file, or differs from another one only by case.
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
        """Add several things to save and recover.

        Raises
        ------
        AttributeError
            If it is not a mapping, as in SpeechBrain.
        """
        if not isinstance(recoverables, Mapping):
            raise AttributeError(  # noqa: TRY004 - the reference's type
                f"recoverables are a mapping from names to objects, got {recoverables!r}; write "
                f'{{"model": model}}'
            )
        for name, obj in recoverables.items():
            self.add_recoverable(name, obj)

    def _chosen(self, only: Only | None = None) -> list[Item]:
        # Found anew at each save and load: the mappings are the user's to change.
        return [
            Item(
                check_name(name, "the name of a recoverable"),
                obj,
                find_saver(obj, self.custom_save_hooks.get(name), self.hooks),
                find_loader(obj, self.custom_load_hooks.get(name), self.hooks),
                optional=self.optional_recoverables.get(name, False),
                per_rank=name in self._per_rank,
            )
            for name, obj in self.recoverables.items()
            if only is None or only(name, obj)
        ]
