"""What a script has set up when `fit` begins, and which parameters training freezes after that."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_ckpt import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from brain_core.modules.wrapping import named_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from brain_core.modules.container import Modules

__all__ = ["SetupState"]


@register_checkpoint_hooks
class SetupState:
    """The recoverable ``brain_setup``: what the script sets, as opposed to what training reached.

    A parameter's ``requires_grad`` is restored if the script sets it as it did for the run that
    was saved. If it does not, the script was changed on purpose, and its new value holds.

    Attributes
    ----------
    settings : dict of str to dict
        Plain values that the run depends on, by a name for the log, for each kind of them.
    """

    def __init__(self) -> None:
        self._modules: Modules | None = None
        self._start: dict[str, bool] = {}
        self._loaded: dict[str, Any] = {}
        self._after_fits: dict[str, list[str]] = {}
        self._is_of_this_fit = True
        self.settings: dict[str, dict[str, Any]] = {}

    def begin(self, modules: Modules) -> None:
        """Remember which parameters the script has made trainable."""
        self._modules = modules
        self._start = self._flags()
        self._loaded = {}
        self.settings = {}

    def load_text(self, text: str | None, *, is_of_this_fit: bool) -> None:
        """Keep what a checkpoint holds, for `restore`; text of another form is ignored.

        Parameters
        ----------
        text : str, optional
            What `save` wrote.
        is_of_this_fit : bool
            Whether this call of `Brain.fit` was saved. Otherwise only `restore_after` uses it.
        """
        self._is_of_this_fit = is_of_this_fit
        try:
            loaded = None if text is None else json.loads(text)
        except ValueError:
            return
        if isinstance(loaded, dict):
            self._loaded = loaded if is_of_this_fit else {}
            self._after_fits = dict(loaded.get("flipped_after_fits", {}))

    def restore(self) -> None:
        """Freeze and unfreeze parameters as training had done when the state was saved."""
        if not self._loaded:
            return
        saved_frozen, flipped = self._saved("frozen_at_start"), self._saved("flipped")
        self._set(
            {
                name: trainable != (name in flipped)
                for name, trainable in self._start.items()
                if trainable != (name in saved_frozen)
            }
        )

    @contextmanager
    def as_at_start(self) -> Iterator[None]:
        """Let parameters be trainable as the script made them, and restore that at the end."""
        now = self._flags()
        self._set(self._start)
        try:
            yield
        finally:
            self._set(now)

    def fit_ended(self, fit: int) -> None:
        """Remember which parameters are trainable after a call of `Brain.fit`."""
        self._after_fits[str(fit)] = self._flipped()

    def restore_after(self, fit: int) -> None:
        """Freeze and unfreeze parameters as they were after a call of `Brain.fit` that is done."""
        if self._modules is None:
            return
        flipped = set(self._after_fits.get(str(fit), ()))
        self._set({name: flag != (name in flipped) for name, flag in self._start.items()})

    def changed_flags(self) -> list[str]:
        """Return which parameters the script freezes or unfreezes, unlike the saved run."""
        if "frozen_at_start" not in self._loaded:
            return []
        saved_frozen = self._saved("frozen_at_start")
        changed = {n: t for n, t in self._start.items() if t == (n in saved_frozen)}
        frozen = [name for name, trainable in changed.items() if not trainable]
        unfrozen = [name for name, trainable in changed.items() if trainable]
        return [
            f"{word} {_shorten(names)}"
            for word, names in (("frozen", frozen), ("unfrozen", unfrozen))
            if names
        ]

    def changed_settings(self, kind: str) -> dict[str, tuple[Any, Any]]:
        """Return the saved and the present value of each setting of a kind that differs."""
        saved = self._loaded.get("settings", {}).get(kind, {})
        return {
            name: (saved[name], value)
            for name, value in self.settings.get(kind, {}).items()
            if name in saved and saved[name] != value
        }

    @mark_as_saver
    def save(self, path: str | Path) -> None:
        """Write the state as JSON."""
        state = {
            "frozen_at_start": [name for name, trainable in self._start.items() if not trainable],
            "flipped": self._flipped(),
            "flipped_after_fits": self._after_fits,
            "settings": self.settings,
        }
        Path(path).write_text(json.dumps(state, indent=0), encoding="utf-8")

    @mark_as_loader
    def recover(self, path: str | Path, end_of_epoch: bool) -> None:
        """Keep what a checkpoint holds, for `restore`."""
        del end_of_epoch
        text = Path(path).read_text(encoding="utf-8")
        self.load_text(text, is_of_this_fit=self._is_of_this_fit)

    def _saved(self, key: str) -> frozenset[str]:
        return frozenset(self._loaded.get(key, ()))

    def _flags(self) -> dict[str, bool]:
        assert self._modules is not None
        return {name: p.requires_grad for name, p in named_parameters(self._modules)}

    def _flipped(self) -> list[str]:
        if self._modules is None:
            return []
        return [name for name, flag in self._flags().items() if flag != self._start.get(name)]

    def _set(self, flags: Mapping[str, bool]) -> None:
        assert self._modules is not None
        for name, parameter in named_parameters(self._modules):
            if name in flags and parameter.requires_grad != flags[name]:
                parameter.requires_grad_(flags[name])


def _shorten(names: list[str]) -> str:
    """Return up to three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
