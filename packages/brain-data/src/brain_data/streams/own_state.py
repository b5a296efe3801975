"""The state of a stream's own: whether it has one, asking for it, loading it and undoing that."""

from __future__ import annotations

from typing import Any

from brain_data.fetching.json_values import from_json, to_json


def has_state(stream: Any) -> bool:
    """Return whether a dataset or an iterator has ``state_dict`` and ``load_state_dict``."""
    return callable(getattr(stream, "state_dict", None)) and callable(
        getattr(stream, "load_state_dict", None)
    )


def state_of(stream: Any) -> Any:
    """Return a stream's own state, or None if it has none that can be saved."""
    try:
        return to_json(stream.state_dict()) if has_state(stream) else None
    except Exception:  # noqa: BLE001 - no state of a stream's may end a run
        return None


def attributes(stream: Any) -> dict[str, Any] | None:
    """Return a copy of the attributes of a stream, or None if it has no ``__dict__``."""
    return dict(vars(stream)) if hasattr(stream, "__dict__") else None


def set_attributes(stream: Any, former: dict[str, Any] | None) -> None:
    """Undo what a state that could not be used has set."""
    if former is not None:
        for name in vars(stream).keys() - former.keys():
            del vars(stream)[name]
        vars(stream).update(former)


class LoadedState:
    """The state that a dataset was given for a pass, and not for those that follow.

    A stream of Hugging Face's (datasets 5) keeps the object that ``load_state_dict`` was given, and
    begins every pass of that epoch from it. What a dataset keeps unchanged is taken from it again.
    """

    def __init__(self) -> None:
        self._given: Any = None
        self._state: Any = None
        self._before: dict[str, Any] = {}

    def load(self, dataset: Any, state: Any) -> None:
        """Give a state, as JSON has it, to a dataset."""
        self._before = attributes(dataset) or {}
        self._given, self._state = from_json(state), state
        dataset.load_state_dict(self._given)

    def take_back(self, dataset: Any) -> None:
        """Undo what the dataset still keeps of the state when another pass begins."""
        given, self._given = self._given, None
        if not isinstance(given, dict) or to_json(given) != self._state:
            return
        kept = [name for name, value in (attributes(dataset) or {}).items() if value is given]
        for name in kept:
            if name in self._before:
                vars(dataset)[name] = self._before[name]
            else:
                del vars(dataset)[name]
