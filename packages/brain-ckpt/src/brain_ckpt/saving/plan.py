"""Decide the name, number, time and directory of a save, on the first rank."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import (
    check_name,
    directory_name,
    name_from_time,
    parse_leftover,
)
from brain_ckpt.storage.listing import looks_like_checkpoint
from brain_ckpt.storage.meta import plain_meta
from brain_dist import get_world_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from brain_ckpt.storage.lock import LastSave
    from brain_ckpt.storage.store import Store

logger = logging.getLogger(__name__)

# The least distance in time between two saves, also if the clock is coarse or was set back.
_MIN_STEP_S = 0.001


@dataclass(frozen=True)
class SaveRequest:
    """The arguments of a save.

    Parameters
    ----------
    meta : dict
        Plain values.
    end_of_epoch : bool
        The value of "end-of-epoch" in the meta file.
    name : str or None
        The name of the checkpoint; None makes one from the time.
    verbosity : int
        The level to log at.
    """

    meta: dict[str, Any]
    end_of_epoch: bool
    name: str | None
    verbosity: int


def make_request(
    meta: Mapping[str, Any] | None, *, end_of_epoch: bool, name: str | None, verbosity: int
) -> SaveRequest:
    """Check the arguments of a save.

    Raises
    ------
    TypeError, ValueError
        If meta or the name is not valid.
    """
    if name is not None:
        check_name(name, "the name of a checkpoint")
    return SaveRequest(plain_meta(meta or {}), bool(end_of_epoch), name, verbosity)


class SavePlan(NamedTuple):
    """The decisions about a save, the same on every rank."""

    staging: Path
    final: Path
    meta: dict[str, Any]
    seq: int
    commit_id: str
    world_size: int
    time_s: float


class DirectoryState(NamedTuple):
    """The newest time, the highest number and the used names in a directory, now and before."""

    newest_s: float
    seq: int
    used_names: frozenset[str]


def read_directory_state(store: Store, request: SaveRequest, last: LastSave) -> DirectoryState:
    """Clean up a directory, whose lock is held, and return what is in it.

    The last save counts also if its checkpoint was deleted.

    Raises
    ------
    ValueError
        If the requested name is that of something other than a checkpoint.
    """
    try:
        names = store.clean_up()
    except OSError as error:
        logger.warning("The cleanup of %s failed: %s", store.root, error)
        names = filesystem.inodes(store.root)
    newest = store.newest(names)
    if request.name is not None:
        final = store.root / directory_name(request.name)
        is_checkpoint = filesystem.is_directory(final) and looks_like_checkpoint(final)
        if final.name in names and not is_checkpoint:
            raise ValueError(
                f"a save may replace only a checkpoint of the same name, got {final}, which is "
                f"none; move it away or choose another name"
            )
    hidden = [name for name in names if name[0] == "."]  # all temporary names are
    leftovers = [leftover for name in hidden if (leftover := parse_leftover(name))]
    used_names = {*names, *(leftover.checkpoint for leftover in leftovers), last.name}
    return DirectoryState(
        max(last.time_s, newest.time_s), max(last.seq, newest.seq), frozenset(used_names)
    )


def make_plan(store: Store, request: SaveRequest, states: Sequence[DirectoryState]) -> SavePlan:
    """Plan a save.

    Parameters
    ----------
    store : Store
        The directory of this node.
    request : SaveRequest
        The arguments of the save.
    states : sequence of DirectoryState
        Of every directory that gets a copy.
    """
    used_names = frozenset().union(*(state.used_names for state in states))
    newest_s = max(state.newest_s for state in states)
    time_s = max(time.time(), newest_s + _MIN_STEP_S)
    if request.name is None:
        name = name_from_time(time_s, used_names)
    else:
        name = directory_name(request.name)
    meta = {
        "unixtime": time_s,
        "end-of-epoch": request.end_of_epoch,
        **request.meta,
    }
    return SavePlan(
        staging=store.root / store.staging_name(name, replaces=name in used_names),
        final=store.root / name,
        meta=meta,
        seq=max(state.seq for state in states) + 1,
        commit_id=uuid.uuid4().hex,
        world_size=get_world_size(),
        time_s=time_s,
    )
