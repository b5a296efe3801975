"""Where two runs part, and what the states of both say about the cause."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from brain_core.testing.state import Pieces, is_outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from brain_core.testing.record import Record

__all__ = ["Difference", "explain_chance", "explain_resume", "first_difference", "unstable_pieces"]

_GENERATORS = {
    "python": "Python's generator (module random)",
    "numpy": "NumPy's generator (numpy.random)",
    "torch": "torch's generator",
}
_PROGRESS = {
    "mean": "the running mean of the epoch's losses",
    "optimizer_step": "the count of optimizer steps",
    "nonfinite_count": "the count of losses that were not finite",
}
_SHOWN = 3


class Difference(NamedTuple):
    """The first place at which a run is not the undisturbed one.

    Attributes
    ----------
    at : int
        Which of the run's own records it is.
    what : str
        What differs there, for a message.
    """

    at: int
    what: str


def first_difference(
    reference: Sequence[Record], run: Sequence[Record], ignored: Collection[str] = ()
) -> Difference | None:
    """Compare a run, which may begin and end within the undisturbed one, with that.

    Parameters
    ----------
    reference, run : sequence of Record
        The undisturbed run, and the other.
    ignored : collection of str
        Names of pieces that may differ.
    """
    places = {record.place: i for i, record in enumerate(reference)}
    start = places.get(run[0].place, 0) if run else 0
    for index, (record, expected) in enumerate(zip(run, reference[start:], strict=False)):
        if record.place != expected.place:
            return Difference(index, f"it does {record.place}, where {expected.place} was due")
        differing = [p for p in _differing(expected.state, record.state, ignored) if is_outcome(p)]
        for what, piece, one, other in (
            *(("state before it", p, expected.state, record.state) for p in differing),
            *(
                ("batch", p, expected.batch, record.batch)
                for p in _differing(expected.batch, record.batch, ignored)
            ),
        ):
            return Difference(index, f"{record.place}: the {what}, {_told(piece, one, other)}")
        if None not in (record.loss, expected.loss) and record.loss != expected.loss:
            told = f"{expected.loss} undisturbed, {record.loss} now"
            return Difference(index, f"{record.place}: the loss, {told}")
    if start + len(run) > len(reference):
        return Difference(len(reference) - start, "it goes on after the undisturbed run's end")
    return None


def unstable_pieces(one: Sequence[Record], other: Sequence[Record]) -> set[str]:
    """Name the pieces that are evidence only and differ between two undisturbed runs."""
    return {
        piece
        for a, b in zip(one, other, strict=False)
        for piece in _differing(a.state, b.state)
        if not is_outcome(piece)
    }


def explain_chance(reference: Sequence[Record], run: Sequence[Record], index: int) -> str:
    """Say why two undisturbed runs part at a record."""
    here, there = reference[min(index, len(reference) - 1)], run[index]
    state = _differing(here.state, there.state)
    drawn = [p.removeprefix("random.") for p in state if p.startswith("random.")]
    if index == 0 and any(p.startswith("modules.") for p in state):
        return (
            "make_brain makes other weights each time. Seed what it draws from, inside make_brain"
        )
    if drawn:
        names = ", ".join(_GENERATORS.get(name, name) for name in drawn)
        return f"{names} is seeded from, or drawn from as often as, something that varies"
    if not any(is_outcome(p) for p in state) and here.batch != there.batch:
        return (
            "the data are drawn from something that is not seeded: a generator of their own, the "
            "time, os.urandom, or the order of a set or a directory"
        )
    return (
        "a nondeterministic kernel: the same weights, random states and batch gave another result. "
        'Set run_opts={"deterministic": True}, which also lists the operations that cannot be made '
        "so, or run on one thread"
    )


def explain_resume(
    reference: Sequence[Record],
    run: Sequence[Record],
    index: int,
    ignored: Collection[str] = (),
) -> str:
    """Say why a run that went on from a checkpoint parts from the undisturbed one at a record.

    The evidence is the state with which it went on, before it did anything.
    """
    places = {record.place: i for i, record in enumerate(reference)}
    start = places.get(run[0].place)
    if start is None:
        return "the epochs: the counter, or what fit is given as epoch_counter, is not what it was"
    at = _place_of_weights(reference, run[0])
    if at is not None and not start <= at <= start:
        due, got = reference[at].place, reference[start].place
        lost = "the epoch counter" if due.epoch != got.epoch else "the position in the data"
        return f"{lost} was not restored: the weights are those before {due}, it goes on with {got}"
    for offset, (record, expected) in enumerate(zip(run, reference[start:], strict=False)):
        causes = _causes(expected.state, record.state, ignored)
        if causes:
            when = "it went on with" if offset == 0 else f"from {record.place} on it has"
            return f"{when} another state. {'; '.join(causes)}"
        if offset >= index:
            break
    return _explain_batch(reference, run, index, start)


def _explain_batch(
    reference: Sequence[Record], run: Sequence[Record], index: int, start: int
) -> str:
    record, expected = run[index], reference[min(start + index, len(reference) - 1)]
    if record.batch == expected.batch:
        return (
            "state that is not to be seen from the Brain: all that it holds is equal, and so is "
            "the batch. Look for a global, a closure, or an object without state_dict"
        )
    same = [one.place for one in reference if one.batch == record.batch and one.batch]
    if same:
        return f"the position in the data was not restored: this is the batch of {same[0]}"
    return (
        "the rows are drawn differently though every generator is where it was: the dataset's or "
        "the collate function's randomness is not keyed by the place in the epoch. Draw it from "
        "torch, numpy.random or random, not from a generator of its own"
    )


def _place_of_weights(reference: Sequence[Record], record: Record) -> int | None:
    """Find the place that a state's weights belong to, if they tell it."""

    def weights(one: Record) -> Pieces:
        steps = "progress.optimizer_step"
        return {p: t for p, t in one.state.items() if p.startswith("modules.") or p == steps}

    mine = weights(record)
    found = [
        i
        for i, one in enumerate(reference)
        if one.place.stage == record.place.stage and mine and weights(one) == mine
    ]
    mine_is_there = any(reference[i].place == record.place for i in found)
    return None if not found or mine_is_there else found[-1]


