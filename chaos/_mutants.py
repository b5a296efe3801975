"""Runs with one piece of their state left out: the machine has to notice each of them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from brain_ckpt import RNGState
from brain_core import EpochCounter
from brain_data import SaveableDataLoader
from chaos._recipe import Run

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MUTANTS", "apply"]


def apply(name: str | None) -> None:
    """Leave a piece out in this process."""
    if name is not None:
        MUTANTS[name]()


def _replace(owner: type, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


def _without_rng(key: str) -> Callable[[], None]:
    def mutate() -> None:
        load = RNGState.load_state_dict

        def without(self: RNGState, state: dict[str, Any]) -> None:
            load(self, {**state, key: RNGState().state_dict()[key]})

        _replace(RNGState, "load_state_dict", without)

    return mutate


def _position(offset: int) -> Callable[[], None]:
    def mutate() -> None:
        load = SaveableDataLoader.load_state_dict

        def shifted(self: SaveableDataLoader, state: dict[str, Any]) -> None:
            load(self, {**state, "position": max(0, state["position"] + offset)})

        _replace(SaveableDataLoader, "load_state_dict", shifted)

    return mutate


def _forgotten(name: str) -> Callable[[], None]:
    def mutate() -> None:
        start = Run.on_fit_start

        def without(self: Run) -> None:
            assert self.checkpointer is not None
            add = self.checkpointer.add_recoverable

            def pick(key: str, *args: Any, **kwargs: Any) -> None:
                if key != name:
                    add(key, *args, **kwargs)

            vars(self.checkpointer)["add_recoverable"] = pick
            start(self)

        _replace(Run, "on_fit_start", without)

    return mutate


def _epoch() -> None:
    def go_on(self: EpochCounter, saved: int, **_: Any) -> None:
        self.current = saved

    _replace(EpochCounter, "_go_on_from", go_on)


def _newest_checkpoint() -> None:
    start = Run.on_fit_start

    def after_a_loss(self: Run) -> None:
        assert self.checkpointer is not None
        found = self.checkpointer.find_checkpoint()
        if found is not None:
            shutil.rmtree(found.path)
        start(self)

    _replace(Run, "on_fit_start", after_a_loss)


MUTANTS: dict[str, Callable[[], None]] = {
    "python-rng": _without_rng("python"),
    "numpy-rng": _without_rng("numpy"),
    "torch-rng": _without_rng("torch"),
    "position-back": _position(-1),
    "position-on": _position(1),
    "optimizer": _forgotten("optimizer"),
    "scheduler": _forgotten("scheduler"),
    "epoch": _epoch,
    "newest-checkpoint": _newest_checkpoint,
}
"""What can be left out, by name."""
