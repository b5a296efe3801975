"""Child processes that train a Brain and can be killed."""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch

from brain_core.options.seed import seed_generators
from brain_core.testing.record import Kill, Record, Recorder, read_records

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.process import BaseProcess
    from pathlib import Path

__all__ = ["Attempt", "Job", "choose_start_method", "run"]

StartMethod = Literal["fork", "spawn"]
_LOG_CHARACTERS = 16_000
_SECONDS_TO_DUMP = 2.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a child runs; see `brain_core.testing.assert_resumes_exactly`."""

    make_brain: Callable[[Path], Any]
    fit_args: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]
    folder: Path
    seed: int
    ranks: int
    start_method: StartMethod
    timeout_s: float
    kill: Kill | None = None
    number: int = 0  # of the attempts in this folder

    def file(self, name: str, rank: int) -> Path:
        """Return the path of a file of this attempt, next to the run's folder."""
        return self.folder.with_name(f"{self.folder.name}-{name}-{self.number}-{rank}")


@dataclass
class Attempt:
    """The result of one start.

    Attributes
    ----------
    records : list of list of Record
        The records of each rank, by rank.
    killed : bool
        Whether a rank killed itself at ``Job.kill``.
    """

    records: list[list[Record]]
    killed: bool


def choose_start_method(requested: StartMethod | None) -> StartMethod:
    """Return ``requested``; by default "fork" where it is safe, else "spawn"."""
    if requested is not None:
        return requested
    can = "fork" in multiprocessing.get_all_start_methods() and sys.platform == "linux"
    uses_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's
    # The child has none of the parent's threads, such as pytest-xdist's, and waits for none.
    return "fork" if can and not uses_cuda else "spawn"


def run(job: Job) -> Attempt:
    """Start all ranks, wait until they end, and read their records.

    Raises
    ------
    AssertionError
        If a rank raises, or does not end in time.
    """
    if job.start_method == "fork":
        # The children need these; here they are imported only once.
        importlib.import_module("torch._dynamo")  # by optimizers
        importlib.import_module("yaml")  # by checkpoints
        if job.ranks > 1:
            importlib.import_module("torch.distributed.checkpoint")  # by shards
    context: Any = multiprocessing.get_context(job.start_method)
    processes = [context.Process(target=_child, args=(job, rank)) for rank in range(job.ranks)]
    try:
        _start(processes)
        _wait(processes, job)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
    killed = any(process.exitcode == -signal.SIGKILL for process in processes)
    if killed and job.kill is None:
        raise AssertionError(f"A process was killed from outside, maybe for its memory.{_log(job)}")
    return Attempt([read_records(job.file("records", rank)) for rank in range(job.ranks)], killed)


def _start(processes: list[Any]) -> None:
    with warnings.catch_warnings():
        # Python warns of a fork if threads exist, such as torch's; the child uses none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            for process in processes:
                process.start()
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise ValueError(
                "make_brain and fit_args must be importable by a spawned process, got "
                f"{error!r}. Define them at the top level of a module, or call "
                "assert_resumes_exactly on Linux before the test's process uses CUDA: the "
                "processes are then forked, and nothing needs to be importable."
            ) from error


def _wait(processes: list[BaseProcess], job: Job) -> None:
    """Wait until all processes have ended or one has failed."""
    deadline = time.monotonic() + job.timeout_s
    while any(process.is_alive() for process in processes):
        codes = [process.exitcode for process in processes]
        if any(codes):
            break
        if time.monotonic() > deadline:
            _dump_tracebacks(processes)
            raise AssertionError(f"A run must end within {job.timeout_s} s, but hangs.{_log(job)}")
        time.sleep(0.005)
    time.sleep(0.0 if job.ranks == 1 else 0.05)  # let the other ranks reach the same kill
    failed = [code for code in (p.exitcode for p in processes) if code not in (0, None)]
    if any(code != -signal.SIGKILL for code in failed) and -signal.SIGKILL not in failed:
        raise AssertionError(f"A run ended with code {failed[0]}.{_log(job)}")


def _dump_tracebacks(processes: list[BaseProcess]) -> None:
    """Make hanging processes write their tracebacks into their logs."""
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGABRT)
            process.join(_SECONDS_TO_DUMP)


def _log(job: Job) -> str:
    texts = (job.file("log", rank) for rank in range(job.ranks))
    logs = [path.read_text(encoding="utf-8", errors="replace") for path in texts if path.exists()]
    output = "\n".join(log[-_LOG_CHARACTERS:] for log in logs).strip()
    return f" Output:\n{output}" if output else ""


def _child(job: Job, rank: int) -> None:
    log = os.open(job.file("log", rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # pytest may have replaced them by files that the parent's other children share.
    sys.stdout = sys.stderr = open(log, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115  # for as long as the child lives
    # Do not use its timer: a fork cannot set one if the parent, such as pytest, has one running.
    faulthandler.enable(file=sys.stderr)
    try:
        _train(job, rank)
    except BaseException:  # noqa: BLE001  # any error is reported to the parent
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)
    os._exit(0)  # skip the parent's exit handlers


def _train(job: Job, rank: int) -> None:
    if job.start_method == "fork":
        torch.set_num_threads(1)  # the parent's threads do not exist here
    setattr(os, "fsync", lambda _: None)  # noqa: B010  # a kill of the process loses no written data
    if job.ranks > 1:
        _join_group(job, rank)
    seed_generators(job.seed)
    brain = job.make_brain(job.folder)
    if brain.checkpointer is None:
        raise ValueError("make_brain must return a Brain with a checkpointer, got one without.")
    if brain.ckpt_interval_steps <= 0 and brain.ckpt_interval_minutes <= 0:
        brain.ckpt_interval_steps = 2
    arguments = dict(job.fit_args(brain) if callable(job.fit_args) else job.fit_args)
    epochs = arguments.setdefault("epoch_counter", range(1, 2))
    recorder = Recorder(brain, epochs, job.file("records", rank), job.kill)
    brain.fit(**arguments)
    recorder.finish()
    brain.checkpointer.close()


def _join_group(job: Job, rank: int) -> None:
    from torch import distributed  # several ranks only

    world = str(job.ranks)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world, LOCAL_WORLD_SIZE=world
    )
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(str(job.file("store", 0)), job.ranks),  # type: ignore[attr-defined]  # torch's
        rank=rank,
        world_size=job.ranks,
        timeout=timedelta(seconds=job.timeout_s),
    )
