"""What the first rank decides before a save: name, number, time, and where it is written."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from brain_ckpt.retention.policies import ckpt_recency
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import directory_name, parse_leftover, stamped_name
from brain_ckpt.storage.listing import looks_like_checkpoint
from brain_dist import get_world_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from brain_ckpt.storage.store import Store

logger = logging.getLogger(__name__)

# A clock that was set back, or is coarse, must not hide a newer checkpoint.
_TICK_S = 0.001


@dataclass(frozen=True)
class Request:
    """What a save was asked for.

    Parameters
    ----------
    meta : dict
        Plain values.
    end_of_epoch : bool
        Goes into the meta file.
    name : str or None
        The checkpoint's name; None makes one from the time.
    verbosity : int
        The level to log at.
    """

    meta: dict[str, Any]
    end_of_epoch: bool
    name: str | None
    verbosity: int


class Plan(NamedTuple):
    """What the first rank decided about a save; every rank gets it."""

    staging: Path
    final: Path
    meta: dict[str, Any]
    seq: int
    commit: str
    world: int


class Survey(NamedTuple):
    """What is in one directory: the newest time, the highest number, the names."""

    newest_s: float
    seq: int
    taken: frozenset[str]


def survey(store: Store, request: Request) -> Survey:
    """Look at a directory, whose lock is held, and put right what dead runs left.

    Raises
    ------
    ValueError
        If the name is that of something else than a checkpoint.
    """
    try:
        store.tidy()
    except OSError as error:
        logger.warning("%s could not be tidied: %s", store.root, error)
    listing = store.listing()
    names = filesystem.names(store.root)
    if request.name is not None:
        final = store.root / directory_name(request.name)
        mine = filesystem.is_directory(final) and looks_like_checkpoint(final)
        if final.name in names and not mine:
            raise ValueError(
                f"a checkpoint replaces only one of its name, got {final}, which is none; "
                f"move it away or choose another name"
            )
    taken = {*names, *(left.checkpoint for name in names if (left := parse_leftover(name)))}
    newest_s = max(map(ckpt_recency, listing.checkpoints), default=0.0)
    return Survey(newest_s, listing.seq, frozenset(taken))


def make_plan(store: Store, request: Request, surveys: Sequence[Survey], last_seq: int) -> Plan:
    """Decide about a save.

    Parameters
    ----------
    store : Store
        The directory, of this node.
    request : Request
        What was asked for.
    surveys : sequence of Survey
        Of every directory that gets a copy.
    last_seq : int
        The number of this run's last save.
    """
    taken = frozenset().union(*(one.taken for one in surveys))
    name = (
        stamped_name(time.time(), taken) if request.name is None else directory_name(request.name)
    )
    newest_s = max(one.newest_s for one in surveys)
    meta = {
        "unixtime": max(time.time(), newest_s + _TICK_S),
        "end-of-epoch": request.end_of_epoch,
        **request.meta,
    }
    return Plan(
        staging=store.root / store.directory(name, replaces=name in taken),
        final=store.root / name,
        meta=meta,
        seq=max(last_seq, *(one.seq for one in surveys)) + 1,
        commit=uuid.uuid4().hex,
        world=get_world_size(),
    )
