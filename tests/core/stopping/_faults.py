"""One training that a fault can hit anywhere, on ranks whose exit codes are their own.

`Faults` starts it on some ranks, hurts it where it is told to, and says how each rank ended;
started again it shows whether the run goes on bit for bit. The ranks run this very file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import runpy
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

import brain_core
import brain_dist
from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, Stage

PATIENCE_S = 40.0
FIT_HOOKS = [
    "make_dataloader",
    "on_fit_start",
    "init_optimizers",
    "on_stage_start TRAIN",
    "zero_grad",
    "freeze_optimizers",
    "fit_batch",
    "on_fit_batch_start",
    "compute_forward TRAIN",
    "compute_objectives TRAIN",
    "loss_weight",
    "check_loss_isfinite",
    "optimizers_step",
    "check_gradients",
    "on_fit_batch_end",
    "update_average",
    "on_stage_end TRAIN",
    "on_stage_start VALID",
    "evaluate_batch",
    "compute_forward VALID",
    "compute_objectives VALID",
    "on_stage_end VALID",
]
TEST_HOOKS = [
    "on_evaluate_start",
    "on_stage_start TEST",
    "compute_forward TEST",
    "on_stage_end TEST",
]
# What `fit` calls on objects that it was given.
PARTS = ["dataset", "optimizer.step", "epoch counter", "train logger", "saver", "loader of a state"]
# Overridden only where a fault is to hit them: that they are overridden changes the arithmetic.
CHANGING = {
    "loss_weight": {},
    "check_gradients": {"skip_nonfinite_grads": True},
    "update_average": {},
}


@dataclass(frozen=True)
class Fault:
    """What happens, where, and to whom.

    Parameters
    ----------
    what : str
        "raises", "raises and lives on", "sys.exit", "SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT",
        "NaN", "out of memory".
    where : str
        A hook, or a part; see the lists above.
    nth : int
        At which call.
    whom : str
        "last", "first" or "all".
    asynchronous : bool
        Whether checkpoints are written while training goes on.
    workers : int
        Of the loader; with some, a signal goes to them as well.
    """

    what: str
    where: str
    nth: int = 1
    whom: str = "last"
    asynchronous: bool = False
    workers: int = 0

    def __str__(self) -> str:
        """Name it for the table."""
        more = ", asynchronous" * self.asynchronous + f", {self.workers} workers" * bool(
            self.workers
        )
        return f"{self.what} in {self.where} #{self.nth} ({self.whom}{more})"

    def variant(self) -> str:
        """Name the training that it hits, if that is one of its own."""
        return self.where if self.where in CHANGING else ""


@dataclass(frozen=True)
class Ending:
    """How one rank ended.

    Parameters
    ----------
    code : int or None
        Its exit code; None if it had to be killed in the end.
    seconds : float
        From the fault, or from the start where there was none, to the end.
    how, text : str
        The exception, or "finished".
    state : str
        A digest of weights, buffers, the text log and the test's loss, where it finished.
    printed : str
        All that it wrote to the screen.
    """

    code: int | None
    seconds: float
    how: str
    text: str
    state: str
    printed: str


class Faults:
    """Runs the training in a folder, on forked ranks."""

    def __init__(self, context, folder: Path):
        self._context = context
        self._folder = folder
        self._runs = 0

    def run(self, world_size, save, fault=None, variant="", timeout_s=20.0) -> list[Ending]:
        """Run it on so many ranks, checkpoints in the folder ``save``; return how each ended."""
        self._runs += 1
        folder = self._folder / f"run-{self._runs}"
        folder.mkdir()
        job = {"folder": str(folder), "save": str(self._folder / save), "world_size": world_size}
        job |= {"fault": fault and asdict(fault), "variant": variant, "timeout_s": timeout_s}
        started = time.time()
        processes = [
            self._context.Process(
                target=runpy.run_path, args=(__file__, {"JOB": {**job, "rank": rank}}, "rank")
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        codes, ended = self._wait(processes, fault)
        endings = []
        hit = min((float(p.read_text()) for p in folder.glob("fault-*")), default=started)
        for rank in range(world_size):
            note = folder / f"end-{rank}.json"
            said = json.loads(note.read_text()) if note.exists() else {}
            printed = (folder / f"screen-{rank}").read_text(errors="replace")
            texts = said.get("how", "no word"), said.get("text", ""), said.get("state", "")
            endings.append(Ending(codes[rank], ended[rank] - hit, *texts, printed))
        return endings

    def _wait(self, processes, fault):
        codes, ended = [None] * len(processes), [0.0] * len(processes)
        deadline = time.time() + PATIENCE_S
        stopped = {len(processes) - 1} if fault is not None and fault.what == "SIGSTOP" else set()
        waiting = set(range(len(processes)))
        while waiting - stopped and time.time() < deadline:
            for rank in list(waiting):
                if processes[rank].exitcode is not None:
                    codes[rank], ended[rank] = processes[rank].exitcode, time.time()
                    waiting.discard(rank)
            time.sleep(0.01)
        for rank in waiting:
            processes[rank].kill()
            ended[rank] = time.time()
        for process in processes:
            process.join()
            process.close()
        return codes, ended


class Rows(torch.utils.data.Dataset):
    """Rows of numbers, augmented by noise."""

    def __init__(self, rows, hit=lambda: None):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(rows, 4, generator=generator)
        self.y = torch.randn(rows, 2, generator=generator)
        self.hit = hit

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.hit()
        return self.x[index] + 0.01 * torch.rand(()), self.y[index]


class Odd:
    """A recoverable of each rank's own, which counts."""

    def __init__(self, injury):
        self.count, self.injury = 0, injury

    def state_dict(self):
        self.injury("saver")
        return {"count": self.count}

    def load_state_dict(self, state):
        self.injury("loader of a state")
        self.count = state["count"]


