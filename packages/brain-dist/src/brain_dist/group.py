"""Make the process group of the ranks that a launcher started."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import distributed

from brain_dist import compat
from brain_dist.control_group import DEFAULT_TIMEOUT_S
from brain_dist.forming import Forming
from brain_dist.process_exit import register_exit_handler
from brain_dist.world import World, infer_device, is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)


class Options(Protocol):
    """A mapping, or another object with its ``get``."""

    def get(self, key: str, default: Any = None, /) -> Any:
        """Return the option with this name, else the default."""


def ddp_init_group(
    run_opts: Options | None = None,
    *,
    timeout_s: float | None = None,
    control_timeout_s: float | None = None,
) -> None:
    """Make the process group; do nothing in one process, or where a group exists.

    The ranks are started by torchrun, or by srun, whose variables give rank 0's address unless
    MASTER_ADDR is set.

    Parameters
    ----------
    run_opts : mapping-like, optional
        ``distributed_backend``: "nccl", "gloo", "mpi" or another that this torch has; None
        chooses by ``device``, and on the CPU "nccl" means "gloo".
        ``device``: what the training runs on; None for the one that `infer_device` returns.
        ``distributed_timeout_s``: default of `timeout_s`.
    timeout_s : float, optional
        Seconds that one operation, and making the group, waits for the other ranks; 7200 by
        default, as in SpeechBrain.
    control_timeout_s : float, optional
        The same for control traffic (`run_on_main`, barriers, votes); `timeout_s` by default.

    Raises
    ------
    ValueError
        If there are more ranks than devices, the backend is not built, or RANK is set without
        WORLD_SIZE.
    RanksLostError
        If a rank does not arrive in time, or is lost while the group is made.
    """
    if is_distributed_initialized():
        register_exit_handler(compat.default_group())
        return
    world = World.from_environment(os.environ)
    if not world.launched:
        return
    options: Options = {} if run_opts is None else run_opts
    device_type = torch.device(options.get("device") or infer_device()).type
    backend = options.get("distributed_backend") or _BACKENDS.get(device_type, "gloo")
    if backend == "nccl" and device_type == "cpu":
        # SpeechBrain's default, which a script keeps when it runs without a GPU.
        logger.warning("nccl works on GPUs only: on device='cpu' gloo is used instead")
        backend = "gloo"
    # "cpu:gloo,cuda:nccl" names one backend for each type of device.
    names = [part.rpartition(":")[2] for part in str(backend).split(",")]
    for name in names:
        _check_backend(name, world)
    if timeout_s is None:
        timeout_s = options.get("distributed_timeout_s") or DEFAULT_TIMEOUT_S
    register_exit_handler()
    devices = [_DEVICES[name] for name in names if name in _DEVICES]
    control_timeout_s = timeout_s if control_timeout_s is None else control_timeout_s
    Forming(world, timeout_s).form(backend, devices, control_timeout_s)
    register_exit_handler(compat.default_group())


_BACKENDS: Mapping[str, str] = {"cuda": "nccl", "xpu": "xccl"}
_DEVICES: Mapping[str, str] = {backend: device for device, backend in _BACKENDS.items()}


def _check_backend(backend: str, world: World) -> None:
    if not hasattr(distributed.Backend, backend.upper()):
        raise ValueError(
            f"{backend} communication protocol doesn't exist: distributed_backend is one of "
            f"nccl, gloo, mpi, got {backend!r}; write --distributed_backend=gloo"
        )
    if not distributed.is_backend_available(backend):
        raise ValueError(
            f"{backend.upper()} is not supported in your machine: the backend has to be built "
            f"into this torch ({torch.__version__}), got distributed_backend={backend!r}; "
            f"write --distributed_backend=gloo"
        )
    devices = torch.cuda.device_count()
    if backend == "nccl" and world.local_rank >= devices:
        raise ValueError(
            f"Not enough GPUs available! Each rank needs one of its own, got rank {world.rank} "
            f"as number {world.local_rank} on a machine with {devices} GPU(s); write torchrun "
            f"--nproc-per-node={max(devices, 1)}, or --distributed_backend=gloo --device=cpu"
        )
