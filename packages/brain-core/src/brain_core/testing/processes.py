"""Running a Brain in child processes that can be killed."""

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
_SECONDS_TO_TELL = 2.0


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
        """Return a file of this attempt that lies beside the run's own folder."""
        return self.folder.with_name(f"{self.folder.name}-{name}-{self.number}-{rank}")


@dataclass
class Attempt:
    """What became of one start.

    Attributes
    ----------
    records : list of list of Record
        For each rank, in order.
    killed : bool
        Whether it killed itself as it was told to.
    """

    records: list[list[Record]]
    killed: bool


def choose_start_method(asked: StartMethod | None) -> StartMethod:
    """Fork where that is safe, since then a Brain may be defined inside a test; else spawn."""
    if asked is not None:
        return asked
    can = "fork" in multiprocessing.get_all_start_methods() and sys.platform == "linux"
    uses_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's
    # Threads of the parent, such as pytest-xdist's, do not come along, and nothing waits for them.
    return "fork" if can and not uses_cuda else "spawn"


def run(job: Job) -> Attempt:
    """Start all ranks, wait for their end, and read what they noted.

    Raises
    ------
    AssertionError
        If one of them raises, or does not end in time.
    """
    if job.start_method == "fork":
        importlib.import_module("torch._dynamo")  # optimizers do; here once, and not in each child
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
        raise AssertionError(f"A child was killed from outside, perhaps for its memory.{_log(job)}")
    return Attempt([read_records(job.file("records", rank)) for rank in range(job.ranks)], killed)


def _start(processes: list[Any]) -> None:
    with warnings.catch_warnings():
        # Python warns of any fork beside threads, torch's own among them; the child uses none.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            for process in processes:
                process.start()
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise ValueError(
                "make_brain and fit_args must be importable by a process that is started afresh, "
                f"got {error!r}. Define them at the top level of a module, or call "
                "assert_resumes_exactly on Linux before the test's process uses CUDA: then it "
                "forks, and they may be anything."
            ) from error


def _wait(processes: list[BaseProcess], job: Job) -> None:
    """Wait until all have ended; when one fails, those that wait for it are not waited for."""
    deadline = time.monotonic() + job.timeout_s
    while any(process.is_alive() for process in processes):
        codes = [process.exitcode for process in processes]
        if any(codes):
            break
        if time.monotonic() > deadline:
            _ask_where(processes)
            raise AssertionError(f"A run must end within {job.timeout_s} s, and hangs.{_log(job)}")
        time.sleep(0.005)
    time.sleep(0.0 if job.ranks == 1 else 0.05)  # let the others reach the same kill
    failed = [code for code in (p.exitcode for p in processes) if code not in (0, None)]
    if any(code != -signal.SIGKILL for code in failed) and -signal.SIGKILL not in failed:
        raise AssertionError(f"A run ended with code {failed[0]}.{_log(job)}")


def _ask_where(processes: list[BaseProcess]) -> None:
    """Let processes that hang write where they are into their logs."""
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGABRT)
            process.join(_SECONDS_TO_TELL)


def _log(job: Job) -> str:
    texts = (job.file("log", rank) for rank in range(job.ranks))
    logs = [path.read_text(encoding="utf-8", errors="replace") for path in texts if path.exists()]
    told = "\n".join(log[-_LOG_CHARACTERS:] for log in logs).strip()
    return f" It printed:\n{told}" if told else ""


def _child(job: Job, rank: int) -> None:
    log = os.open(job.file("log", rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # pytest may have put something else in their place, which the parent's other children share
    sys.stdout = sys.stderr = open(log, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115  # for as long as the child lives
    # Not its timer: where the parent has one running, as pytest may, a fork cannot set another.
    faulthandler.enable(file=sys.stderr)
    try:
        _train(job, rank)
    except BaseException:  # noqa: BLE001  # told to the parent, whatever it is
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)
    os._exit(0)  # nothing of the parent's is to be cleaned up here


def _train(job: Job, rank: int) -> None:
    if job.start_method == "fork":
        torch.set_num_threads(1)  # the parent's threads did not come along
    setattr(os, "fsync", lambda _: None)  # noqa: B010  # a kill loses nothing that was written
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