class Injury:
    """Counts the calls of one place, and does there what the fault says."""

    def __init__(self, fault, rank, world_size, folder):
        self.fault, self.folder, self.rank = fault, Path(folder), rank
        whom = fault.whom if fault is not None else "nobody"
        self.is_hit = whom == "all" or rank == {"last": world_size - 1, "first": 0}.get(whom)
        self.calls = 0

    def __call__(self, where):
        if not self.is_hit or where != self.fault.where:
            return
        self.calls += 1
        if self.calls == self.fault.nth:
            (self.folder / f"fault-{self.rank}").write_text(repr(time.time()))
            self.strike()

    def strike(self):
        what = self.fault.what
        if what in ("raises", "raises and lives on"):
            raise KeyError("a fault")
        if what == "sys.exit":
            sys.exit(3)
        if what == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        if what.startswith("SIG"):
            number = getattr(signal, what)
            if self.fault.workers:
                for line in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                    os.kill(int(line), number)
            os.kill(os.getpid(), number)
            time.sleep(0.3)  # a slow step: there is time to agree on a stop before the data ends


class Run(Brain):
    """The training: BatchNorm, dropout, momentum, noise, a checkpoint each second batch."""

    injury: Injury

    def compute_forward(self, batch, stage):
        self.injury(f"compute_forward {stage.name}")
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        self.injury(f"compute_objectives {stage.name}")
        loss = torch.nn.functional.mse_loss(predictions, batch[1])
        fault = self.injury.fault
        if fault is not None and fault.what == "NaN" and self.injury.is_hit:
            return loss * float("nan") if self.injury.calls == fault.nth else loss
        return loss

    def on_stage_start(self, stage, epoch=None):
        self.injury(f"on_stage_start {stage.name}")

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.injury(f"on_stage_end {stage.name}")
        if stage is Stage.VALID:
            self.hparams.train_logger.log_stats({"epoch": epoch}, valid_stats={"loss": stage_loss})
            self.checkpointer.save_and_keep_only({"loss": stage_loss}, min_keys=["loss"])


