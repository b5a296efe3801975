"""Which process this is, of how many, and on what device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Mapping

# SLURM_PROCID is also set in jobs whose processes something else started: it comes last.
_RANK_NAMES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_LOCAL_RANK_NAMES = ("LOCAL_RANK", "SLURM_LOCALID", "JSM_NAMESPACE_LOCAL_RANK")
_LOCAL_SIZE_NAMES = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "JSM_NAMESPACE_LOCAL_SIZE")
_SCHEDULER_SIZE_NAMES = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
_START = "torchrun --standalone --nproc-per-node 2 train.py"


@dataclass(frozen=True)
class World:
    """The place of one process among all, as its launcher described it.

    Parameters
    ----------
    rank : int
        Number of this process, ``0 <= rank < world_size``.
    world_size : int
        Number of processes on all machines.
    local_rank : int
        Number of this process on its machine.
    local_world_size : int
        Number of processes on this machine.
    launched : bool
        Whether a launcher (torchrun, srun, jsrun) said so; False in a process started by hand.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launched: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"a rank lies in 0..WORLD_SIZE-1, got rank={self.rank!r} and "
                f"world_size={self.world_size!r}; start with `{_START}`, which sets both"
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
            ``World()``, one process, where no launcher left a trace.

        Raises
        ------
        ValueError
            If RANK stands without WORLD_SIZE, a number is not one, or a rank is out of range.
        """
        environ = os.environ if environ is None else environ
        rank = _rank_from(environ)
        if rank is None:
            return cls()
        slurm = not {"RANK", "LOCAL_RANK"} & environ.keys() and "SLURM_PROCID" in environ
        if slurm and rank == 0 and _first_number(environ, ("SLURM_STEP_NUM_TASKS",)) in (None, 1):
            # The shell of a batch job, or an interactive one: nothing was started side by side.
            return cls()
        names = _SCHEDULER_SIZE_NAMES if slurm else ("WORLD_SIZE", "JSM_NAMESPACE_SIZE")
        world_size = _first_number(environ, names)
        if world_size is None:
            raise ValueError(
                f"a rank needs {names[0]} beside it, got rank {rank!r} and no {names[0]}; "
                f"start with `{_START}`, or `unset RANK LOCAL_RANK` to run in one process"
            )
        local_rank = _first_number(environ, _LOCAL_RANK_NAMES)
        local_size = _first_number(environ, _LOCAL_SIZE_NAMES)
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=rank if local_rank is None else local_rank,
            local_world_size=world_size if local_size is None else local_size,
            launched=True,
        )


def is_distributed_initialized() -> bool:
    """Say whether a process group exists, whoever made it."""
    return distributed.is_available() and distributed.is_initialized()


def get_rank() -> int:
    """Return the number of this process among all.

    Returns
    -------
    int
        The group's answer once one exists; before that RANK, LOCAL_RANK, SLURM_PROCID or
        JSM_NAMESPACE_RANK, in this order; 0 alone.  (SpeechBrain returns None alone.)
    """
    if is_distributed_initialized():
        return distributed.get_rank()
    return _rank_from(os.environ) or 0


def get_local_rank() -> int:
    """Return the number of this process on its machine.

    Returns
    -------
    int
        LOCAL_RANK, SLURM_LOCALID or JSM_NAMESPACE_LOCAL_RANK; without them the rank itself,
        which is right on one machine; 0 alone.
    """
    local_rank = _first_number(os.environ, _LOCAL_RANK_NAMES)
    return get_rank() if local_rank is None else local_rank


def get_world_size() -> int:
    """Return the number of processes: the group's, else the launcher's, else 1."""
    if is_distributed_initialized():
        return distributed.get_world_size()
    if _rank_from(os.environ) is None:
        return 1
    return World.from_environment(os.environ).world_size


def if_main_process() -> bool:
    """Say whether this is rank 0.

    Right under torchrun before the group exists (where SpeechBrain calls every process main),
    and in a group that was made without RANK (where SpeechBrain calls none main).
    """
    return get_rank() == 0


def is_local_rank_zero() -> bool:
    """Say whether this is the first process of its machine."""
    return get_local_rank() == 0


def infer_device() -> str:
    """Name the device this process should use.

    Returns
    -------
    str
        ``"cuda:N"`` with N the local rank under a launcher, ``"cuda"`` alone; ``"xpu:N"`` or
        ``"xpu"`` likewise; ``"mps"``; else ``"cpu"``.
    """
    for name in ("cuda", "xpu"):
        backend = getattr(torch, name, None)
        if backend is not None and backend.is_available():
            launched = _rank_from(os.environ) is not None or is_distributed_initialized()
            return f"{name}:{get_local_rank()}" if launched else name
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _rank_from(environ: Mapping[str, str]) -> int | None:
    return _first_number(environ, _RANK_NAMES)


def _first_number(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = environ.get(name)
        if value is not None:
            # SLURM writes "4(x2)" for a number that repeats over two nodes.
            digits = value.split("(")[0]
            if not digits.isdigit():
                raise ValueError(
                    f"{name} holds a whole number, got {name}={value!r}; start with `{_START}`, "
                    f"or `unset {name}`"
                )
            return int(digits)
    return None
