"""Runs whose state is the number of the save, so that a recovered state tells its save."""

import contextlib

import torch

from brain_ckpt import (
    Checkpointer,
    CheckpointError,
    RNGState,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.listing import read_manifest
from brain_ckpt.storage.verify import verify


@register_checkpoint_hooks
class Counter:
    """A counter that writes its file itself, as in SpeechBrain."""

    def __init__(self):
        self.count = 0

    @mark_as_saver
    def save(self, path):
        path.write_text(str(self.count))

    @mark_as_loader
    def load(self, path, end_of_epoch):
        self.count = int(path.read_text())


class Run:
    """Objects of each kind whose state is the number of the save."""

    def __init__(self, directory, **options):
        self.model = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.counter = Counter()
        self.checkpointer = Checkpointer(
            directory,
            {"model": self.model, "optimizer": self.optimizer, "counter": self.counter},
            **options,
        )
        self.checkpointer.add_recoverable("rng", RNGState(), per_rank=True)

    def set(self, number):
        """Set the state to the number of a save."""
        self.counter.count = number
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(number)
                self.optimizer.state[parameter]["momentum_buffer"] = torch.full_like(
                    parameter, number
                )
        torch.manual_seed(number)

    def number(self):
        """Return the number of the save of the state; all objects must have the same."""
        found = {float(self.counter.count), torch.initial_seed() * 1.0}
        for parameter in self.model.parameters():
            found |= set(parameter.detach().flatten().tolist())
            found |= set(self.optimizer.state[parameter]["momentum_buffer"].flatten().tolist())
        assert len(found) == 1, f"a state of several saves: {found}"
        return int(found.pop())

    def recover(self):
        """Load the newest intact checkpoint; return its number, or 0 if there is none."""
        self.set(0)
        found = self.checkpointer.recover_if_possible()
        return 0 if found is None else self.number()


def first_save(directory, acknowledge, saves=1, **options):
    """Save into an empty directory."""
    run = Run(directory, **options)
    run.set(1)
    run.checkpointer.save_checkpoint()
    acknowledge(1)


def later_saves(directory, acknowledge, saves=1, **options):
    """Save and keep the newest."""
    run = Run(directory, **options)
    start = run.recover()
    for number in range(start + 1, start + 1 + saves):
        run.set(number)
        run.checkpointer.save_and_keep_only()
        acknowledge(number)


def best_saves(directory, acknowledge, saves=1):
    """Save and keep the newest and the best."""
    run = Run(directory)
    start = run.recover()
    for number, loss in ((start + 1, 0.5), (start + 2, 0.7))[:saves]:
        run.set(number)
        run.checkpointer.save_and_keep_only(meta={"loss": loss}, min_keys=["loss"])
        acknowledge(number)


def replacing_saves(directory, acknowledge, saves=1, **options):
    """Save repeatedly under one name."""
    run = Run(directory, **options)
    start = run.recover()
    for number in range(start + 1, start + 1 + saves):
        run.set(number)
        run.checkpointer.save_and_keep_only(name="last")
        acknowledge(number)


def asynchronous_saves(directory, acknowledge, saves=1):
    """Save asynchronously while the state changes."""
    run = Run(directory, asynchronous=True)
    start = run.recover()
    for number in range(start + 1, start + 1 + saves):
        run.set(number)
        run.checkpointer.save_and_keep_only()
        run.set(-1)
        run.checkpointer._writer.wait()
        acknowledge(number)
    run.checkpointer.close()


def deleting_first(directory, acknowledge, saves=1):
    """Delete before saving, which is wrong."""
    run = Run(directory)
    start = run.recover()
    for number in range(start + 1, start + 1 + saves):
        run.set(number)
        run.checkpointer.delete_checkpoints(num_to_keep=0)
        run.checkpointer.save_checkpoint()
        acknowledge(number)


def unrenamed_saves(directory, acknowledge, saves=1):
    """Save as `later_saves` does, without renaming directories."""
    later_saves(directory, acknowledge, saves, atomic_rename=False)


def unrenamed_replacing_saves(directory, acknowledge, saves=1):
    """Save as `replacing_saves` does, without renaming directories."""
    replacing_saves(directory, acknowledge, saves, atomic_rename=False)


WORKLOADS = {
    "first": first_save,
    "later": later_saves,
    "best": best_saves,
    "replacing": replacing_saves,
    "asynchronous": asynchronous_saves,
    "unrenamed": unrenamed_saves,
    "unrenamed, replacing": unrenamed_replacing_saves,
}


def base(directory, workload):
    """Make the directory that a workload starts from."""
    if workload == "first":
        return 0
    run = Run(directory)
    run.set(1)
    run.checkpointer.save_checkpoint(name="last" if "replacing" in workload else None)
    run.checkpointer.close()
    return 1


@contextlib.contextmanager
def failpoint(function):
    """Set the failpoint."""
    filesystem.failpoint = function
    try:
        yield
    finally:
        filesystem.failpoint = None


def problem_after_fault(directory, acknowledged, *, saves_again=False, **options):
    """Return a problem that a fault has caused, or None.

    The recovered save must be at least the last acknowledged one, every listed checkpoint must be
    intact, and the next save must leave no temporary directory.
    """
    run = Run(directory, **options)
    try:
        number = run.recover()
    except CheckpointError as error:
        return f"recovery raised {error!r}"
    if number < acknowledged:
        return f"{acknowledged} was acknowledged, {number} recovered"
    for checkpoint in run.checkpointer.list_checkpoints():
        try:
            verify(checkpoint)
        except CheckpointError as error:  # noqa: PERF203 - each one is looked at
            return f"listed, and damaged: {error}"
    if saves_again:
        run.set(number + 1)
        run.checkpointer.save_checkpoint()
        left = [
            path.name
            for path in [*directory.iterdir(), *directory.glob("CKPT*/.*")]
            if path.name.startswith((".tmp", ".old", ".trash", ".new", ".unfinished"))
        ]
        if left:
            return f"temporary after the next save: {left}"
        if Run(directory).recover() != number + 1:
            return "the next save was not recovered"
    run.checkpointer.close()
    return None


def seq_of(checkpoint):
    """Return the number of a save in its manifest."""
    return read_manifest(checkpoint.path).seq