def _struck(name):
    def hook(self, *args, **kwargs):
        self.injury(name)
        return getattr(super(Run, self), name)(*args, **kwargs)

    return hook


for _name in FIT_HOOKS + TEST_HOOKS:
    if " " not in _name and _name not in CHANGING:
        setattr(Run, _name, _struck(_name))


def main(job):
    """Train and test on one rank, and write down how it ended."""
    folder, rank = Path(job["folder"]), job["rank"]
    job["fault"] = job["fault"] and Fault(**job["fault"])
    screen = os.open(folder / f"screen-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(screen, 1), os.dup2(screen, 2)
    torch.set_num_threads(1)
    # As in a script that a person starts, whatever started these tests.
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    _join(folder, rank, job["world_size"], job["timeout_s"])
    injury = Injury(job["fault"], rank, job["world_size"], folder)
    said = {"how": "finished", "text": "", "state": ""}
    try:
        said["state"] = train(job, injury)
    except BaseException as error:
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        said.update(how=type(error).__name__, text=str(error))
        raise
    finally:
        (folder / f"end-{rank}.json").write_text(json.dumps(said))
        if said["how"] != "finished" and injury.is_hit and injury.fault.what.endswith("lives on"):
            time.sleep(PATIENCE_S)


def train(job, injury):
    """Run `fit` and `evaluate`; return a digest of all that came of it."""
    brain_core.seed_everything(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.3), torch.nn.Linear(6, 2)
    )
    counter = EpochCounter(2)
    fault = job["fault"]
    save = Path(job["save"])
    save.mkdir(exist_ok=True)
    checkpointer = Checkpointer(
        save / "save",
        {"model": model, "counter": counter},
        asynchronous=fault is not None and fault.asynchronous,
    )
    odd = Odd(injury)
    checkpointer.add_recoverable("odd", odd, per_rank=True)
    train_logger = brain_core.FileTrainLogger(save / "log.txt")
    variant = job["variant"]
    cls = type("Run", (Run,), {variant: _struck(variant)}) if variant else Run
    options = {"device": "cpu", "ckpt_interval_steps": 2, "nonfinite_patience": 0}
    brain = cls.__new__(cls)
    brain.injury = injury
    brain.__init__(
        {"model": model},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        {"train_logger": train_logger},
        {**options, **CHANGING.get(variant, {})},
        checkpointer,
    )
    _hit_parts(brain, counter, train_logger, injury)
    loading = {"batch_size": 4, "shuffle": True, "num_workers": fault.workers if fault else 0}
    rows = Rows(26 * job["world_size"], lambda: injury("dataset"))
    brain.fit(counter, rows, Rows(20), None, loading, {"batch_size": 4})
    tested = brain.evaluate(Rows(22), min_key="loss", test_loader_kwargs={"batch_size": 4})
    digest = hashlib.sha256()
    for name, value in brain.raw_modules.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    digest.update(repr(tested).encode() + (save / "log.txt").read_bytes())
    return digest.hexdigest()


def _hit_parts(brain, counter, train_logger, injury):
    """Let the fault hit what `fit` calls on other objects."""
    make = brain.opt_class

    def opt_class(parameters):
        optimizer = make(parameters)
        optimizer.register_step_pre_hook(lambda *_: injury("optimizer.step"))
        return optimizer

    brain.opt_class = opt_class
    log_stats = train_logger.log_stats
    train_logger.log_stats = lambda *a, **k: (injury("train logger"), log_stats(*a, **k))
    enter = type(counter).__next__

    class Counter(type(counter)):
        def __next__(self):
            injury("epoch counter")
            return enter(self)

    counter.__class__ = Counter


def _join(folder, rank, world_size, timeout_s):
    timeout = timedelta(seconds=timeout_s)
    store = distributed.FileStore(str(folder / "store"), world_size)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=world_size, timeout=timeout
    )
    brain_dist.set_control_timeout(timeout_s)


if __name__ == "rank":
    main(globals()["JOB"])
