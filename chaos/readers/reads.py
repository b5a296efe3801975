"""The kinds of reads: each checks that it saw one save, and returns the save's number."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

import torch

from brain_ckpt import Checkpoint, CheckpointGoneError, Pretrainer, average_checkpoints
from brain_ckpt.cli.main import main as brain_ckpt
from chaos.readers.subject import Subject, loss_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["READS", "MixedError", "NoneError"]

READS: dict[str, Callable[[Path, random.Random], int]] = {}


class MixedError(Exception):
    """A read returned parts of several saves."""


class NoneError(Exception):
    """A read found no checkpoint although one was published."""


def _read(
    name: str,
) -> Callable[[Callable[[Path, random.Random], int]], Callable[[Path, random.Random], int]]:
    def add(read: Callable[[Path, random.Random], int]) -> Callable[[Path, random.Random], int]:
        READS[name] = read
        return read

    return add


@_read("recover the newest")
def _newest(directory: Path, draw: random.Random) -> int:
    del draw
    subject = Subject(directory)
    return _number(subject, subject.checkpointer.recover_if_possible())


@_read("recover the best")
def _best(directory: Path, draw: random.Random) -> int:
    subject = Subject(directory)
    min_key, max_key = draw.choice([("loss", None), (None, "loss")])
    found = subject.checkpointer.recover_if_possible(min_key=min_key, max_key=max_key)
    return _number(subject, found)


@_read("recover by a predicate")
def _predicate(directory: Path, draw: random.Random) -> int:
    del draw
    subject = Subject(directory)
    found = subject.checkpointer.recover_if_possible(ckpt_predicate=_is_numbered)
    return _number(subject, found)


@_read("find")
def _find(directory: Path, draw: random.Random) -> int:
    del draw
    found = Subject(directory).checkpointer.find_checkpoints(max_key="number")
    if not found:
        raise NoneError("find_checkpoints returned nothing")
    for one in found:
        _check_meta(one)
    return int(found[0].meta["number"])


@_read("average")
def _average(directory: Path, draw: random.Random) -> int:
    count = draw.choice((1, 2))
    found = Subject(directory).checkpointer.find_checkpoints(max_num_checkpoints=count)
    if not found:
        raise NoneError("find_checkpoints returned nothing")
    average = average_checkpoints(found, "model")["weight"]
    numbers = [one.meta["number"] for one in found]
    expected = torch.tensor(sum(numbers) / len(numbers))
    if not torch.allclose(average, expected):
        raise MixedError(f"the average of {numbers} is {average.unique().tolist()}")
    return int(numbers[0])


@_read("pretrainer")
def _pretrained(directory: Path, draw: random.Random) -> int:
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
        raise CheckpointGoneError(str(error)) from error
    numbers = {
        int(value)
        for tensor in subject.model.state_dict().values()
        for value in torch.unique(tensor).tolist()
    }
    # The path of a named checkpoint can be that of a newer save by now.
    if len(numbers) != 1 or min(numbers) < found.meta["number"]:
        raise MixedError(f"meta {found.meta['number']}, parameters {sorted(numbers)}")
    return numbers.pop()


@_read("brain-ckpt ls")
def _ls(directory: Path, draw: random.Random) -> int:
    return _command("ls", str(directory), *(["--quick"] if draw.random() < 0.5 else []))  # noqa: PLR2004 - half


@_read("brain-ckpt verify")
def _verify(directory: Path, draw: random.Random) -> int:
    del draw
    return _command("verify", str(directory))


@_read("brain-ckpt prune --dry-run")
def _prune(directory: Path, draw: random.Random) -> int:
    del draw
    return _command("prune", str(directory), "--keep-last", "1", "--dry-run")


def _is_numbered(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.meta["number"] > 0)


def _number(subject: Subject, found: Checkpoint | None) -> int:
    if found is None:
        raise NoneError("recover_if_possible returned None")
    _check_meta(found)
    numbers = subject.numbers()
    if numbers != {found.meta["number"]}:
        raise MixedError(f"meta {found.meta['number']}, states {sorted(numbers)}")
    return int(found.meta["number"])


def _check_meta(checkpoint: Checkpoint) -> None:
    meta = checkpoint.meta
    if meta["loss"] != loss_of(meta["number"]):
        raise MixedError(f"meta of two saves: {meta}")


def _command(*arguments: str) -> int:
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = brain_ckpt(arguments)
    if code:
        raise RuntimeError(f"exit code {code}: {output.getvalue()} {errors.getvalue()}")
    if "CKPT+" not in output.getvalue():
        raise NoneError(f"brain-ckpt {arguments[0]} showed no checkpoint: {output.getvalue()}")
    return -1
