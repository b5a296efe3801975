"""Programs for the ranks of a gloo group; one of them can fail in a phase of a save."""

import os
import shutil
import signal
import threading
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed.checkpoint
import torch.distributed.device_mesh
import torch.distributed.tensor  # importing it in each forked rank would take a second
from torch import distributed

from brain_ckpt import Checkpointer
from brain_ckpt.storage import filesystem
from brain_dist import gather_objects, set_control_timeout

# The file operation of the first rank in each phase of a save.
PHASES = {"begin": "mkdir", "write": "write", "publish": "rename", "retention": "unlink"}
# Phases that every rank runs on its own.
RANK_PHASES = ("snapshot", "shards")
# The timeout for a stopped rank; a killed rank is noticed at once.
STOPPED_TIMEOUT_S, TIMEOUT_S = 5, 60


class PerRank:
    """A state of each rank; a rank can fail while it is read."""

    def __init__(self, rank, fail):
        self.value, self.fail = torch.full((2,), float(rank)), fail

    def state_dict(self):
        self.fail()
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def join(directory, rank, world, timeout_s=TIMEOUT_S):
    """Make the process group."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    set_control_timeout(timeout_s)


def sharded(model, world):
    """Shard a model over the ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    for key, parameter in list(model.named_parameters()):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "DTensor random operators")  # of torch 2.6
            part = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
        setattr(model, key, torch.nn.Parameter(part))


def target_operation(rank, target, phase):
    """Return a predicate for the file operation at which a rank fails; None if it does not."""
    if phase == "shards" and rank == target:
        return lambda operation, path: operation == "create" and "/shards/__" in path
    if phase in PHASES and rank == 0:
        return lambda operation, path: operation == PHASES[phase]
    return None


def rank_main(directory, rank, world, case, report):
    """Save once, then again with the fault; write the outcome to a file."""
    way, phase, target, how = case.way, case.phase, case.target, case.how
    join(directory, rank, world, STOPPED_TIMEOUT_S if way == "stop" else TIMEOUT_S)
    (directory / f"pid-{rank}").write_text(str(os.getpid()))
    armed = []

    def fail():
        if not armed:
            return
        armed.clear()
        if way == "raise":
            raise (
                ZeroDivisionError("in snapshot")
                if phase == "snapshot"
                else OSError(5, f"in {phase}")
            )
        pid = int((directory / f"pid-{target}").read_text())
        os.kill(pid, signal.SIGKILL if way == "kill" else signal.SIGSTOP)
        time.sleep(0.2)

    model = torch.nn.Linear(4, 8)
    if "sharded" in how:
        sharded(model, world)
    checkpointer = Checkpointer(
        directory / "save", {"model": model}, asynchronous="asynchronous" in how
    )
    fails_in_state = phase == "snapshot" and rank == target
    checkpointer.add_recoverable(
        "own", PerRank(rank, fail if fails_in_state else lambda: None), per_rank=True
    )
    is_target = target_operation(rank, target, phase)
    if is_target is not None:
        filesystem.failpoint = lambda operation, path, detail: (
            fail() if is_target(operation, path) else None
        )
    torch.nn.init.constant_(model.weight, 1.0)
    checkpointer.save_and_keep_only(meta={"number": 1})
    checkpointer.poll()
    checkpointer._writer.wait()
    distributed.barrier()
    if fails_in_state or is_target is not None:
        armed.append(True)
    torch.nn.init.constant_(model.weight, 2.0)
    started = time.monotonic()
    outcome = "saved"
    try:
        checkpointer.save_and_keep_only(meta={"number": 2})
        checkpointer._writer.wait()
    except Exception as error:  # noqa: BLE001 - its type is what is compared
        outcome = f"{type(error).__name__}: {error}"
    (directory / f"seconds-{rank}").write_text(str(time.monotonic() - started))
    (directory / f"outcome-{rank}").write_text(outcome)
    if way == "raise":
        # no rank is lost, so the ranks can save again
        checkpointer.save_and_keep_only(meta={"number": 3})
        checkpointer._writer.wait()
        report(3)
    report(9)


def elastic_main(directory, rank, world, number, report):
    """Recover, report the state of this rank, and save again."""
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


