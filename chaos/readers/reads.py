"""The kinds of reads: each checks that it saw whole saves, and returns which.

They also run on earlier versions of brain_ckpt, which have no commit ids in checkpoints.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from brain_ckpt import Checkpoint, Pretrainer, average_checkpoints
from chaos.readers.subject import Subject, loss_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["READS", "GoneError", "MixedError", "NoneError", "Seen"]

READS: dict[str, Callable[[Path, random.Random], Seen]] = {}


class Seen(NamedTuple):
    """What a read returned.

    Parameters
    ----------
    save : int or None
        The number of the save; None if the read does not show it.
    checkpoints : list of str
        The commit id of each checkpoint, or its name if the read does not show that.
    """

    save: int | None
    checkpoints: list[str]


class GoneError(Exception):
    """A checkpoint was deleted between two calls that each name it."""


class MixedError(Exception):
    """A read returned parts of several saves."""


class NoneError(Exception):
    """A read found no checkpoint although one was published."""


def _read(
    name: str,
) -> Callable[[Callable[[Path, random.Random], Seen]], Callable[[Path, random.Random], Seen]]:
    def add(read: Callable[[Path, random.Random], Seen]) -> Callable[[Path, random.Random], Seen]:
        READS[name] = read
        return read

    return add


@_read("recover the newest")
def _newest(directory: Path, draw: random.Random) -> Seen:
    del draw
    subject = Subject(directory)
    return _number(subject, subject.checkpointer.recover_if_possible())


@_read("recover the best")
def _best(directory: Path, draw: random.Random) -> Seen:
    subject = Subject(directory)
    min_key, max_key = draw.choice([("loss", None), (None, "loss")])
    found = subject.checkpointer.recover_if_possible(min_key=min_key, max_key=max_key)
    return _number(subject, found)


@_read("recover by a predicate")
def _predicate(directory: Path, draw: random.Random) -> Seen:
    del draw
    subject = Subject(directory)
    found = subject.checkpointer.recover_if_possible(ckpt_predicate=_is_numbered)
    return _number(subject, found)


@_read("find")
def _find(directory: Path, draw: random.Random) -> Seen:
    del draw
    found = Subject(directory).checkpointer.find_checkpoints(max_key="number")
    if not found:
        raise NoneError("find_checkpoints returned nothing")
    for one in found:
        _check_meta(one)
    return _seen(found)


@_read("average")
def _average(directory: Path, draw: random.Random) -> Seen:
    count = draw.choice((1, 2))
    found = Subject(directory).checkpointer.find_checkpoints(max_num_checkpoints=count)
    if not found:
        raise NoneError("find_checkpoints returned nothing")
    average = average_checkpoints(found, "model")["weight"]
    numbers = [one.meta["number"] for one in found]
    expected = torch.tensor(sum(numbers) / len(numbers))
    if not torch.allclose(average, expected):
        raise MixedError(f"the average of {numbers} is {average.unique().tolist()}")
    return _seen(found)


@_read("pretrainer")
def _pretrained(directory: Path, draw: random.Random) -> Seen:
    del draw
    subject = Subject(directory)
    found = subject.checkpointer.find_checkpoint()
    if found is None:
        raise NoneError("find_checkpoint returned None")
    subject.fill(0)
    pretrainer = Pretrainer(
        loadables={"model": subject.model}, paths={"model": str(found.paramfiles["model"])}
    )
    try:
        pretrainer.collect_files()
        pretrainer.load_collected()
    except FileNotFoundError as error:
        if found.path.name == "CKPT+best":  # this path is that of a newer save
            raise
        raise GoneError(str(error)) from error
    numbers = {
        int(value)
        for tensor in subject.model.state_dict().values()
        for value in torch.unique(tensor).tolist()
    }
    # The path of a named checkpoint can be that of a newer save by now.
    if len(numbers) != 1 or min(numbers) < found.meta["number"]:
        raise MixedError(f"meta {found.meta['number']}, parameters {sorted(numbers)}")
    return Seen(numbers.pop(), [_identity(found)])


@_read("brain-ckpt ls")
def _ls(directory: Path, draw: random.Random) -> Seen:
    options = ["--quick"] if draw.random() < 0.5 else []  # noqa: PLR2004 - half
    rows = _command("ls", str(directory), *options)["checkpoints"]
    for row in rows:
        _check_values(row["metrics"])
    saves = [int(row["metrics"]["number"]) for row in rows]
    return Seen(max(saves, default=None), [row["name"] for row in rows])


@_read("brain-ckpt verify")
def _verify(directory: Path, draw: random.Random) -> Seen:
    del draw
    return Seen(None, list(_command("verify", str(directory))["checkpoints"]))


@_read("brain-ckpt prune --dry-run")
def _prune(directory: Path, draw: random.Random) -> Seen:
    del draw
    shown = _command("prune", str(directory), "--keep-last", "1", "--dry-run")
    if shown["damaged"]:
        raise RuntimeError(f"found damage: {shown['damaged']}")
    return Seen(None, [*shown["kept"], *shown["deleted"]])


def _is_numbered(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.meta["number"] > 0)


def _number(subject: Subject, found: Checkpoint | None) -> Seen:
    if found is None:
        raise NoneError("recover_if_possible returned None")
    _check_meta(found)
    numbers = subject.numbers()
    if numbers != {found.meta["number"]}:
        raise MixedError(f"meta {found.meta['number']}, states {sorted(numbers)}")
    return _seen([found])


def _seen(found: list[Checkpoint]) -> Seen:
    return Seen(int(found[0].meta["number"]), [_identity(one) for one in found])


def _identity(checkpoint: Checkpoint) -> str:
    return getattr(checkpoint, "commit_id", None) or checkpoint.path.name


def _check_meta(checkpoint: Checkpoint) -> None:
    _check_values(checkpoint.meta)


def _check_values(meta: dict[str, Any]) -> None:
    if meta["loss"] != loss_of(meta["number"]):
        raise MixedError(f"meta of two saves: {meta}")


def _command(*arguments: str) -> dict[str, Any]:
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = _main()([*arguments, "--json"])
    if code:
        raise RuntimeError(f"exit code {code}: {output.getvalue()} {errors.getvalue()}")
    if "CKPT+" not in output.getvalue():
        raise NoneError(f"brain-ckpt {arguments[0]} showed no checkpoint: {output.getvalue()}")
    shown: dict[str, Any] = json.loads(output.getvalue())
    return shown


def _main() -> Any:
    try:
        return importlib.import_module("brain_ckpt.cli.main").main
    except ImportError:  # an earlier version
        return importlib.import_module("brain_ckpt._cli").main
