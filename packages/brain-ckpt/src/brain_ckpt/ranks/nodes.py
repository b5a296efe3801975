"""Which ranks see the same directory: found out by a token file, not asked.

Where nodes share no file system, one rank of each leads: every node keeps a whole copy, prepared
on all of them before it is published on any.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brain_ckpt.ranks.agreement import agree, decide, together
from brain_dist import get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from brain_ckpt.storage.store import Store

logger = logging.getLogger(__name__)

TOKEN = ".brain.token-"  # noqa: S105 - the name of a file


@dataclass(frozen=True)
class Nodes:
    """The place of this rank among those that see one directory, or several.

    Parameters
    ----------
    leads : bool
        Whether this rank writes for its node.
    shared : bool
        Whether all ranks see the same directory, so that the first one leads all.
    """

    leads: bool
    shared: bool

    def on_leaders(self, action: Callable[[], object]) -> None:
        """Run something on the leaders; any error is raised on every rank."""
        agree(lambda: action() if self.leads else None)

    def all_leaders(self, question: Callable[[], bool]) -> bool:
        """Ask the leaders; every rank gets whether all of them say yes."""
        if self.shared:
            return decide(question)
        return all(together(lambda: question() if self.leads else True))


def discover(root: Path) -> Nodes:
    """Find out who sees this rank's directory; every rank calls it, each with its own.

    A directory that nobody can write to, as when a run is only evaluated, counts as shared.
    """
    if get_world_size() == 1:
        return Nodes(leads=True, shared=True)
    rank = get_rank()
    token = decide(_new_token)
    with _token(root / f"{TOKEN}{token}.{rank}"):
        written = together((root / f"{TOKEN}{token}.{rank}").exists)
        seen = together(
            lambda: [other for other in range(len(written)) if _sees(root, token, other)]
        )
    if not all(written):
        return Nodes(leads=rank == 0, shared=True)
    leaders = [min(ranks) for ranks in seen]
    return Nodes(leads=leaders[rank] == rank, shared=set(leaders) == {0})


def roll_forward(nodes: Nodes, store: Store, lock: Callable[[], None]) -> None:
    """Publish what is published on one node and prepared on all others; every rank calls it.

    Parameters
    ----------
    nodes : Nodes
        Who leads.
    store : Store
        This node's directory.
    lock : callable
        Takes its lock.
    """

    def look() -> tuple[set[str], set[str]] | None:
        return (set(store.commits()), set(store.prepared())) if nodes.leads else None

    seen = [one for one in together(look) if one is not None]
    published: set[str] = set().union(*(one[0] for one in seen))
    everywhere = published.intersection(*(one[0] | one[1] for one in seen))

    def publish() -> None:
        lock()
        for commit, staging in store.prepared().items():
            if commit in everywhere:
                store.publish(staging)
                logger.warning("published %s, as another node had", staging.final)

    nodes.on_leaders(publish)


def common_names(nodes: Nodes, store: Store) -> set[str]:
    """Return the names of the checkpoints that every node has; every rank calls it."""
    found = together(lambda: store.commits() if nodes.leads else None)
    copies = [one for one in found if one is not None]
    common = set(copies[0]).intersection(*copies)
    return {copies[0][commit] for commit in common}


def _new_token() -> str:
    return uuid.uuid4().hex


@contextlib.contextmanager
def _token(path: Path) -> Iterator[None]:
    with contextlib.suppress(OSError):
        path.touch()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _sees(root: Path, token: str, rank: int) -> bool:
    # Opened by its name: a network file system may list a directory as it was a minute ago.
    try:
        os.close(os.open(root / f"{TOKEN}{token}.{rank}", os.O_RDONLY))
    except OSError:
        return False
    return True
