"""Make the process group of the ranks that a launcher started."""

from __future__ import annotations

import logging
import os
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from brain_dist.control_group import DEFAULT_TIMEOUT_S, set_control_timeout
from brain_dist.errors import RanksLostError
from brain_dist.process_exit import wait_for_workers_at_exit
from brain_dist.world import World, infer_device, is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed.distributed_c10d import Store

logger = logging.getLogger(__name__)

_FIRST_PORT = 20000
_PORTS = 20000


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
        If a rank does not arrive in time.
    """
    if is_distributed_initialized():
        wait_for_workers_at_exit()
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
    if "nccl" in names:
        torch.cuda.set_device(world.local_rank)
    if "xccl" in names:
        torch.xpu.set_device(world.local_rank)
    wait_for_workers_at_exit()
    _join(backend, world, timeout_s)
    set_control_timeout(timeout_s if control_timeout_s is None else control_timeout_s)


_BACKENDS: Mapping[str, str] = {"cuda": "nccl", "xpu": "xccl"}


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


def _join(backend: str, world: World, timeout_s: float) -> None:
    timeout = timedelta(seconds=timeout_s)
    address = _init_method(world)
    try:
        store, rank, world_size = next(
            rendezvous(address, world.rank, world.world_size, timeout=timeout)
        )
    except (distributed.DistError, TimeoutError) as error:
        raise RanksLostError(_missing_message(world, timeout_s, str(error))) from error
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = _fresh_store(store, world, timeout_s)
    keys = {other: f"brain_dist/arrived/{other}" for other in range(world_size)}
    store.set(keys[rank], "arrived")
    try:
        store.wait(list(keys.values()), timeout)
    except distributed.DistError as error:
        missing = [str(other) for other, key in keys.items() if not store.check([key])]
        raise RanksLostError(
            _missing_message(world, timeout_s, f"rank(s) {', '.join(missing)} did not")
        ) from error
    store.set_timeout(timeout)
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timeout
    )


def _fresh_store(store: Store, world: World, timeout_s: float) -> Store:
    """Return a view of torchrun's store that holds nothing of an earlier start.

    Torchrun keeps one store over restarts: ranks would find the addresses of the ranks before the
    restart and wait for them (pytorch#135712).  Its restart count differs between nodes, so rank 0
    makes up a prefix.  Each other rank asks for it under a key that it made up itself.
    """
    deadline = time.monotonic() + timeout_s
    if world.rank:
        request = uuid.uuid4().hex
        store.set(f"brain_dist/request/{world.rank}", request)
        try:
            store.wait([f"brain_dist/reply/{request}"], timedelta(seconds=timeout_s))
        except distributed.DistError as error:
            raise RanksLostError(_missing_message(world, timeout_s, "rank(s) 0 did not")) from error
        prefix = store.get(f"brain_dist/reply/{request}").decode()
        store.set(f"brain_dist/{prefix}/{world.rank}", "arrived")
        return PrefixStore(f"brain_dist/{prefix}", store)
    prefix, missing = uuid.uuid4().hex, set(range(1, world.world_size))
    replied: dict[int, bytes] = {}
    while missing and time.monotonic() < deadline:
        for rank in sorted(missing):
            key = f"brain_dist/request/{rank}"
            if store.check([key]) and (request_of_rank := store.get(key)) != replied.get(rank):
                store.set(f"brain_dist/reply/{request_of_rank.decode()}", prefix)
                replied[rank] = request_of_rank
            if store.check([f"brain_dist/{prefix}/{rank}"]):
                missing.discard(rank)
        time.sleep(0.01)
    return PrefixStore(f"brain_dist/{prefix}", store)  # the caller finds out who is missing


def _missing_message(world: World, timeout_s: float, problem: str) -> str:
    return (
        f"all {world.world_size} ranks have to arrive within {timeout_s:g} s, got on rank "
        f"{world.rank}: {problem}; look for the rank whose log ends early, check that MASTER_ADDR "
        f"and MASTER_PORT can be reached from every machine, and if it is only slow give "
        f"more time with ddp_init_group(timeout_s=...)"
    )


def _init_method(world: World) -> str:
    if "MASTER_ADDR" in os.environ:
        return "env://"
    host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR")
    job = os.environ.get("SLURM_JOB_ID", "0")
    if host is None or not job.isdigit():
        raise ValueError(
            f"rank 0 needs an address that all ranks know, got RANK={world.rank!r} and no "
            f"MASTER_ADDR; start with `torchrun --standalone --nproc-per-node 2 train.py`, or "
            f"`export MASTER_ADDR=$(hostname) MASTER_PORT=29500`"
        )
    # Two jobs on one machine get two ports.
    return f"tcp://{host}:{_FIRST_PORT + int(job) % _PORTS}"
