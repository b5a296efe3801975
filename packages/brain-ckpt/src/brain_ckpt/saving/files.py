"""Write the files of one checkpoint on the leader of a node."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.errors import CheckpointSaveError
from brain_ckpt.recoverables.parameter_groups import encode_names
from brain_ckpt.recoverables.serialization import find_unsafe_names, write_state
from brain_ckpt.retention.checkpoint import Checkpoint
from brain_ckpt.saving.shards import index_file
from brain_ckpt.storage.layout import PARAMETER_NAMES, PARAMFILE_EXT, RANKS_DIRECTORY
from brain_ckpt.storage.manifest import Manifest
from brain_ckpt.storage.stream import Stream, write_file
from brain_dist import RanksLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from brain_ckpt.recoverables.registry import Recoverable
    from brain_ckpt.saving.plan import SavePlan
    from brain_ckpt.saving.shards import ShardFile, ShardPlan
    from brain_ckpt.saving.snapshot import Snapshot
    from brain_ckpt.storage.store import Store


# Errors of a full disk, and of a network file system that is away.
_PASSING = {
    getattr(errno, name, errno.ENOSPC)  # Windows does not have all of them
    for name in (
        *("ENOSPC", "EDQUOT", "EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN"),
        *("EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
    )
}


class CheckpointFiles:
    """The files of one checkpoint, from its staging directory to its publication.

    Parameters
    ----------
    store : Store
        The directory of checkpoints.
    plan : SavePlan
        The decisions about the save.
    """

    def __init__(self, store: Store, plan: SavePlan) -> None:
        self._store = store
        self._plan = plan
        self._staging = store.stage(plan.staging.name, plan.final.name)

    def make_subdirectory(self, name: str) -> None:
        """Make a directory below the checkpoint."""
        self._store.make_subdirectory(self._staging, name)

    def call_savers(self, recoverables: Sequence[Recoverable]) -> None:
        """Call the hooks that write a file on the first rank only."""
        for recoverable in recoverables:
            if recoverable.saver is None or recoverable.per_rank:
                continue
            path = self._staging.path / f"{recoverable.name}{PARAMFILE_EXT}"
            if not recoverable.saver.all_ranks:
                recoverable.saver.call(path)
            if not path.exists():
                raise CheckpointSaveError(
                    f"a saver must write the path that it gets, but that of {recoverable.name!r} "
                    f"did not write {path.name}; write an empty state there if there is none"
                )
            if recoverable.loader is None:
                _check_loadable(recoverable, path)

    def write_states(self, snapshot: Snapshot, rank_files: Sequence[Mapping[str, bytes]]) -> None:
        """Write the states of a snapshot.

        Parameters
        ----------
        snapshot : Snapshot
            The states of this rank.
        rank_files : sequence of mapping
            The files that each rank has its own of, in rank order.
        """
        store, staging = self._store, self._staging
        for name, state in snapshot.states.items():
            file = f"{name}{PARAMFILE_EXT}"
            produce = _producer(state)
            staging.files[file] = write_file(staging.path / file, produce, store.algorithm)
        if snapshot.parameter_names:
            store.write(staging, PARAMETER_NAMES, encode_names(snapshot.parameter_names))
        for rank, files in enumerate(rank_files):
            for name, content in files.items():
                directory = f"{RANKS_DIRECTORY}/{rank}"
                store.make_subdirectory(staging, directory)
                store.write(staging, f"{directory}/{name}.pt", content)

    def seal(self, shards: ShardPlan | None, shard_files: Sequence[ShardFile]) -> None:
        """Write the index of the shards, the meta file and the manifest.

        Parameters
        ----------
        shards : ShardPlan, optional
            The tensors of which each rank has a part.
        shard_files : sequence of ShardFile
            The files that the ranks have written of them.
        """
        store, staging, plan = self._store, self._staging, self._plan
        if shards is not None:
            staging.files.update((file.name, file.digest) for file in shard_files)
            store.write(staging, *index_file(shards, shard_files))
        store.add_external_files(staging)
        step = plan.meta.get("step")
        manifest = Manifest(
            commit_id=plan.commit_id,
            run_id=store.run_id,
            seq=plan.seq,
            step=step if isinstance(step, int) and not isinstance(step, bool) else None,
            world=plan.world_size,
            torch=torch.__version__,
            algorithm=store.algorithm,
        )
        store.seal(staging, plan.meta, manifest)

    def publish(self) -> None:
        """Publish the sealed checkpoint durably."""
        self._store.publish(self._staging)

    def discard(self) -> None:
        """Delete the staging directory."""
        self._store.discard(self._staging)


def _check_loadable(recoverable: Recoverable, path: Path) -> None:
    unsafe = find_unsafe_names(path, recoverable.safe_globals)
    if unsafe:
        raise CheckpointSaveError(
            f"the file of {recoverable.name!r} must hold tensors and plain values to be restored "
            f"without running code, got {', '.join(unsafe)}; save plain values in the hook, pass a "
            f"custom_load_hook, or register the class with Checkpointer(safe_globals=[...])"
        )


def planned_checkpoint(plan: SavePlan, recoverables: Sequence[Recoverable]) -> Checkpoint:
    """Return the checkpoint that a save will publish."""
    files = {
        recoverable.name: plan.final / f"{recoverable.name}{PARAMFILE_EXT}"
        for recoverable in recoverables
        if not recoverable.per_rank
    }
    return Checkpoint(plan.final, plan.meta, files, commit_id=plan.commit_id)


def save_error(error: BaseException, final: Path, meta: Mapping[str, Any]) -> CheckpointSaveError:
    """Return the error of a save that failed, with its cause in the text."""
    if isinstance(error, CheckpointSaveError):
        return error
    file = getattr(error, "filename", None)
    reason = getattr(error, "strerror", None) or str(error) or repr(error)
    # The rank that publishes may have heard from the lost one before this rank did.
    unless = ", unless the others published this one" if isinstance(error, RanksLostError) else ""
    made = CheckpointSaveError(
        f"{final} could not be saved: {type(error).__name__}: {reason}"
        f"{f' ({file})' if file else ''}; existing checkpoints are unchanged{unless}: "
        f"{_advice(error)}, and save again"
    )
    made.may_pass = getattr(error, "errno", None) in _PASSING
    made.meta = meta
    return made


def _advice(error: BaseException) -> str:
    full = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quotas
    return "free space" if isinstance(error, OSError) and error.errno in full else "fix the cause"


def _producer(state: Any) -> Callable[[Stream], None]:
    return lambda stream: write_state(state, stream)
