"""Several ranks on gloo, one of which fails in a phase of a save."""

import os
import signal
import time
from datetime import timedelta

import torch
from torch import distributed

from brain_ckpt import Checkpointer, _fs
from brain_dist import set_control_timeout

# What the first rank is doing when its n-th save reaches a phase.
PHASES = {"begin": "mkdir", "write": "write", "publish": "rename", "retention": "unlink"}
TIMEOUT_S = 3


class PerRank:
    """Each rank's own state; one rank may fail while it is taken."""

    def __init__(self, rank, fail):
        self.value, self.fail = torch.full((2,), float(rank)), fail

    def state_dict(self):
        self.fail()
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def join(directory, rank, world):
    """Make the group."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    set_control_timeout(TIMEOUT_S)


def rank_main(directory, rank, world, way, phase, target, report):
    """Save once, then once more with the fault; write down how each ended."""
    join(directory, rank, world)
    (directory / f"pid-{rank}").write_text(str(os.getpid()))
    armed = []

    def strike():
        if not armed:
            return
        armed.clear()
        if way == "raise":
            raise ZeroDivisionError(f"in {phase}")
        pid = int((directory / f"pid-{target}").read_text())
        os.kill(pid, signal.SIGKILL if way == "kill" else signal.SIGSTOP)
        time.sleep(0.2)

    model = torch.nn.Linear(2, 2)
    checkpointer = Checkpointer(directory / "save", {"model": model})
    taking = phase == "take" and rank == target
    checkpointer.add_recoverable(
        "own", PerRank(rank, strike if taking else lambda: None), per_rank=True
    )
    if rank == 0 and phase in PHASES:
        _fs.failpoint = lambda operation, path, detail: (
            strike() if operation == PHASES[phase] else None
        )
    torch.nn.init.constant_(model.weight, 1.0)
    checkpointer.save_and_keep_only(meta={"number": 1})
    distributed.barrier()
    if taking or (rank == 0 and phase in PHASES):
        armed.append(True)
    torch.nn.init.constant_(model.weight, 2.0)
    started = time.monotonic()
    outcome = "saved"
    try:
        checkpointer.save_and_keep_only(meta={"number": 2})
    except Exception as error:  # noqa: BLE001 - its type is what is compared
        outcome = f"{type(error).__name__}: {error}"
    (directory / f"seconds-{rank}").write_text(str(time.monotonic() - started))
    (directory / f"outcome-{rank}").write_text(outcome)
    if way == "raise":
        # nobody is lost: the ranks go on together
        checkpointer.save_and_keep_only(meta={"number": 3})
        report(3)
    report(9)


def elastic_main(directory, rank, world, number, report):
    """Recover what is there, each rank its own part, and save the next."""
    join(directory, rank, world)
    own = PerRank(100 + rank, lambda: None)
    model = torch.nn.Linear(2, 2)
    checkpointer = Checkpointer(directory / "save", {"model": model})
    checkpointer.add_recoverable("own", own, per_rank=True)
    found = checkpointer.recover_if_possible()
    report(int(own.value[0]) if found else 255)
    if number:
        torch.nn.init.constant_(model.weight, float(number))
        saved = checkpointer.save_checkpoint(meta={"number": number})
        assert (saved is None) == (rank != 0)
    distributed.barrier()
