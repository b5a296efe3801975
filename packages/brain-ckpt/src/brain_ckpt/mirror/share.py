"""Which files of a checkpoint each process uploads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brain_ckpt.storage.layout import SHARDS_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Callable

    from brain_ckpt.storage.manifest import Manifest

_SHARD = re.compile(rf"{SHARDS_DIRECTORY}/__(\d+)_\d+\.distcp")


@dataclass(frozen=True)
class Share:
    """The part that this process has in the upload of each checkpoint.

    The first rank of each node uploads the shards that the ranks of its node have written.  The
    first rank of all uploads everything else, and publishes when all parts are there.

    Parameters
    ----------
    rank, world_size : int
        This rank, and how many there are.
    ranks_of_node : int
        How many ranks each node has.
    is_shared : bool
        Whether all nodes see the same directory.  If not, each node has a complete copy, and only
        the first one uploads.
    """

    rank: int = 0
    world_size: int = 1
    ranks_of_node: int = 1
    is_shared: bool = True

    @property
    def publishes(self) -> bool:
        """Whether this process puts the manifests."""
        return self.rank == 0

    @property
    def uploads(self) -> bool:
        """Whether this process uploads anything."""
        is_first_of_node = self.rank % self.ranks_of_node == 0
        return self.publishes or (self.is_shared and is_first_of_node)

    def is_divided(self, manifest: Manifest) -> bool:
        """Return whether several nodes upload a checkpoint."""
        is_of_this_world = manifest.world == self.world_size > self.ranks_of_node
        return self.is_shared and is_of_this_world and any(map(_SHARD.fullmatch, manifest.files))

    def files_of(self, manifest: Manifest) -> Callable[[str], bool]:
        """Return a function that tells whether this process uploads a file."""
        if not self.is_divided(manifest):
            return lambda _: self.publishes

        def is_own(file: str) -> bool:
            shard = _SHARD.fullmatch(file)
            writer = int(shard.group(1)) if shard else 0
            return writer // self.ranks_of_node == self.rank // self.ranks_of_node

        return is_own
