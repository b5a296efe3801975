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
    from collections.abc import Callable
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
    with contextlib.ExitStack() as stack:
        token = run_on_first_rank(lambda: _write_token(root, uuid.uuid4().hex, 0, stack))
        # The usual case, found with one file and one look at it by each rank.
        if all(gather_results(lambda: _is_visible(root, token, 0))):
            return Nodes(is_leader=rank == 0, shared=True)
        if rank:
            _write_token(root, token, rank, stack)
        written = gather_results((root / f"{TOKEN}{token}.{rank}").exists)
        leaders = gather_results(lambda: _first_visible(root, token, len(written)))
    if not all(written):
        return Nodes(is_leader=rank == 0, shared=True)
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


def _write_token(root: Path, token: str, rank: int, stack: contextlib.ExitStack) -> str:
    """Write the file of a rank, which is deleted with the stack; return the token."""
    path = root / f"{TOKEN}{token}.{rank}"
    with contextlib.suppress(OSError):
        path.touch()
    stack.callback(_delete, path)
    return token


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _first_visible(root: Path, token: str, ranks: int) -> int | None:
    """Return the first rank whose file this rank sees, which is the leader of its node."""
    return next((other for other in range(ranks) if _is_visible(root, token, other)), None)


def _is_visible(root: Path, token: str, rank: int) -> bool:
    # Opened by name, because a network file system can list a directory from its cache.
    try:
        os.close(os.open(root / f"{TOKEN}{token}.{rank}", os.O_RDONLY))
    except OSError:
        return False
    return True
