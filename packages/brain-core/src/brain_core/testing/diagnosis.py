"""The first difference between two runs, and its likely cause from their states."""

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
    """The first difference between a run and the undisturbed run.

    Attributes
    ----------
    at : int
        Index of the record in the run.
    what : str
        Description of the difference, for a message.
    """

    at: int
    what: str


def first_difference(
    reference: Sequence[Record], run: Sequence[Record], ignored: Collection[str] = ()
) -> Difference | None:
    """Return the first difference between a run and the undisturbed run, None if they are equal.

    The run may cover only a part of the undisturbed run.

    Parameters
    ----------
    reference, run : sequence of Record
        The undisturbed run, and the run to compare with it.
    ignored : collection of str
        Names of pieces of state that may differ.
    """
    places = {record.place: i for i, record in enumerate(reference)}
    start = places.get(run[0].place, 0) if run else 0
    for index, (record, expected) in enumerate(zip(run, reference[start:], strict=False)):
        if record.place != expected.place:
            return Difference(index, f"expected {expected.place}, got {record.place}")
        differing = [p for p in _differing(expected.state, record.state, ignored) if is_outcome(p)]
        for what, piece, one, other in (
            *(("state before it", p, expected.state, record.state) for p in differing),
            *(
                ("batch", p, expected.batch, record.batch)
                for p in _differing(expected.batch, record.batch, ignored)
            ),
        ):
            return Difference(index, f"{record.place}: the {what}, {_values(piece, one, other)}")
        if None not in (record.loss, expected.loss) and record.loss != expected.loss:
            losses = f"{expected.loss} undisturbed, {record.loss} now"
            return Difference(index, f"{record.place}: the loss, {losses}")
    if start + len(run) > len(reference):
        return Difference(
            len(reference) - start, "it continues after the end of the undisturbed run"
        )
    return None


def unstable_pieces(one: Sequence[Record], other: Sequence[Record]) -> set[str]:
    """Return the pieces that are only evidence and differ between two undisturbed runs."""
    return {
        piece
        for a, b in zip(one, other, strict=False)
        for piece in _differing(a.state, b.state)
        if not is_outcome(piece)
    }


def explain_chance(reference: Sequence[Record], run: Sequence[Record], index: int) -> str:
    """Return the likely cause of a difference between two undisturbed runs at a record."""
    here, there = reference[min(index, len(reference) - 1)], run[index]
    state = _differing(here.state, there.state)
    drawn = [p.removeprefix("random.") for p in state if p.startswith("random.")]
    if index == 0 and any(p.startswith("modules.") for p in state):
        return "make_brain makes different weights each time. Seed the random generators inside it"
    if drawn:
        names = ", ".join(_GENERATORS.get(name, name) for name in drawn)
        return f"{names} differs: its seed, or how often it is used, varies between the runs"
    if not any(is_outcome(p) for p in state) and here.batch != there.batch:
        return (
            "the data depend on a source that is not seeded: a generator of their own, the time, "
            "os.urandom, or the order of a set or a directory"
        )
    return (
        "a nondeterministic kernel: the same weights, random states and batch gave different "
        'results. Set run_opts={"deterministic": True}, which also lists the operations without a '
        "deterministic implementation, or run on one thread"
    )


def explain_resume(
    reference: Sequence[Record],
    run: Sequence[Record],
    index: int,
    ignored: Collection[str] = (),
) -> str:
    """Return the likely cause of a difference between a resumed and the undisturbed run.

    The evidence is the state of the resumed run before its first batch.
    """
    places = {record.place: i for i, record in enumerate(reference)}
    start = places.get(run[0].place)
    if start is None:
        return (
            "the epochs: the state of the epoch counter, or fit's argument epoch_counter, differs"
        )
    at = _place_of_weights(reference, run[0])
    if at is not None and not start <= at <= start:
        due, got = reference[at].place, reference[start].place
        lost = "the epoch counter" if due.epoch != got.epoch else "the position in the data"
        return f"{lost} was not restored: the weights are those before {due}, but {got} follows"
    for offset, (record, expected) in enumerate(zip(run, reference[start:], strict=False)):
        causes = _causes(expected.state, record.state, ignored)
        if causes:
            when = "the run resumed with" if offset == 0 else f"from {record.place} on it has"
            return f"{when} a different state. {'; '.join(causes)}"
        if offset >= index:
            break
    return _explain_batch(reference, run, index, start)


def _explain_batch(
    reference: Sequence[Record], run: Sequence[Record], index: int, start: int
) -> str:
    record, expected = run[index], reference[min(start + index, len(reference) - 1)]
    if record.batch == expected.batch:
        return (
            "state outside the Brain: the state of the Brain and the batch are equal. Look for a "
            "global, a closure, or an object without state_dict"
        )
    same = [one.place for one in reference if one.batch == record.batch and one.batch]
    if same:
        return f"the position in the data was not restored: this is the batch of {same[0]}"
    return (
        "the rows differ although every generator was restored: the randomness of the dataset or "
        "the collate function does not depend on the position in the epoch alone. Draw from "
        "torch, numpy.random or random there, not from a separate generator"
    )


def _place_of_weights(reference: Sequence[Record], record: Record) -> int | None:
    """Return the index of the last record with the same weights, None if there is none.

    Also None if the weights are right for the record's own place.
    """

    def weights(one: Record) -> Pieces:
        steps = "progress.optimizer_step"
        return {p: t for p, t in one.state.items() if p.startswith("modules.") or p == steps}

    own_weights = weights(record)
    found = [
        i
        for i, one in enumerate(reference)
        if one.place.stage == record.place.stage and own_weights and weights(one) == own_weights
    ]
    place_is_found = any(reference[i].place == record.place for i in found)
    return None if not found or place_is_found else found[-1]


def _causes(expected: Pieces, state: Pieces, ignored: Collection[str]) -> list[str]:
    """Return the causes of the differing pieces; attributes only if nothing else differs."""
    pieces = _differing(expected, state, ignored)
    owners: dict[str, list[str]] = {}
    for piece in pieces:
        owners.setdefault(".".join(piece.split(".")[: _owner_depth(piece)]), []).append(piece)
    causes = {
        owner: _cause(owner, [_values(p, expected, state) for p in found], state)
        for owner, found in owners.items()
    }
    sure = [text for owner, text in causes.items() if not owner.startswith("attributes.")]
    return sure or list(causes.values())


def _owner_depth(piece: str) -> int:
    return 3 if piece.startswith(("unsaved.", "attributes.")) else 2


def _cause(owner: str, values: list[str], state: Pieces) -> str:
    kind, _, name = owner.partition(".")
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    shown = "" if kind == "random" else f" ({'; '.join(values[:_SHOWN])}{more})"
    return _text_of_cause(kind, name, state) + shown


def _text_of_cause(kind: str, name: str, state: Pieces) -> str:
    of_modules = f"the weights of modules.{name} were not restored"
    if name in state.get("about.unsaved_modules", "").split(", "):
        of_modules += f': call checkpointer.add_recoverable("{name}", module)'
    short = name.rpartition(".")[2]
    position = f"the position in the data ({name}) was not restored"
    saved = f"{name} is a recoverable, but its restored state differs from its saved state"
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


def _values(piece: str, expected: Pieces, found: Pieces) -> str:
    return f"{piece}: {expected.get(piece, 'absent')} undisturbed, {found.get(piece, 'absent')} now"
