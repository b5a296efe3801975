"""Rank, number of processes and device of this process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Mapping

# SLURM_PROCID is also set in jobs whose processes another launcher started: it comes last.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "SLURM_LOCALID", "JSM_NAMESPACE_LOCAL_RANK")
_LOCAL_SIZE_VARIABLES = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "JSM_NAMESPACE_LOCAL_SIZE")
_SLURM_SIZE_VARIABLES = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
_LAUNCH_COMMAND = "torchrun --standalone --nproc-per-node 2 train.py"


@dataclass(frozen=True)
class World:
    """Rank and size of the run, as the launcher of this process set them.

    Parameters
    ----------
    rank : int
        Index of this process, ``0 <= rank < world_size``.
    world_size : int
        Number of processes on all machines.
    local_rank : int
        Index of this process on its machine.
    local_world_size : int
        Number of processes on this machine.
    launched : bool
        Whether a launcher (torchrun, srun, jsrun) set them; False in a process started by hand.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launched: bool = False

    def __post_init__(self) -> None:
        """Check that the rank is in range."""
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"a rank lies in 0..WORLD_SIZE-1, got rank={self.rank!r} and "
                f"world_size={self.world_size!r}; start with `{_LAUNCH_COMMAND}`, which sets both"
            )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> World:
        """Read the variables of torchrun, else of srun, else of jsrun.

        Parameters
        ----------
        environ : mapping, optional
            Environment variables; those of this process by default.

        Returns
        -------
        World
            ``World()``, one process, if no launcher set a rank.

        Raises
        ------
        ValueError
            If RANK is set without WORLD_SIZE, a value is not a number, or a rank is out of range.
        """
        environ = os.environ if environ is None else environ
        rank = _rank_from(environ)
        if rank is None:
            return cls()
        slurm = not {"RANK", "LOCAL_RANK"} & environ.keys() and "SLURM_PROCID" in environ
        if slurm and rank == 0 and _first_number(environ, ("SLURM_STEP_NUM_TASKS",)) in (None, 1):
            # The shell of a batch job, or an interactive one: srun has started no ranks.
            return cls()
        names = _SLURM_SIZE_VARIABLES if slurm else ("WORLD_SIZE", "JSM_NAMESPACE_SIZE")
        world_size = _first_number(environ, names)
        if world_size is None:
            raise ValueError(
                f"a rank needs {names[0]} as well, got rank {rank!r} and no {names[0]}; "
                f"start with `{_LAUNCH_COMMAND}`, or `unset RANK LOCAL_RANK` to run in one process"
            )
        local_rank = _first_number(environ, _LOCAL_RANK_VARIABLES)
        local_size = _first_number(environ, _LOCAL_SIZE_VARIABLES)
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=rank if local_rank is None else local_rank,
            local_world_size=world_size if local_size is None else local_size,
            launched=True,
        )


def is_distributed_initialized() -> bool:
    """Return whether a process group exists, whoever made it."""
    return distributed.is_available() and distributed.is_initialized()


def get_rank() -> int:
    """Return the rank of this process.

    Returns
    -------
    int
        The rank in the group once one exists; before that RANK, LOCAL_RANK, SLURM_PROCID or
        JSM_NAMESPACE_RANK, in this order; 0 in one process, where SpeechBrain returns None.
    """
    if is_distributed_initialized():
        return distributed.get_rank()
    return _rank_from(os.environ) or 0


def get_local_rank() -> int:
    """Return the index of this process on its machine.

    Returns
    -------
    int
        LOCAL_RANK, SLURM_LOCALID or JSM_NAMESPACE_LOCAL_RANK; without them the rank, which is
        right on one machine; 0 in one process.
    """
    local_rank = _first_number(os.environ, _LOCAL_RANK_VARIABLES)
    return get_rank() if local_rank is None else local_rank


def get_world_size() -> int:
    """Return the number of processes in the group, else that of the launcher, else 1."""
    if is_distributed_initialized():
        return distributed.get_world_size()
    if _rank_from(os.environ) is None:
        return 1
    return World.from_environment(os.environ).world_size


def if_main_process() -> bool:
    """Return whether this is rank 0.

    It is right under torchrun before the group exists, where SpeechBrain returns True in every
    process, and in a group made without RANK, where SpeechBrain returns False in every process.
    """
    return get_rank() == 0


def is_local_rank_zero() -> bool:
    """Return whether this is the first process of its machine."""
    return get_local_rank() == 0


def infer_device() -> str:
    """Return the name of the device for this process.

    Returns
    -------
    str
        ``"cuda:N"`` with N the local rank under a launcher, ``"cuda"`` in one process; ``"xpu:N"``
        or ``"xpu"`` likewise; ``"mps"``; else ``"cpu"``.
    """
    for name in ("cuda", "xpu"):
        backend = getattr(torch, name, None)
        if backend is not None and backend.is_available():
            launched = _rank_from(os.environ) is not None or is_distributed_initialized()
            return f"{name}:{get_local_rank()}" if launched else name
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _rank_from(environ: Mapping[str, str]) -> int | None:
    return _first_number(environ, _RANK_VARIABLES)


def _first_number(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = environ.get(name)
        if value is not None:
            # SLURM writes "4(x2)" for a number that is the same on two nodes.
            digits = value.split("(")[0]
            if not digits.isdigit():
                raise ValueError(
                    f"{name} holds a whole number, got {name}={value!r}; start with "
                    f"`{_LAUNCH_COMMAND}`, or `unset {name}`"
                )
            return int(digits)
    return None