def reading_main(directory, rank, world, reads, report):
    """Recover again and again beside a writer; report whether all ranks had the same save."""
    join(directory, rank, world)
    model = torch.nn.Linear(2, 2)
    checkpointer = Checkpointer(directory / "save", {"model": model})
    last = 0
    for _ in range(reads):
        found = checkpointer.recover_if_possible()
        numbers = gather_objects((found.meta["number"], *model.weight.unique().tolist()))
        number = found.meta["number"]
        assert set(numbers) == {(number, float(number))}, numbers
        assert number >= last
        last = number
    report(min(last, 200))


def deleting_main(directory, rank, world, report):
    """Recover; the last rank deletes the checkpoint before it opens the first file of it."""
    join(directory, rank, world)
    model = torch.nn.Linear(2, 2)
    checkpointer = Checkpointer(directory / "save", {"model": model})

    def delete(operation, path, detail):
        if operation == "open":
            filesystem.failpoint = None
            shutil.rmtree(next((directory / "save").glob("CKPT*")))

    if rank == world - 1:
        filesystem.failpoint = delete
    found = checkpointer.recover_if_possible()
    report(found.meta["number"])
    report(int(model.weight.unique().item()))
    distributed.barrier()


def sharded_objects(world, directory, **options):
    """Make a sharded model, its optimizer and a checkpointer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Linear(10, 5))
    for layer in model:
        sharded(layer, world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    recoverables = {"model": model, "optimizer": optimizer}
    return model, optimizer, Checkpointer(directory / "save", recoverables, **options)


def whole_tensors(model, optimizer):
    """Return the whole tensors of a sharded model and its optimizer."""
    from torch.distributed.tensor import DTensor

    assert all(isinstance(value, DTensor) for value in model.state_dict().values())
    full = {key: value.full_tensor() for key, value in model.state_dict().items()}
    moments = [
        optimizer.state[parameter]["exp_avg"].full_tensor() for parameter in model.parameters()
    ]
    return {"full": full, "moments": moments}


def sharded_save_main(directory, rank, world, asynchronous, report):
    """Save a sharded model and its expected tensors; the model changes before it is written."""
    join(directory, rank, world)
    model, optimizer, checkpointer = sharded_objects(world, directory, asynchronous=asynchronous)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    optimizer.step()
    expected = whole_tensors(model, optimizer)
    if rank == 0:
        torch.save(expected, directory / "expected.pt")
    changed = threading.Event()
    if asynchronous:
        filesystem.failpoint = lambda operation, path, detail: (
            changed.wait(30) and None if operation == "write" else None
        )
    checkpointer.save_checkpoint()
    if asynchronous:
        checkpointer.poll()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0)
            optimizer.state[parameter]["exp_avg"].mul_(0)
    changed.set()
    while checkpointer._writer._pending is not None:
        checkpointer.poll()
    report(1)
    distributed.barrier()


def sharded_load_main(directory, rank, world, report):
    """Load a sharded model on another number of ranks and compare."""
    join(directory, rank, world)
    model, optimizer, checkpointer = sharded_objects(world, directory)
    assert checkpointer.recover_if_possible() is not None
    found, expected = whole_tensors(model, optimizer), torch.load(directory / "expected.pt")
    assert all(torch.equal(found["full"][key], expected["full"][key]) for key in expected["full"])
    assert all(map(torch.equal, found["moments"], expected["moments"]))
    report(1)
    distributed.barrier()


def nodes_main(directory, rank, world, number, fatal, report):
    """Save on nodes with two ranks and a directory each."""
    join(directory, rank, world)
    model = torch.nn.Linear(2, 2)
    checkpointer = Checkpointer(directory / f"node-{rank // 2}", {"model": model})
    checkpointer.add_recoverable("own", PerRank(rank, lambda: None), per_rank=True)
    found = checkpointer.recover_if_possible()
    report(found.meta["number"] if found else 0)
    assert not checkpointer._directory.nodes().shared
    if fatal is not None and rank == 2:

        def kill(operation, path, detail):
            if operation == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        filesystem.failpoint = kill
    try:
        checkpointer.save_and_keep_only(meta={"number": number})
        outcome = "saved"
    except Exception as error:  # noqa: BLE001 - its type is what is compared
        outcome = type(error).__name__
    (directory / f"outcome-{rank}").write_text(outcome)
