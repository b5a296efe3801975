"""Form the process group of several ranks in bounded time, whatever happens to one of them."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from brain_dist.calls.bounded import call_within
from brain_dist.control_group import set_control_timeout
from brain_dist.errors import RanksLostError, is_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.distributed.distributed_c10d import Store

    from brain_dist.world import World

T = TypeVar("T")

_FIRST_PORT = 20000
_PORTS = 20000
# torch's own timeouts name what they wait for: they may end first, some of them a second late.
_MARGIN_S = 2.0
# How long the ranks that lost another rank wait for each other's report.
_REPORT_S = 3.0


class Forming:
    """Forms the process group of the ranks that a launcher started.

    The ranks meet, each waiting for the others for `timeout_s`.  From that moment on they make the
    groups, again for at most `timeout_s`: gloo and the store wait several times one after another,
    and for a store whose process is stopped without any limit, so both run in a thread that is
    abandoned if it takes longer.

    Parameters
    ----------
    world : World
        What the launcher said.
    timeout_s : float
        How long a rank waits for the others.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self._world = world
        self._timeout_s = timeout_s
        self._store: Store | None = None

    def form(self, backend: str, devices: Sequence[str], control_timeout_s: float) -> None:
        """Make the default group and the control group.

        Parameters
        ----------
        backend : str
            Of the default group.
        devices : sequence of str
            "cuda" or "xpu" for the backends whose current device has to be that of this rank.
        control_timeout_s : float
            The timeout of the control group.

        Raises
        ------
        RanksLostError
            If a rank does not arrive in time, or is lost while the groups are made.
        """

        def make_groups() -> None:
            _set_devices(devices, self._world.local_rank)  # the current device is per thread
            distributed.init_process_group(
                backend,
                store=store,
                rank=self._world.rank,
                world_size=self._world.world_size,
                timeout=timedelta(seconds=self._timeout_s),
            )
            set_control_timeout(control_timeout_s)

        _set_devices(devices, self._world.local_rank)
        store = self._store = self._within_timeout(self._meet)
        self._within_timeout(make_groups)

    def _within_timeout(self, function: Callable[[], T]) -> T:
        try:
            return call_within(self._timeout_s + _MARGIN_S, function)
        except RanksLostError:
            raise
        except (RuntimeError, TimeoutError) as error:
            if not isinstance(error, TimeoutError) and not is_loss(error):
                raise
            raise RanksLostError(self._message(self._missing_ranks() or str(error))) from error

    def _meet(self) -> Store:
        """Return a store in which all ranks have said that they are here."""
        world, deadline = self._world, time.monotonic() + self._timeout_s
        timeout = timedelta(seconds=self._timeout_s)
        store: Store
        store, _, _ = next(
            rendezvous(_init_method(world), world.rank, world.world_size, timeout=timeout)
        )
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = self._fresh_store(store, deadline)
        keys = [_arrived(rank) for rank in range(world.world_size)]
        store.set(keys[world.rank], "arrived")
        left_s = max(deadline - time.monotonic(), 0.1)
        try:
            store.wait(keys, timedelta(seconds=left_s))
        except distributed.DistError as error:
            missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
            who = f"rank(s) {', '.join(missing)} did not"
            raise RanksLostError(self._message(who)) from error
        store.set_timeout(timeout)
        return store

    def _fresh_store(self, store: Store, deadline: float) -> Store:
        """Return a view of torchrun's store that holds nothing of an earlier start.

        Torchrun keeps one store over restarts: ranks would find the addresses of the ranks before
        the restart and wait for them (pytorch#135712).  Its restart count differs between nodes, so
        rank 0 makes up a prefix.  Each other rank asks for it under a key that it made up itself.
        """
        rank = self._world.rank
        if rank:
            request = uuid.uuid4().hex
            store.set(f"brain_dist/request/{rank}", request)
            try:
                store.wait(
                    [f"brain_dist/reply/{request}"], timedelta(seconds=deadline - time.monotonic())
                )
            except distributed.DistError as error:
                raise RanksLostError(self._message("rank(s) 0 did not")) from error
            prefix = store.get(f"brain_dist/reply/{request}").decode()
            store.set(f"brain_dist/{prefix}/{rank}", "arrived")
            return PrefixStore(f"brain_dist/{prefix}", store)
        prefix, missing = uuid.uuid4().hex, set(range(1, self._world.world_size))
        fresh = PrefixStore(f"brain_dist/{prefix}", store)
        fresh.set(_arrived(0), "arrived")
        replied: dict[int, bytes] = {}
        while missing and time.monotonic() < deadline:
            for other in sorted(missing):
                key = f"brain_dist/request/{other}"
                if store.check([key]) and (request_of_rank := store.get(key)) != replied.get(other):
                    store.set(f"brain_dist/reply/{request_of_rank.decode()}", prefix)
                    replied[other] = request_of_rank
                if store.check([f"brain_dist/{prefix}/{other}"]):
                    missing.discard(other)
            time.sleep(0.01)
        return fresh  # the caller finds out who is missing

    def _missing_ranks(self) -> str:
        """Return which ranks do not report a failure like this one; "" if it is not known."""
        store, rank = self._store, self._world.rank
        if store is None:
            return ""

        def search() -> list[int]:
            store.set(f"brain_dist/lost/{rank}", "waiting")
            missing = set(range(self._world.world_size)) - {rank}
            deadline = time.monotonic() + _REPORT_S
            while missing and time.monotonic() < deadline:
                missing -= {r for r in missing if store.check([f"brain_dist/lost/{r}"])}
                time.sleep(0.05)
            return sorted(missing)

        with contextlib.suppress(RuntimeError, ValueError, TimeoutError):
            missing = call_within(_REPORT_S + 0.5, search)
            ranks = ", ".join(map(str, missing))
            return f"rank(s) {ranks} are lost, or wait for a lost one" if missing else ""
        return "the process that holds the store, that of rank 0 or torchrun's, does not answer"

    def _message(self, problem: str) -> str:
        world = self._world
        return (
            f"all {world.world_size} ranks have to arrive within {self._timeout_s:g} s, got on "
            f"rank {world.rank}: {problem}; look for the rank whose log ends early, check that "
            f"MASTER_ADDR and MASTER_PORT can be reached from every machine, and if it is only "
            f"slow give more time with ddp_init_group(timeout_s=...)"
        )


def _arrived(rank: int) -> str:
    return f"brain_dist/arrived/{rank}"


def _set_devices(devices: Sequence[str], local_rank: int) -> None:
    for device in devices:
        getattr(torch, device).set_device(local_rank)


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
