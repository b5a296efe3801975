"""A training run that a fault can hit at any call, on ranks with separate exit codes.

`Faults` starts the run on several ranks, causes the fault and returns how each rank ended. Started
again, the run shows whether it resumes bit for bit. Each rank runs this file.
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
# Calls of `fit` to objects of the recipe.
PARTS = ["dataset", "optimizer.step", "epoch counter", "train logger", "saver", "loader of a state"]
# Overridden only if the fault hits them, because overriding them changes the arithmetic.
CHANGING = {
    "loss_weight": {},
    "check_gradients": {"skip_nonfinite_grads": True},
    "update_average": {},
}


@dataclass(frozen=True)
class Fault:
    """A fault: what happens, at which call, and on which ranks.

    Parameters
    ----------
    what : str
        "raises", "raises and lives on", "sys.exit", "SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT",
        "NaN", "out of memory".
    where : str
        A hook, or an entry of `PARTS`.
    nth : int
        The number of the call, from 1.
    target : str
        "last", "first" or "all".
    asynchronous : bool
        Whether checkpoints are written while training continues.
    workers : int
        The number of loader workers; a signal is sent to them, too.
    """

    what: str
    where: str
    nth: int = 1
    target: str = "last"
    asynchronous: bool = False
    workers: int = 0

    def __str__(self) -> str:
        """Return the name of the fault for the table."""
        more = ", asynchronous" * self.asynchronous + f", {self.workers} workers" * bool(
            self.workers
        )
        return f"{self.what} in {self.where} #{self.nth} ({self.target}{more})"

    def variant(self) -> str:
        """Return the hook that must be overridden for this fault, or an empty string."""
        return self.where if self.where in CHANGING else ""


@dataclass(frozen=True)
class Ending:
    """The end of one rank.

    Parameters
    ----------
    code : int or None
        Its exit code; None if it hung and was killed.
    seconds : float
        Seconds from the fault, or from the start without a fault, to the end.
    how, text : str
        The exception's class, or "finished", and its message.
    state : str
        A digest of weights, buffers, the text log and the test loss, if it finished.
    printed : str
        Its output.
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
        """Run on this many ranks, with checkpoints in the folder ``save``; return their endings."""
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
            report = json.loads(note.read_text()) if note.exists() else {}
            printed = (folder / f"screen-{rank}").read_text(errors="replace")
            texts = report.get("how", "no report"), report.get("text", ""), report.get("state", "")
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
    """Rows of numbers with noise as augmentation."""

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


class PerRankCount:
    """A recoverable of each rank, which holds a count."""

    def __init__(self, injector):
        self.count, self.injector = 0, injector

    def state_dict(self):
        self.injector("saver")
        return {"count": self.count}

    def load_state_dict(self, state):
        self.injector("loader of a state")
        self.count = state["count"]


class FaultInjector:
    """Counts the calls of one place, and causes the fault there."""

    def __init__(self, fault, rank, world_size, folder):
        self.fault, self.folder, self.rank = fault, Path(folder), rank
        target = fault.target if fault is not None else "none"
        self.is_hit = target == "all" or rank == {"last": world_size - 1, "first": 0}.get(target)
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
            time.sleep(0.3)  # A slow step, so that the ranks agree on a stop before the data end.


class Run(Brain):
    """A Brain with BatchNorm, dropout, noise, and checkpoints every two batches."""

    injector: FaultInjector

    def compute_forward(self, batch, stage):
        self.injector(f"compute_forward {stage.name}")
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        self.injector(f"compute_objectives {stage.name}")
        loss = torch.nn.functional.mse_loss(predictions, batch[1])
        fault = self.injector.fault
        if fault is not None and fault.what == "NaN" and self.injector.is_hit:
            return loss * float("nan") if self.injector.calls == fault.nth else loss
        return loss

    def on_stage_start(self, stage, epoch=None):
        self.injector(f"on_stage_start {stage.name}")

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.injector(f"on_stage_end {stage.name}")
        if stage is Stage.VALID:
            self.hparams.train_logger.log_stats({"epoch": epoch}, valid_stats={"loss": stage_loss})
            self.checkpointer.save_and_keep_only({"loss": stage_loss}, min_keys=["loss"])


def _failing_hook(name):
    def hook(self, *args, **kwargs):
        self.injector(name)
        return getattr(super(Run, self), name)(*args, **kwargs)

    return hook


for _name in FIT_HOOKS + TEST_HOOKS:
    if " " not in _name and _name not in CHANGING:
        setattr(Run, _name, _failing_hook(_name))


def main(job):
    """Train and test on one rank, and write how it ended."""
    folder, rank = Path(job["folder"]), job["rank"]
    job["fault"] = job["fault"] and Fault(**job["fault"])
    screen = os.open(folder / f"screen-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(screen, 1), os.dup2(screen, 2)
    torch.set_num_threads(1)
    # The defaults of a script that is started at a terminal.
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    _join(folder, rank, job["world_size"], job["timeout_s"])
    injector = FaultInjector(job["fault"], rank, job["world_size"], folder)
    report = {"how": "finished", "text": "", "state": ""}
    try:
        report["state"] = train(job, injector)
    except BaseException as error:
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        report.update(how=type(error).__name__, text=str(error))
        raise
    finally:
        (folder / f"end-{rank}.json").write_text(json.dumps(report))
        if (
            report["how"] != "finished"
            and injector.is_hit
            and injector.fault.what.endswith("lives on")
        ):
            time.sleep(PATIENCE_S)


def train(job, injector):
    """Run `fit` and `evaluate`; return a digest of the results."""
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
    per_rank_count = PerRankCount(injector)
    checkpointer.add_recoverable("per_rank_count", per_rank_count, per_rank=True)
    train_logger = brain_core.FileTrainLogger(save / "log.txt")
    variant = job["variant"]
    cls = type("Run", (Run,), {variant: _failing_hook(variant)}) if variant else Run
    options = {"device": "cpu", "ckpt_interval_steps": 2, "nonfinite_patience": 0}
    brain = cls.__new__(cls)
    brain.injector = injector
    brain.__init__(
        {"model": model},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        {"train_logger": train_logger},
        {**options, **CHANGING.get(variant, {})},
        checkpointer,
    )
    _inject_into_parts(brain, counter, train_logger, injector)
    loading = {"batch_size": 4, "shuffle": True, "num_workers": fault.workers if fault else 0}
    rows = Rows(26 * job["world_size"], lambda: injector("dataset"))
    brain.fit(counter, rows, Rows(20), None, loading, {"batch_size": 4})
    tested = brain.evaluate(Rows(22), min_key="loss", test_loader_kwargs={"batch_size": 4})
    digest = hashlib.sha256()
    for name, value in brain.raw_modules.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    digest.update(repr(tested).encode() + (save / "log.txt").read_bytes())
    return digest.hexdigest()


def _inject_into_parts(brain, counter, train_logger, injector):
    """Make the calls of `PARTS` hit the fault."""
    make = brain.opt_class

    def opt_class(parameters):
        optimizer = make(parameters)
        optimizer.register_step_pre_hook(lambda *_: injector("optimizer.step"))
        return optimizer

    brain.opt_class = opt_class
    log_stats = train_logger.log_stats
    train_logger.log_stats = lambda *a, **k: (injector("train logger"), log_stats(*a, **k))
    enter = type(counter).__next__

    class Counter(type(counter)):
        def __next__(self):
            injector("epoch counter")
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
