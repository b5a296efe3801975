"""Runs that do not restore one piece of their state: chaos must notice each of them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from brain_ckpt import RNGState
from brain_core import (
    EMA,
    CSVLogger,
    EarlyStopping,
    EpochCounter,
    FileTrainLogger,
    GradNormMonitor,
    JSONLinesLogger,
    LRSchedule,
)
from brain_data import SaveableDataLoader
from chaos._recipe import Run

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MUTANTS", "apply"]


def apply(name: str | None) -> None:
    """Stop restoring a piece of state in this process; None leaves all as it is."""
    if name is not None:
        MUTANTS[name]()


def _replace(owner: type, name: str, function: Callable[..., Any]) -> None:
    """Replace a method, which must exist: otherwise nothing would be left out."""
    assert callable(getattr(owner, name))
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


def _without_recoverable(name: str) -> Callable[[], None]:
    def mutate() -> None:
        start = Run.on_fit_start

        def without(self: Run) -> None:
            assert self.checkpointer is not None
            add = self.checkpointer.add_recoverable

            def add_others(key: str, *args: Any, **kwargs: Any) -> None:
                if key != name:
                    add(key, *args, **kwargs)

            vars(self.checkpointer)["add_recoverable"] = add_others
            start(self)

        _replace(Run, "on_fit_start", without)

    return mutate


def _without_state_of(owner: type) -> Callable[[], None]:
    return lambda: _replace(owner, "load_state_dict", lambda _self, _state: None)


def _epoch() -> None:
    def skip_the_rest(self: EpochCounter, saved: int, **_: Any) -> None:
        self.current = saved

    _replace(EpochCounter, "_continue_from", skip_the_rest)


def _newest_checkpoint() -> None:
    start = Run.on_fit_start

    def without_newest(self: Run) -> None:
        assert self.checkpointer is not None
        found = self.checkpointer.find_checkpoint()
        if found is not None:
            shutil.rmtree(found.path)
        start(self)

    _replace(Run, "on_fit_start", without_newest)


MUTANTS: dict[str, Callable[[], None]] = {
    "python-rng": _without_rng("python"),
    "numpy-rng": _without_rng("numpy"),
    "torch-rng": _without_rng("torch"),
    "position-back": _position(-1),
    "position-on": _position(1),
    "optimizer": _without_recoverable("optimizer"),
    "scheduler": _without_recoverable("scheduler"),
    "epoch": _epoch,
    "newest-checkpoint": _newest_checkpoint,
    "average": _without_state_of(EMA),
    "early-stopping": _without_state_of(EarlyStopping),
    "schedule": _without_state_of(LRSchedule),
    "gradient-norms": _without_state_of(GradNormMonitor),
    "text-log": _without_state_of(FileTrainLogger),
    "table": _without_state_of(CSVLogger),
    "json-lines": _without_state_of(JSONLinesLogger),
}
"""What can be left out, by the name of the option ``--without``."""
