"""A loader's saved position: what it holds, how it is compared, how it lies on disk."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._plan import valid_world_sizes

FORMAT = 1
_SETTINGS_CHARACTERS = 400


@dataclass(frozen=True)
class Position:
    """Where a pass goes on."""

    epoch: int | None
    """None where the state does not say: SpeechBrain's holds a number of batches only."""
    batches: int
    """Micro-batches of the plan consumed by all ranks."""
    start: int = 0
    """Where dealing to ranks began, see `brain_data._plan.Deal`."""
    drawn: int | None = None
    """The seed that torch's own RandomSampler drew for the epoch."""
    order: int | None = None
    """The checksum of an order that only its sampler knows."""
    finished: bool = False
    """Whether the pass was over."""


def compact(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are saved: long ones by their checksum, so that the state stays small."""
    text = json.dumps(settings, sort_keys=True, default=str)
    if len(text) <= _SETTINGS_CHARACTERS:
        plain: dict[str, Any] = json.loads(text)
        return plain
    name = str(settings.get("sampler", ""))[:80]
    return {"sampler": name, "settings": zlib.crc32(text.encode())}


def data_fingerprint(dataset: Any) -> dict[str, Any]:
    """Return what identifies the data: the number of rows and, where rows have ids, their checksum."""
    fingerprint: dict[str, Any] = {"rows": len(dataset)}
    own = getattr(dataset, "fingerprint", None)
    ids = getattr(dataset, "data_ids", None)
    if callable(own):
        fingerprint["ids"] = own()
    elif ids is not None:
        fingerprint["ids"] = zlib.crc32("\n".join(map(str, ids)).encode())
    return fingerprint


def check_same(kind: str, saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Refuse a state of other data or another plan, naming what changed."""
    changed = [
        f"{key} was {saved.get(key)!r} and is {present.get(key)!r}"
        for key in sorted({*saved, *present})
        if saved.get(key) != present.get(key)
    ]
    if changed:
        raise ValueError(
            f"the position in the data was saved for the same {kind}, got another: "
            f"{'; '.join(changed)}. Give the loader what it had, or leave its saved state out to "
            "begin the epoch anew"
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


def write(path: Any, batches: int | None, state: dict[str, Any]) -> None:
    """Write SpeechBrain's number at ``path`` and the whole state beside it."""
    Path(path).write_text(str(batches), encoding="utf-8")
    _beside(path).write_text(json.dumps(state), encoding="utf-8")


def read(path: Any) -> dict[str, Any] | int | None:
    """Read a state, or the number of batches that SpeechBrain wrote; None where it wrote None."""
    if _beside(path).is_file():
        state: dict[str, Any] = json.loads(_beside(path).read_text(encoding="utf-8"))
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


def _beside(path: Any) -> Path:
    path = Path(path)
    return (
        path.with_suffix(".json") if path.suffix == ".ckpt" else path.with_name(path.name + ".json")
    )
