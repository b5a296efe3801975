"""A loader's saved position: what it holds, how it is compared, how it lies on disk."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from brain_data.order.plan import valid_world_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT = 1
_SETTINGS_CHARACTERS = 400

Method = TypeVar("Method")


@dataclass(frozen=True)
class Position:
    """Where a pass goes on.

    Attributes
    ----------
    epoch
        None where the state does not say: SpeechBrain's holds a number of batches only.
    batches
        Micro-batches of the plan consumed by all ranks.
    start
        Where dealing to ranks began, see `brain_data.order.plan.Deal`.
    finished
        Whether the pass was over.
    drawn
        The seed that torch's own RandomSampler drew for the epoch.
    order
        The checksum of an order that only its sampler knows.
    """

    epoch: int | None
    batches: int = 0
    start: int = 0
    finished: bool = False
    drawn: int | None = None
    order: int | None = None

    def fields(self) -> dict[str, Any]:
        """Return the position as it is saved."""
        fields: dict[str, Any] = {
            "epoch": self.epoch,
            "position": self.batches,
            "start": self.start,
            "finished": self.finished,
        }
        optional = {"drawn": self.drawn, "order": self.order}
        return fields | {key: value for key, value in optional.items() if value is not None}

    @classmethod
    def from_fields(cls, state: dict[str, Any]) -> Position:
        """Return a saved position."""
        return cls(
            epoch=state["epoch"],
            batches=state["position"],
            start=state["start"],
            finished=state["finished"],
            drawn=state.get("drawn"),
            order=state.get("order"),
        )


def compact(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as they are saved: long ones as a checksum, so that the state stays small."""
    text = json.dumps(settings, sort_keys=True, default=str)
    if len(text) <= _SETTINGS_CHARACTERS:
        plain: dict[str, Any] = json.loads(text)
        return plain
    name = str(settings.get("sampler", ""))[:80]
    return {"sampler": name, "settings": zlib.crc32(text.encode())}


def data_fingerprint(dataset: Any) -> dict[str, Any]:
    """Return what identifies data: the number of rows and, where rows have ids, their checksum.

    A dataset may have a ``fingerprint()`` of its own, a short string or a number.
    """
    fingerprint: dict[str, Any] = {"rows": len(dataset)}
    own = getattr(dataset, "fingerprint", None)
    ids = getattr(dataset, "data_ids", None)
    if callable(own):
        fingerprint["ids"] = own()
    elif ids is not None:
        fingerprint["ids"] = zlib.crc32("\n".join(map(str, ids)).encode())
    return fingerprint


def check_format(state: dict[str, Any]) -> None:
    """Refuse what is not a loader's state."""
    if state.get("format") != FORMAT:
        raise ValueError(
            f"a loader's state of format {FORMAT} is required, got {state.get('format')!r}: "
            "it was saved by another version, or is not a loader's"
        )


def check_same(kind: str, saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Refuse a state of other data or another plan, naming what changed."""
    changed = [
        f"{key} was {saved.get(key)!r} and is {present.get(key)!r}"
        for key in sorted({*saved, *present})
        if saved.get(key) != present.get(key)
    ]
    if changed:
        raise ValueError(
            f"a position is saved for one {kind} and can be gone back to only in the same, got "
            f"another: {'; '.join(changed)}. Give the loader what it had, or leave its saved state "
            "out to begin the epoch anew"
        )


def check_world_size(position: int, start: int, saved: Any, present: int) -> None:
    """Refuse a position that the present number of ranks does not reach."""
    if (position - start) % present:
        raise ValueError(
            f"a world size that divides the {position - start} micro-batches consumed is required, "
            f"got {present!r} (the state was saved on {saved!r}): use one of "
            f"{valid_world_sizes(position, start)}, or give the loader elastic=True to deal out "
            "what is left in other groups"
        )


def write(path: Any, number: object, state: dict[str, Any]) -> None:
    """Write SpeechBrain's text at ``path`` and the whole state in a ``.json`` beside it."""
    Path(path).write_text(str(number), encoding="utf-8")
    beside(path).write_text(json.dumps(state), encoding="utf-8")


def read(path: Any) -> dict[str, Any] | int | None:
    """Read a state, or the number of batches that SpeechBrain wrote; None where it wrote None."""
    if beside(path).is_file():
        state: dict[str, Any] = json.loads(beside(path).read_text(encoding="utf-8"))
        return state
    text = Path(path).read_text(encoding="utf-8").strip()
    if text == str(None):
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"{path} must hold a number of batches or None, got {text[:80]!r}: the file is not a "
            "saved position of a loader"
        ) from None


def beside(path: Any) -> Path:
    """Return where the whole state lies, beside SpeechBrain's text."""
    text = Path(path)
    return (
        text.with_suffix(".json") if text.suffix == ".ckpt" else text.with_name(f"{text.name}.json")
    )


def marked(mark: str) -> Callable[[Method], Method]:
    """Mark a method as SpeechBrain marks the ones that its checkpointer calls."""

    def decorate(method: Method) -> Method:
        setattr(method, mark, True)
        return method

    return decorate
