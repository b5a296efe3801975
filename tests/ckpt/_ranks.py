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


def sharded_main(directory, rank, world, save, report):
    """Save or load a model of which each rank holds a part."""
    join(directory, rank, world)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Linear(10, 5))
    whole = {key: value.clone() for key, value in model.state_dict().items()}
    mesh = init_device_mesh("cpu", (world,))
    for layer in model:
        for key, parameter in list(layer.named_parameters()):
            value = parameter.detach() if save else torch.zeros_like(parameter)
            setattr(layer, key, torch.nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for number, parameter in enumerate(model.parameters()):
        if save:
            parameter.grad = distribute_tensor(
                torch.full(parameter.shape, number + 1.0), mesh, [Shard(0)]
            )
    if save:
        optimizer.step()
        optimizer.zero_grad()
    checkpointer = Checkpointer(directory / "save", {"model": model, "optimizer": optimizer})
    if save:
        checkpointer.save_checkpoint()
    else:
        assert checkpointer.recover_if_possible() is not None
    full = {key: value.full_tensor() for key, value in model.state_dict().items()}
    moments = [
        optimizer.state[parameter]["exp_avg"].full_tensor() for parameter in model.parameters()
    ]
    assert all(isinstance(value, DTensor) for value in model.state_dict().values())
    if rank == 0 and save:
        assert not torch.equal(full["0.weight"], whole["0.weight"])
        torch.save({"full": full, "moments": moments}, directory / "expected.pt")
    expected = torch.load(directory / "expected.pt") if rank == 0 or not save else None
    if expected:
        assert all(torch.equal(full[key], expected["full"][key]) for key in full)
        assert all(map(torch.equal, moments, expected["moments"]))
    report(1)
    distributed.barrier()


def nodes_main(directory, rank, world, number, fatal, report):
    """Save on nodes of which each has a directory of its own; two ranks a node."""
    join(directory, rank, world)
    model = torch.nn.Linear(2, 2)
    checkpointer = Checkpointer(directory / f"node-{rank // 2}", {"model": model})
    checkpointer.add_recoverable("own", PerRank(rank, lambda: None), per_rank=True)
    found = checkpointer.recover_if_possible()
    report(found.meta["number"] if found else 0)
    assert not checkpointer._writer.nodes().shared
    if fatal is not None and rank == 2:

        def strike(operation, path, detail):
            if operation == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        _fs.failpoint = strike
    try:
        checkpointer.save_and_keep_only(meta={"number": number})
        outcome = "saved"
    except Exception as error:  # noqa: BLE001 - its type is what is compared
        outcome = type(error).__name__
    (directory / f"outcome-{rank}").write_text(outcome)
