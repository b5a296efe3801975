"""The saved position of a loader: its content, how it is compared, and its files."""

from __future__ import annotations

import inspect
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import DataLoader

from brain_data.errors import nearest
from brain_data.order.sharding import dividing_world_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT = 1
OWN_OPTIONS = ("seed", "device", "elastic", "last_round", "resume_anyway", "looped_nominal_epoch")
_MAX_SETTINGS_CHARACTERS = 400
# A setting of earlier states that depended on the processor, and what is saved instead of it.
_RETIRED = {"buckets": "bucket_edges"}

Method = TypeVar("Method")


@dataclass(frozen=True)
class Position:
    """The position at which an epoch pass resumes.

    Attributes
    ----------
    epoch
        None if the state does not say: SpeechBrain's holds a number of batches only.
    batches
        Micro-batches of the plan that all ranks have consumed.
    start
        The micro-batch at which sharding began, see `ShardedPlan`.
    finished
        Whether all batches had been yielded.
    ended
        Whether the end of the pass had been seen, too.
    drawn
        The seed that torch's own RandomSampler drew for the epoch.
    order
        The checksum of an order that only its sampler knows.
    """

    epoch: int | None
    batches: int = 0
    start: int = 0
    finished: bool = False
    ended: bool = False
    drawn: int | None = None
    order: int | None = None

    @property
    def is_start(self) -> bool:
        """Whether it is the beginning of a pass."""
        return not (self.batches or self.finished)

    def next_pass(self) -> Position:
        """Return the position of the first batch of the pass after one that has ended."""
        return Position(self.epoch)

    def fields(self) -> dict[str, Any]:
        """Return the position as it is saved."""
        fields: dict[str, Any] = {
            "epoch": self.epoch,
            "position": self.batches,
            "start": self.start,
            "finished": self.finished,
            "ended": self.ended,
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
            ended=state.get("ended", False),
            drawn=state.get("drawn"),
            order=state.get("order"),
        )


def compact(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as they are saved: long ones as a checksum, to keep the state small."""
    text = json.dumps(settings, sort_keys=True, default=str)
    if len(text) <= _MAX_SETTINGS_CHARACTERS:
        plain: dict[str, Any] = json.loads(text)
        return plain
    name = str(settings.get("sampler", ""))[:80]
    return {"sampler": name, "settings": zlib.crc32(text.encode())}


def data_fingerprint(dataset: Any) -> dict[str, Any]:
    """Return the number of rows, if it is known, and the checksum of their ids, if they have ids.

    A dataset may define ``fingerprint()``, which returns a short string or a number to use instead
    of the ids.
    """
    rows = length_of(dataset)
    fingerprint: dict[str, Any] = {} if rows is None else {"rows": rows}
    custom = getattr(dataset, "fingerprint", None)
    ids = getattr(dataset, "data_ids", None)
    if callable(custom):
        fingerprint["ids"] = custom()
    elif ids is not None:
        fingerprint["ids"] = zlib.crc32("\n".join(map(str, ids)).encode())
    return fingerprint


def length_of(dataset: Any) -> int | None:
    """Return the number of rows of a dataset; None if it has no length."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def check_options(options: dict[str, Any]) -> None:
    """Raise an error for options that a loader with a position does not have.

    Parameters
    ----------
    options : dict
        Arguments by name, without those of `SaveableDataLoader` alone.
    """
    if options.get("in_order") is False:
        raise ValueError(
            "in_order must be True for a position to be defined, got False: "
            "use torch.utils.data.DataLoader for batches in any order"
        )
    if "snapshot_every_n_steps" in options:
        raise TypeError(
            "snapshot_every_n_steps is an option of torchdata's StatefulDataLoader, got "
            f"{options['snapshot_every_n_steps']!r}: leave it out, as each state here is that of "
            "the batch yielded last"
        )
    known = inspect.signature(DataLoader.__init__).parameters
    for name in options:
        if name not in known:
            raise TypeError(
                "an argument of a loader must be one of torch.utils.data.DataLoader or of "
                f"SaveableDataLoader, got {name!r}{nearest(name, [*known, *OWN_OPTIONS])}: correct "
                "its name, or leave it out"
            )


def check_format(state: dict[str, Any]) -> None:
    """Raise ValueError for anything but a loader's state."""
    if state.get("format") != FORMAT:
        raise ValueError(
            f"a loader's state of format {FORMAT} is required, got {state.get('format')!r}: "
            "it was saved by another version, or is not a loader's state"
        )


def check_unchanged(kind: str, saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Raise ValueError if the data or the plan has changed, naming what changed."""
    retired = {key for old, new in _RETIRED.items() if old in saved for key in (old, new)}
    changed = [
        f"{key} was {saved.get(key)!r} and is {present.get(key)!r}"
        for key in sorted({*saved, *present} - retired)
        if saved.get(key) != present.get(key)
    ]
    if changed:
        raise ValueError(
            f"a position is valid only for the {kind} that it was saved with, got another one: "
            f"{'; '.join(changed)}. Restore what changed, or let the epoch start again: Brain does "
            "with --accept_changes=data; elsewhere, do not load the loader's state"
        )


def check_world_size(position: int, start: int, saved: Any, present: int) -> None:
    """Raise ValueError if no round of the present number of ranks begins at a position."""
    if (position - start) % present:
        raise ValueError(
            f"a world size that divides the {position - start} micro-batches consumed is required, "
            f"got {present!r} (the state was saved on {saved!r}): use one of "
            f"{dividing_world_sizes(position, start)}, or pass elastic=True to the loader, which "
            "shards the remaining micro-batches in other groups"
        )


def write_position(path: Any, number: object, state: dict[str, Any]) -> None:
    """Write SpeechBrain's text to ``path`` and the whole state to its JSON file."""
    Path(path).write_text(str(number), encoding="utf-8")
    json_path(path).write_text(json.dumps(state), encoding="utf-8")


def read_position(path: Any) -> dict[str, Any] | int | None:
    """Read a state, or the number of batches that SpeechBrain wrote; None if it wrote None."""
    if json_path(path).is_file():
        state: dict[str, Any] = json.loads(json_path(path).read_text(encoding="utf-8"))
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


def json_path(path: Any) -> Path:
    """Return the path of the whole state that belongs to SpeechBrain's text file."""
    text = Path(path)
    return (
        text.with_suffix(".json") if text.suffix == ".ckpt" else text.with_name(f"{text.name}.json")
    )


def mark(name: str) -> Callable[[Method], Method]:
    """Decorate a method with the attribute by which SpeechBrain's checkpointer finds it."""

    def decorate(method: Method) -> Method:
        setattr(method, name, True)
        return method

    return decorate
