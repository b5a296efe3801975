"""Go back to a chosen older checkpoint, once."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

from brain_ckpt import set_aside
from brain_core.resume.run_state import Progress
from brain_dist import run_on_main

if TYPE_CHECKING:
    from pathlib import Path

    from brain_ckpt import Checkpoint, Checkpointer

__all__ = ["go_back"]

logger = logging.getLogger(__name__)

_RECORD = "resume_from.json"  # in the folder of what was set aside


def go_back(checkpointer: Checkpointer, request: str | None) -> None:
    """Make a chosen checkpoint the newest one; those after it are moved into ``set_aside``.

    Every rank calls it. What was done is recorded there, so that the same command line, started
    again after a preemption, does not go back once more.

    Parameters
    ----------
    checkpointer : Checkpointer
        Of the run.
    request : str, optional
        The name of a checkpoint, ``step:N`` for the one saved after N optimizer steps, or
        ``epoch:N`` for the last one of that epoch; None does nothing.

    Raises
    ------
    ValueError
        If there is no such checkpoint; the text lists those that there are.
    """
    if request is None:
        return
    record = checkpointer.checkpoints_dir / "set_aside" / _RECORD
    if run_on_main(_was_done, args=(record, request)):
        logger.info(
            "The run has gone back to %s before, as %s says; it resumes from the newest "
            "checkpoint. To go back once more, delete that file.",
            request,
            record,
        )
        return
    found: list[Checkpoint] = []

    def find() -> str:
        found.append(_find(checkpointer, request))
        return found[0].path.name

    name = run_on_main(find)
    moved = set_aside(checkpointer, found[0] if found else None)
    run_on_main(_write, args=(record, {"resume_from": request, "checkpoint": name}))
    logger.warning(
        "Going back to %s. %d newer checkpoints were moved to %s: %s.",
        name,
        len(moved),
        record.parent,
        ", ".join(moved) or "none",
    )


def _find(checkpointer: Checkpointer, request: str) -> Checkpoint:
    checkpoints = checkpointer.list_checkpoints()
    kind, _, number = request.partition(":")
    known = {one.path.name: _progress(one) for one in checkpoints}
    one: Checkpoint
    for one in reversed(checkpoints):
        progress = known[one.path.name]
        wanted = {"step": progress.get("optimizer_step"), "epoch": progress.get("epoch")}
        if one.path.name in (request, os.path.basename(request.rstrip("/"))):
            return one
        if kind in wanted and number.isdecimal() and wanted[kind] == int(number):
            return one
    listed = "; ".join(
        f"{name} (step:{progress.get('optimizer_step')}, epoch:{progress.get('epoch')})"
        for name, progress in known.items()
    )
    raise ValueError(
        "resume_from must be the name of a checkpoint, step:N or epoch:N, got "
        f"{request!r}. Those in {checkpointer.checkpoints_dir} are: {listed or 'none'}."
    )


def _progress(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.paramfiles.get("brain")
    try:
        progress = None if path is None else Progress.from_yaml(path.read_text("utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        progress = None  # damaged: it can be chosen by its name only
    if progress is None:
        return {}
    return {"optimizer_step": progress.optimizer_step, "epoch": progress.epoch}


def _was_done(record: Path, request: str) -> bool:
    try:
        written = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(written, dict) and written.get("resume_from") == request


def _write(record: Path, content: dict[str, str]) -> None:
    record.parent.mkdir(exist_ok=True)
    part = record.with_name(f".{record.name}.part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(record)
