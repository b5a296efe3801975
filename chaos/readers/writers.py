"""The kinds of writers: each saves until it is killed."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from chaos.readers.subject import Subject

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["WRITERS", "Writer", "write"]

_GROUP_TIMEOUT_S = 60


@dataclass(frozen=True)
class Writer:
    """One kind of writer.

    Parameters
    ----------
    name : str or None
        The name of every checkpoint; None makes names from the time.
    ranks : int
        The number of ranks.
    keep : dict
        Arguments of `save_and_keep_only`; none of them saves without deleting.
    delete_every : int
        Delete all but the newest after so many saves; 0 never does.
    options : dict
        Arguments of the checkpointer.
    """

    name: str | None = None
    ranks: int = 1
    keep: dict[str, Any] = field(default_factory=dict)
    delete_every: int = 0
    options: dict[str, Any] = field(default_factory=dict)


WRITERS = {
    "blocking": Writer(keep={"num_to_keep": 1}),
    "best and newest": Writer(keep={"num_to_keep": 2, "min_keys": ["loss"]}),
    "asynchronous": Writer(keep={"num_to_keep": 1}, options={"asynchronous": True}),
    "named": Writer(name="best", keep={"num_to_keep": 1}),
    "unrenamed": Writer(keep={"num_to_keep": 1}, options={"atomic_rename": False}),
    "unrenamed, named": Writer(
        name="best", keep={"num_to_keep": 1}, options={"atomic_rename": False}
    ),
    "sharded on 2 ranks": Writer(ranks=2, keep={"num_to_keep": 1}),
    "pruning": Writer(delete_every=5),
}


def write(writer: Writer, directory: Path, rank: int, store: Path, pause_s: float) -> None:
    """Save until the process is killed.

    Parameters
    ----------
    writer : Writer
        The kind of writer.
    directory : Path
        The directory of checkpoints.
    rank : int
        The rank of this process.
    store : Path
        A new file for the process group.
    pause_s : float
        The longest pause between two saves, in seconds.
    """
    if writer.ranks > 1:
        _join(store, rank, writer.ranks)
    subject = Subject(directory, writer.ranks, **writer.options)
    found = subject.checkpointer.recover_if_possible()
    number = 0 if found is None else found.meta["number"]
    draw = random.Random(number)  # the same on all ranks
    while True:
        number += 1
        meta = subject.fill(number)
        if writer.delete_every:
            subject.checkpointer.save_checkpoint(meta, verbosity=0)
            if number % writer.delete_every == 0:
                subject.checkpointer.delete_checkpoints(num_to_keep=1, verbosity=0)
        else:
            subject.checkpointer.save_and_keep_only(
                meta, name=writer.name, verbosity=0, **writer.keep
            )
        deadline = time.monotonic() + draw.choice((0.0, 0.0, 1.0)) * draw.random() * pause_s
        subject.checkpointer.poll()
        while time.monotonic() < deadline:
            time.sleep(0.005)
            if writer.ranks == 1:
                subject.checkpointer.poll()


def _join(store: Path, rank: int, ranks: int) -> None:
    from torch import distributed

    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(str(store), ranks),  # type: ignore[attr-defined]  # not in __all__
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=_GROUP_TIMEOUT_S),
    )