def _causes(expected: Pieces, state: Pieces, ignored: Collection[str]) -> list[str]:
    """Translate the pieces that differ; attributes count only where nothing else does."""
    pieces = _differing(expected, state, ignored)
    owners: dict[str, list[str]] = {}
    for piece in pieces:
        owners.setdefault(".".join(piece.split(".")[: _owner_depth(piece)]), []).append(piece)
    causes = {
        owner: _cause(owner, [_told(p, expected, state) for p in found], state)
        for owner, found in owners.items()
    }
    sure = [text for owner, text in causes.items() if not owner.startswith("attributes.")]
    return sure or list(causes.values())


def _owner_depth(piece: str) -> int:
    return 3 if piece.startswith(("unsaved.", "attributes.")) else 2


def _cause(owner: str, told: list[str], state: Pieces) -> str:
    kind, _, name = owner.partition(".")
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    shown = "" if kind == "random" else f" ({'; '.join(told[:_SHOWN])}{more})"
    return _text_of_cause(kind, name, state) + shown


def _text_of_cause(kind: str, name: str, state: Pieces) -> str:
    of_modules = f"the weights of modules.{name} were not restored"
    if name in state.get("about.unsaved_modules", "").split(", "):
        of_modules += f': call checkpointer.add_recoverable("{name}", module)'
    short = name.rpartition(".")[2]
    position = f"the position in the data ({name}) was not restored"
    saved = f"{name} is among the recoverables, and was not restored as it was saved"
    return {
        "random": f"{_GENERATORS.get(name, name)} was not restored",
        "progress": f"{_PROGRESS.get(name, name)} was not restored",
        "gradients": (
            "the accumulation window: the checkpoint was saved inside it, and the gradients of its "
            "first batches are lost"
        ),
        "modules": of_modules,
        "unsaved": (
            f'{name} is in no checkpoint: call checkpointer.add_recoverable("{short}", {name})'
        ),
        "attributes": f"{name} changes in training and is in no checkpoint",
        "recoverables": position if name.startswith("dataloader") else saved,
    }[kind]


def _differing(one: Pieces, other: Pieces, ignored: Collection[str] = ()) -> list[str]:
    names = dict.fromkeys((*one, *other))
    return [n for n in names if one.get(n) != other.get(n) and n not in ignored]


def _told(piece: str, expected: Pieces, found: Pieces) -> str:
    return f"{piece}: {expected.get(piece, 'absent')} undisturbed, {found.get(piece, 'absent')} now"
