"""Detect which ranks see the same directory, with a token file.

If nodes share no file system, each has a leader and a complete copy of every checkpoint.  A
checkpoint is prepared on all nodes before it is published on any.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brain_ckpt.ranks.agreement import gather_results, run_on_all_ranks, run_on_first_rank
from brain_dist import get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from brain_ckpt.storage.store import Store

logger = logging.getLogger(__name__)

TOKEN = ".brain.token-"  # noqa: S105 - the name of a file


@dataclass(frozen=True)
class Nodes:
    """The role of this rank on its node.

    Parameters
    ----------
    is_leader : bool
        Whether this rank writes for its node.
    shared : bool
        Whether all ranks see the same directory; then the first rank is the only leader.
    """

    is_leader: bool
    shared: bool

    def run_on_leaders(self, action: Callable[[], object]) -> None:
        """Call a function on the leaders; an error is raised on every rank."""
        run_on_all_ranks(lambda: action() if self.is_leader else None)

    def all_leaders_agree(self, question: Callable[[], bool]) -> bool:
        """Return on every rank whether a question is true on all leaders."""
        if self.shared:
            return run_on_first_rank(question)
        return all(gather_results(lambda: question() if self.is_leader else True))


def detect_nodes(root: Path) -> Nodes:
    """Detect which ranks see the directory of this rank; every rank calls it with its own.

    A directory that not all ranks can write to, as in evaluation, counts as shared.
    """
    if get_world_size() == 1:
        return Nodes(is_leader=True, shared=True)
    rank = get_rank()
    token = run_on_first_rank(lambda: uuid.uuid4().hex)
    with _token(root / f"{TOKEN}{token}.{rank}"):
        written = gather_results((root / f"{TOKEN}{token}.{rank}").exists)
        visible = gather_results(
            lambda: [other for other in range(len(written)) if _is_visible(root, token, other)]
        )
    if not all(written):
        return Nodes(is_leader=rank == 0, shared=True)
    leaders = [min(ranks) for ranks in visible]
    return Nodes(is_leader=leaders[rank] == rank, shared=set(leaders) == {0})


def roll_forward(nodes: Nodes, store: Store, lock: Callable[[], None]) -> None:
    """Publish checkpoints that are published on a node and prepared on the others.

    Every rank calls it.

    Parameters
    ----------
    nodes : Nodes
        The roles of the ranks.
    store : Store
        The directory of this node.
    lock : callable
        Acquires its lock.
    """

    def read_commits() -> tuple[set[str], set[str]] | None:
        if not nodes.is_leader:
            return None
        return set(store.published_commits()), set(store.prepared_commits())

    by_node = [one for one in gather_results(read_commits) if one is not None]
    published: set[str] = set().union(*(one[0] for one in by_node))
    on_all_nodes = published.intersection(*(one[0] | one[1] for one in by_node))

    def publish() -> None:
        lock()
        for commit, staging in store.prepared_commits().items():
            if commit in on_all_nodes:
                store.publish(staging)
                logger.warning("Published %s, which another node had published", staging.final)

    nodes.run_on_leaders(publish)


def common_names(nodes: Nodes, store: Store) -> set[str]:
    """Return the names of the checkpoints that every node has; every rank calls it."""
    by_rank = gather_results(lambda: store.published_commits() if nodes.is_leader else None)
    copies = [one for one in by_rank if one is not None]
    common = set(copies[0]).intersection(*copies)
    return {copies[0][commit] for commit in common}


@contextlib.contextmanager
def _token(path: Path) -> Iterator[None]:
    with contextlib.suppress(OSError):
        path.touch()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _is_visible(root: Path, token: str, rank: int) -> bool:
    # Opened by name, because a network file system can list a directory from its cache.
    try:
        os.close(os.open(root / f"{TOKEN}{token}.{rank}", os.O_RDONLY))
    except OSError:
        return False
    return True
