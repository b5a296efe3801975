"""A rank's script that ends right behind a collective; run with arguments it starts many of them.

    python exiting_script.py --runs 'all_gather/0/29500 barrier/3/29501' [--without-handler]

forks two ranks for each run (scenario, exit code, port), one run after the other, and prints their
exit codes as JSON.  With RANK in the environment it is one rank of the only run.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import sys
import time

import numpy as np  # noqa: F401 - what ranks use is imported before they are forked
import torch
from torch import distributed, nn

import brain_dist
from brain_dist import process_exit

for name in brain_dist.__all__:
    getattr(brain_dist, name)


alive = []  # until the interpreter ends; a wrapped module keeps a destroyed group alive


class _Slow:
    """Releases the GIL during finalization, as closing a file may."""

    def __del__(self, sleep=time.sleep):
        sleep(0.05)


def all_gather(rank):
    distributed.all_gather([torch.zeros(2) for _ in range(2)], torch.ones(2))


def barrier(rank):
    brain_dist.ddp_barrier()


def backward(rank):
    modules = {"m": nn.Linear(3, 3)}
    alive.append(modules)
    brain_dist.wrap_modules(modules, device="cpu")
    modules["m"](torch.ones(2, 3)).sum().backward()


def destroy(rank):
    backward(rank)
    brain_dist.gather_objects(float(alive[0]["m"].module.weight.grad.abs().sum()))
    distributed.destroy_process_group()


def worker_holds_last_reference(rank):
    """Have gloo's worker ask for the GIL, which this thread keeps until the interpreter ends."""
    alive.append(_Slow())
    if rank:
        time.sleep(0.05)
    sys.setswitchinterval(1000.0)
    distributed.all_gather([torch.zeros(2) for _ in range(2)], torch.ones(2), async_op=True)
    end = time.perf_counter() + 0.15
    while time.perf_counter() < end:
        pass


def _environ(rank, port):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}


def _start_forks(runs):
    """Return None when all have ended, and in each fork its run."""
    codes = []
    for run in runs:
        port, forks = run.split("/")[2], []
        for rank in range(2):
            fork = os.fork()
            if not fork:
                os.environ.update(_environ(rank, port))
                return run
            forks.append(fork)
        codes.append([os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) for fork in forks])
    sys.stdout.write(json.dumps(codes))
    return None


def _parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=str.split, required=True)
    parser.add_argument("--without-handler", action="store_true")
    return parser.parse_args()


options = _parse()
run = options.runs[0] if "RANK" in os.environ else _start_forks(options.runs)
if run is not None:
    scenario, code, _ = run.split("/")
    if scenario == "worker_holds_last_reference":
        atexit._run_exitfuncs()  # those of other packages let the worker run by chance
    rank_options = {"distributed_backend": "gloo", "device": "cpu"}
    brain_dist.ddp_init_group(rank_options, timeout_s=60.0)
    if options.without_handler:
        atexit.unregister(process_exit._wait_for_workers)
    globals()[scenario](int(os.environ["RANK"]))
    if code == "1":
        raise KeyError("a batch")
    if code != "0":
        sys.exit(int(code))
