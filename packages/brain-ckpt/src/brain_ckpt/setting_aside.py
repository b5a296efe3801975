"""Go back to an older checkpoint: newer ones are moved into a folder, and nothing is deleted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointError
from brain_ckpt.ranks.agreement import run_on_first_rank
from brain_ckpt.retention.checkpoint import ckpt_recency
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import SET_ASIDE
from brain_ckpt.storage.listing import is_unfinished

if TYPE_CHECKING:
    from pathlib import Path

    from brain_ckpt.checkpointer import Checkpointer
    from brain_ckpt.retention.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


def set_aside(checkpointer: Checkpointer, newer_than: Checkpoint | None) -> list[str]:
    """Move all checkpoints that are newer than one into the folder ``set_aside``.

    There no recovery, retention or listing finds them; to take one back, move its folder. Every
    rank calls it. Killed at any moment, it is completed by the next call with the same checkpoint.

    Parameters
    ----------
    checkpointer : Checkpointer
        Of the directory.
    newer_than : Checkpoint or None
        The checkpoint that will be the newest. Only rank 0's is used.

    Returns
    -------
    list of str
        The names of the checkpoints that were moved, the oldest first.

    Raises
    ------
    CheckpointLockedError
        If another process writes to the directory.
    CheckpointError
        If a checkpoint could not be moved, or the mirror has newer ones, from where they would come
        back.
    """
    # Not `close`, which would upload what is newer to a mirror.
    close = checkpointer._writer.close  # noqa: SLF001 - of this package
    close()
    directory = checkpointer._directory  # noqa: SLF001 - of this package
    store = directory.store

    def newer() -> list[str]:
        assert newer_than is not None
        _check_mirror(checkpointer, newer_than)
        names = [one.path.name for one in store.listing().checkpoints]
        return names[names.index(newer_than.path.name) + 1 :]

    names = run_on_first_rank(newer)

    def move() -> None:
        directory.lock()
        try:
            # The newest first: what remains after a kill is a run as it was at some time.
            for name in reversed(names):
                source = store.root / name
                if filesystem.is_directory(source):
                    store.move(source, _free(store.root / SET_ASIDE, name))
        except OSError as error:
            raise CheckpointError(
                f"checkpoints in {store.root} could not be moved to {SET_ASIDE}: {error}; call it "
                f"again"
            ) from error

    if names:
        directory.nodes().run_on_leaders(move)
        close()
    return names


def _check_mirror(checkpointer: Checkpointer, newer_than: Checkpoint) -> None:
    copies = checkpointer._copies  # noqa: SLF001 - of this package
    if copies is None:
        return
    newest_s = ckpt_recency(newer_than)
    newer = [one.path.name for one in copies.only_there([]) if ckpt_recency(one) > newest_s]
    if newer:
        raise CheckpointError(
            f"going back to {newer_than.path.name} needs a mirror without newer checkpoints, got "
            f"{', '.join(newer)} in {copies.shown}; give this run a mirror of its own (brain-ckpt "
            f"pull copies from the other one)"
        )


def _free(folder: Path, name: str) -> Path:
    """Return a path in a folder that does not exist, or is an unfinished copy."""
    path, number = folder / name, 2
    while filesystem.is_directory(path) and not is_unfinished(path):
        path, number = folder / f"{name}.{number}", number + 1
    return path
