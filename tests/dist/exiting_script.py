"""A rank's script that ends right behind a collective; run with arguments it starts many of them.

    python exiting_script.py --runs 'all_gather/0/29500 barrier/3/29501' [--without-handler]

forks two ranks for each run (scenario, exit code, port), one run after the other, and prints their
exit codes as JSON.  With RANK in the environment it is one rank of the only run.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import json
import os
import select
import signal
import sys
import time

import numpy as np  # noqa: F401 - what ranks use is imported before they are forked
import torch
import torch._dynamo  # which wrapping with DDP imports
from torch import distributed, nn

import brain_dist
from brain_dist import process_exit
from brain_dist.stopping import vote

for name in brain_dist.__all__:
    getattr(brain_dist, name)


alive = []  # until the interpreter ends; a wrapped module keeps a destroyed group alive
pipe = []  # from rank 0 to rank 1


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
    distributed.all_gather([torch.zeros(2) for _ in range(2)], torch.ones(2), async_op=True)
    _keep_the_gil()


def _keep_the_gil():
    sys.setswitchinterval(1000.0)
    end = time.perf_counter() + 0.15
    while time.perf_counter() < end:
        pass


def pending_all_reduce(rank):
    """End with an operation that rank 1 never joins."""
    if rank == 0:
        distributed.all_reduce(torch.ones(2), async_op=True)
    else:
        _wait_for_the_end_of_rank_0()


def joined_at_exit(rank):
    """End with an operation that rank 1 joins while rank 0 runs its last exit handler."""
    gathered = [torch.zeros(2) for _ in range(2)]
    if rank == 0:
        alive.append(_Slow())
        distributed.all_gather(gathered, torch.ones(2), async_op=True)
    else:
        _wait_for_the_end_of_rank_0()
        with contextlib.suppress(RuntimeError):  # rank 0 ends before this rank has its answer
            distributed.all_gather(gathered, torch.ones(2))


def _tell_rank_1_at_exit():
    """Have rank 1 join now, and keep the GIL from the worker that asks for it."""
    os.write(pipe[1], b"exit")
    _keep_the_gil()


def pending_vote(rank):
    """Close a vote that rank 1 never joins, and destroy the groups, as an exception does."""
    if rank == 0:
        vote.CLOSE_TIMEOUT_S = 0.1
        step_vote = brain_dist.StepVote(every=1)
        step_vote.vote(0)
        step_vote.close()
        distributed.destroy_process_group()
    else:
        _wait_for_the_end_of_rank_0()


def interrupted_barrier(rank):
    """Leave a barrier that rank 1 never joins by the exception of a signal handler."""
    if rank == 0:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with contextlib.suppress(KeyboardInterrupt):
            brain_dist.ddp_barrier()
    else:
        _wait_for_the_end_of_rank_0()


def out_of_step(rank):
    with brain_dist.collective_call("fit" if rank else "evaluate"):
        pass


def terminated(rank):
    barrier(rank)
    os.kill(os.getpid(), signal.SIGTERM)


def stopped(rank):
    with brain_dist.StopSignal() as stop:
        barrier(rank)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


def _wait_for_the_end_of_rank_0():
    """Return when rank 0 has ended, or says so; exit with 9 if it does neither in time."""
    os.close(pipe[1])
    ended, _, _ = select.select([pipe[0]], [], [], 30.0)
    if not ended:
        os._exit(9)


def _environ(rank, port):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}


def _start_forks(runs):
    """Return None when all have ended, and in each fork its run."""
    codes = []
    gc.freeze()  # else the end of each fork would visit, and copy, all that is imported here
    for run in runs:
        port, forks = run.split("/")[2], []
        pipe[:] = os.pipe()  # its write end is closed by the end of the last rank that has it
        for rank in range(2):
            fork = os.fork()
            if not fork:
                os.environ.update(_environ(rank, port))
                return run
            forks.append(fork)
        for end in pipe:
            os.close(end)
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
    if scenario in ("worker_holds_last_reference", "joined_at_exit"):
        atexit._run_exitfuncs()  # those of other packages let the worker run by chance
    if scenario == "joined_at_exit" and os.environ["RANK"] == "0":
        atexit.register(_tell_rank_1_at_exit)  # before the handler of this package: runs after it
    rank_options = {"distributed_backend": "gloo", "device": "cpu"}
    brain_dist.ddp_init_group(rank_options, timeout_s=60.0)
    if options.without_handler:
        atexit.unregister(process_exit._finish)
    globals()[scenario](int(os.environ["RANK"]))
    if code == "1":
        raise KeyError("a batch")
    if code != "0":
        sys.exit(int(code))
