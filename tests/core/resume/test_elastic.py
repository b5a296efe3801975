"""Runs that are stopped and gone on with on other numbers of ranks: the steps stay those of one.

A few random schedules; 200 with ``BRAIN_CHAOS=1``, in five minutes on two cores, and ``BRAIN_SEED``
repeats what failed.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, Stage, TrainingStopped, seed_everything
from brain_core.resume.elastic import StepSize
from brain_core.resume.run_state import Progress
from brain_data import DynamicBatchSampler
from brain_dist import ddp_init_group, get_rank, get_world_size

SCHEDULES = 200 if os.environ.get("BRAIN_CHAOS") else 6
SEED = int(os.environ.get("BRAIN_SEED", "6"))
WORLD_SIZES = (1, 2, 3, 4)
ENDS = ("", "", "at once", "in validation")


@dataclasses.dataclass(frozen=True)
class Leg:
    """A start of the run: on how many ranks, and after which step of it it ends, and how.

    It is asked to stop, or crashes, at once or in the validation that follows.
    """

    world_size: int
    ends_after: int | None = None
    crashes: str = ""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A run in several legs."""

    rows: int
    batch_size: int | None
    group: int
    epochs: int
    seed: int
    interval: int
    legs: tuple[Leg, ...]

    @property
    def factor(self):
        """The option that the run is started with each time, whatever the ranks."""
        return self.group // self.legs[0].world_size

    @classmethod
    def drawn(cls, number):
        draw = random.Random(f"{SEED} {number}")
        group = draw.choice((2, 4, 6, 12, 12, 12))
        sizes = [size for size in WORLD_SIZES if group % size == 0]
        interval = draw.choice((1, 2, 4, 8))
        legs = [
            # Before the first checkpoint nothing could know what a step is on other ranks.
            Leg(draw.choice(sizes), draw.randint(1, 3), draw.choice(ENDS) if index else "")
            for index in range(draw.randint(2, 4))
        ]
        return cls(
            rows=draw.choice((draw.randint(1, 12), draw.randint(13, 61))),
            batch_size=draw.choice((1, 2, 3, None)),
            group=group,
            epochs=draw.choice((2, 2, 3)),
            seed=draw.randrange(2**31),
            interval=interval,
            legs=(*legs, Leg(draw.choice(sizes))),
        )


AGENTS = Schedule(41, 2, 2, 6, 3, 2, (Leg(2),))
"""What two of torchrun's agents run, until one of them is killed, and another one joins."""


class Rows(torch.utils.data.Dataset):
    """Rows of numbers in double precision, each with its index."""

    def __init__(self, rows):
        generator = torch.Generator().manual_seed(rows)
        self.x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True).sin()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index], index


class CrashError(Exception):
    """Ends a leg without a word, on all ranks at once."""


class Run(Brain):
    """Notes the micro-batches of each step, and ends where its leg says."""

    leg: Leg

    def on_fit_start(self):
        super().on_fit_start()
        self.began_at, self.seen, self.means, self.ends = self.optimizer_step, [], [], False

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        if stage is Stage.VALID and self.ends:
            raise CrashError
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_stage_start(self, stage, epoch=None):
        self.epoch = epoch

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        step = self.optimizer_step - should_step
        if not self.is_padding:
            self.seen.append((self.epoch, step, tuple(batch[2].tolist()), loss.item()))
        if not should_step or self.optimizer_step - self.began_at != self.leg.ends_after:
            return
        self.ends = self.leg.crashes == "in validation"
        if self.leg.crashes == "at once":
            raise CrashError
        if not self.ends and get_rank() == self.leg.ends_after % get_world_size():
            self.stop()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage is Stage.TRAIN:
            self.means.append((epoch, stage_loss))
        else:
            self.checkpointer.save_and_keep_only({"epoch": epoch}, num_to_keep=1)


def run_leg(schedule, leg, folder, kind=Run, **options):
    """Start the run anew on this number of ranks, and return what it did."""
    seed_everything(schedule.seed % 1000)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
    ).double()
    counter = EpochCounter(schedule.epochs)
    brain = kind(
        {"model": model},
        lambda p: torch.optim.AdamW(p, lr=0.02),
        run_opts={
            "device": "cpu",
            "recover_attributes": False,
            "max_grad_norm": 0.5,
            "ckpt_interval_steps": schedule.interval,
            "grad_accumulation_factor": schedule.factor,
            **options,
        },
        checkpointer=Checkpointer(folder, {"model": model, "counter": counter}),
    )
    brain.leg = leg
    rows = Rows(schedule.rows)
    if schedule.batch_size is None:
        lengths = [1 + (7 * row) % 19 for row in range(schedule.rows)]
        sampler = DynamicBatchSampler(rows, 40, 3, lengths_list=lengths, seed=schedule.seed % 99)
        loading = {"batch_sampler": sampler}
    else:
        loading = {"batch_size": schedule.batch_size, "shuffle": True}
    try:
        brain.fit(counter, rows, Rows(1), train_loader_kwargs=loading)
    except (CrashError, TrainingStopped):
        brain.checkpointer.close()
    weights = torch.cat([p.detach().flatten() for p in brain.raw_modules.parameters()]).tolist()
    return {
        "began_at": brain.began_at,
        "seen": brain.seen,
        "means": brain.means,
        "weights": weights,
        "factor": brain.grad_accumulation_factor,
    }


def walk(rank, folder, numbers):
    """Take part in each leg that this rank is needed for, in groups of their own.

    The first rank also runs each schedule alone, without a stop.
    """
    done = []
    for number in numbers:
        schedule = Schedule.drawn(number)
        done.append([])
        if rank == 0:
            alone = dataclasses.replace(schedule, legs=(Leg(1),), interval=0)
            done[-1].append(run_leg(alone, Leg(1), folder / f"alone-{number}"))
        for index, leg in enumerate(schedule.legs):
            if rank >= leg.world_size:
                continue
            if leg.world_size > 1:
                store = distributed.FileStore(f"{folder}/store-{number}-{index}", leg.world_size)
                timeout = timedelta(seconds=40)
                distributed.init_process_group(
                    "gloo", store=store, rank=rank, world_size=leg.world_size, timeout=timeout
                )
            try:
                done[-1].append(run_leg(schedule, leg, folder / f"save-{number}"))
            finally:
                if leg.world_size > 1:
                    distributed.destroy_process_group()
    return done


def merged(legs):
    """Put the ranks of all legs together: what each step of the run took in the end."""
    steps, means = {}, {}
    for leg in legs:
        began_at = leg[0]["began_at"]
        assert all(rank["began_at"] == began_at for rank in leg)
        steps = {key: value for key, value in steps.items() if key[1] < began_at}
        for epoch, step, rows, loss in (seen for rank in leg for seen in rank["seen"]):
            # Repeated in the same step, it would be there twice.
            steps.setdefault((epoch, step), []).append((rows, loss))
        means |= dict(leg[0]["means"])
    return {key: sorted(value) for key, value in steps.items()}, means


def check(schedule, of_ranks):
    """Compare a run in legs with the run of one process; return how far numbers are apart."""
    alone, *first_rank = of_ranks[0]
    rest = [iter(legs) for legs in of_ranks[1:]]
    legs = [
        [mine, *(next(others) for others in rest[: leg.world_size - 1])]
        for leg, mine in zip(schedule.legs, first_rank, strict=True)
    ]
    steps, means = merged(legs)
    expected, expected_means = merged([[alone]])
    assert steps.keys() == expected.keys()
    apart = []
    for key, batches in steps.items():
        assert [rows for rows, _ in batches] == [rows for rows, _ in expected[key]]
        apart += [far(a, b) for (_, a), (_, b) in zip(batches, expected[key], strict=True)]
    for epoch in range(1, schedule.epochs + 1):
        taken = [row for (e, _), b in steps.items() if e == epoch for rows, _ in b for row in rows]
        assert sorted(taken) == list(range(schedule.rows))
        apart.append(far(means[epoch], expected_means[epoch]))
    weights = zip(legs[-1][0]["weights"], alone["weights"], strict=True)
    return max([*apart, *(far(a, b) for a, b in weights)]), len(steps)


class Journal(Run):
    """Writes down at once what it sees, since it may be killed, and takes its time."""

    folder: Path

    def on_fit_start(self):
        super().on_fit_start()
        name = f"{time.time_ns()}-{os.getpid()}.jsonl"
        self.file = (self.folder / name).open("w", encoding="utf-8")
        # torchrun has another port for each group that it makes.
        self.write([get_world_size(), self.began_at, os.environ["MASTER_PORT"]])

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        self.write(None if self.is_padding else self.seen[-1])
        time.sleep(0.05 if get_world_size() > 1 else 0.4)

    def write(self, line):
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


def be_a_worker(folder):
    """Run what torchrun starts, again and again, on as many ranks as there are."""
    ddp_init_group({"distributed_backend": "gloo", "device": "cpu"})
    Journal.folder = folder
    run_leg(AGENTS, Leg(get_world_size()), folder / "save", Journal)


def far(a, b):
    """How far two numbers are apart, beside their size."""
    return abs(a - b) / max(abs(a), abs(b), 1e-9)


def say(capsys, text):
    """Show progress in a long run, past pytest, which thinks after five minutes that it hangs."""
    faulthandler.cancel_dump_traceback_later()
    with capsys.disabled():
        sys.stdout.write(text)
        sys.stdout.flush()


@pytest.fixture
def fast_dir(tmp_path):
    """Return a folder where the many small checkpoints wait for no disk."""
    if not os.path.isdir("/dev/shm"):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_random_schedules_over_ranks_take_the_steps_of_one_process(ranks, fast_dir, capsys):
    """Every sample once an epoch, the same micro-batches a step, losses and means within 1e-5."""
    together = min(10, SCHEDULES)
    largest, steps, legs, crashes = 0.0, 0, 0, 0
    for first in range(0, SCHEDULES, together):
        numbers = range(first, first + together)
        folder = fast_dir / f"from-{first}"
        folder.mkdir()
        found = ranks(walk, 4, folder, numbers, group=False, timeout_s=300.0)
        for number in numbers:
            schedule = Schedule.drawn(number)
            told = f"schedule {number} of seed {SEED}: {schedule}"
            try:
                apart, some = check(schedule, [rank[number - first] for rank in found])
            except AssertionError as error:
                raise AssertionError(told) from error
            assert apart < 1e-5, told
            largest, steps = max(largest, apart), steps + some
            legs += len(schedule.legs)
            crashes += sum(bool(leg.crashes) for leg in schedule.legs)
        if SCHEDULES > 10:
            say(capsys, f"\r{first + together} of {SCHEDULES} schedules (seed {SEED})")
    if SCHEDULES > 10:
        say(
            capsys,
            f"\n{SCHEDULES} schedules, {legs} legs ({crashes} ended by a crash), {steps} optimizer "
            f"steps: samples lost or repeated 0, steps regrouped 0, numbers apart by {largest:.1e} "
            "at most\n",
        )


def saved(size, option, step=6, world_size=2):
    """What a checkpoint says of its steps."""
    return Progress(
        step=step,
        world_size=world_size,
        micro_batches_per_step=size,
        grad_accumulation_factor=option,
    )


@pytest.mark.parametrize(("world_size", "factor"), [(1, 4), (2, 2), (4, 1)])
def test_a_number_of_ranks_that_divides_a_step_takes_the_same_one(world_size, factor):
    """By another accumulation factor, and at the same place of the epoch."""
    size = StepSize(world_size, 2)
    assert size.recover(saved(4, 2), elastic=False) == factor
    assert size.batches_done(saved(4, 2), factor) == 12 // world_size
    assert size.to_save(factor) == 4


def test_a_number_of_ranks_that_does_not_divide_a_step_is_refused_with_those_that_do():
    """The error names the option that goes on all the same."""
    with pytest.raises(ValueError, match=r"the 4 micro-batches .*got 3\. Start 1, 2 or 4 .*--elas"):
        StepSize(3, 2).recover(saved(4, 2), elastic=False)


def test_with_elastic_steps_have_about_the_size_that_they_had_and_get_it_back():
    """Three ranks take three micro-batches; the next two, whom it divides, take four again."""
    size = StepSize(3, 2)
    assert size.recover(saved(4, 2), elastic=True) == 1
    assert size.to_save(1) == 4  # as the next checkpoint says
    assert size.batches_done(saved(4, 2), 1) == 4
    again = StepSize(2, 2)
    assert again.recover(saved(4, 2, step=7, world_size=3), elastic=True) == 2
    assert StepSize(3, 5).recover(saved(10, 5), elastic=True) == 3


def test_another_accumulation_factor_is_somebodys_decision():
    """Then it stands, as it does where a checkpoint of SpeechBrain's or an old one says nothing."""
    for progress in (saved(4, 1), saved(None, None)):
        size = StepSize(2, 2)
        assert size.recover(progress, elastic=False) is None
        assert size.to_save(2) == 4


def stop_and_go(rank, folder, world_size, leg, options):
    """Run one leg of a fixed schedule, caught by name if it is refused."""
    schedule = Schedule(23, 2, 2, 3, 5, 1, (Leg(2),))
    try:
        return run_leg(schedule, Leg(*leg), folder, **options)
    except ValueError as error:
        return str(error)


def test_three_ranks_do_not_go_on_with_the_steps_of_two_unless_told_to(ranks, tmp_path):
    """And with --elastic every sample is taken once an epoch all the same, in every epoch."""
    first = ranks(stop_and_go, 2, tmp_path / "save", 2, (2, 3), {})
    refused = ranks(stop_and_go, 3, tmp_path / "save", 3, (3,), {})
    assert all("got 3. Start 1 or 2 ranks, or write --elastic" in text for text in refused)
    options = {"elastic": True}
    second = ranks(stop_and_go, 3, tmp_path / "save", 3, (3, 6), options)
    third = ranks(stop_and_go, 4, tmp_path / "save", 4, (4,), options)
    assert [leg[0]["factor"] for leg in (first, second, third)] == [1, 1, 1]
    steps, _ = merged([first, second, third])
    for epoch in (1, 2, 3):
        taken = [row for (e, _), b in steps.items() if e == epoch for rows, _ in b for row in rows]
        assert sorted(taken) == list(range(23))


def test_the_number_of_ranks_is_said_once_when_it_changes(ranks, tmp_path, caplog):
    """One line: what the accumulation factor is now, and that steps stay as they were."""
    ranks(stop_and_go, 2, tmp_path / "save", 2, (2, 3), {})
    with caplog.at_level("INFO", logger="brain_core"):
        alone = stop_and_go(0, tmp_path / "save", 1, (1,), {})
    said = [text for text in caplog.messages if "grad_accumulation_factor" in text]
    assert len(said) == 1
    assert "is 2 for a world size of 1: an optimizer step takes the same 2" in said[0]
    assert alone["factor"] == 2


class Agents:
    """Agents of torchrun on this machine, each with one worker, that find each other."""

    def __init__(self, folder):
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._started = []
        (folder / "worker.py").write_text(
            "import importlib.util, pathlib, sys\n"
            f"spec = importlib.util.spec_from_file_location('elastic', {__file__!r})\n"
            "elastic = sys.modules['elastic'] = importlib.util.module_from_spec(spec)\n"
            "spec.loader.exec_module(elastic)\n"
            f"elastic.be_a_worker(pathlib.Path({str(folder)!r}))\n"
        )

    def start(self):
        """Start one, a process group of its own."""
        # The first one keeps the list of all; without it the others would be lost.
        host = f"is_host={int(not self._started)},"
        patience = f"{host}join_timeout=60,last_call_timeout=2,keep_alive_interval=1,"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2"),
            *("--nproc-per-node", "1", "--max-restarts", "5", "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", f"127.0.0.1:{self._port}", "--rdzv-id", "elastic"),
            *("--rdzv-conf", f"{patience}keep_alive_max_attempt=3,close_timeout=5"),
            *("--local-addr", "127.0.0.1", str(self._folder / "worker.py")),
        ]
        log = (self._folder / f"agent-{len(self._started)}.log").open("wb")
        # Shared, the store's address is not told again in a second round (torch 2.13), and whoever
        # is new waits for it in vain.
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        agent = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=environ
        )
        log.close()
        self._started.append(agent)
        return agent

    def journals(self):
        """Return what each start of a worker has written so far, in their order."""
        texts = [path.read_text() for path in sorted(self._folder.glob("*.jsonl"))]
        whole_lines = [text.split("\n")[:-1] for text in texts]
        return [[json.loads(line) for line in lines] for lines in whole_lines if lines]

    def wait_for_steps(self, world_size, batches, starts=1, timeout_s=240):
        """Wait until so many starts on a number of ranks have done some batches."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            far_enough = [lines for lines in self.journals() if lines and lines[0][0] == world_size]
            if sum(len(lines) > batches for lines in far_enough) >= starts:
                return
            assert any(agent.poll() is None for agent in self._started), self.logs()
            time.sleep(0.1)
        raise AssertionError(self.logs())

    def logs(self):
        return "\n".join(path.read_text()[-3000:] for path in self._folder.glob("agent-*.log"))

    def kill_all(self):
        for agent in self._started:
            kill(agent)


def kill(agent):
    """Kill an agent and its worker, as when their machine is gone."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(agent.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    for pid in [agent.pid, *map(int, children)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    agent.wait()


@pytest.fixture
def agents(tmp_path):
    """Return what starts agents; none outlives the test."""
    started = Agents(tmp_path)
    yield started
    started.kill_all()


@pytest.mark.skipif("BRAIN_CHAOS" not in os.environ, reason="takes a minute: BRAIN_CHAOS=1")
def test_torchruns_own_restart_goes_on_with_fewer_ranks_and_with_more(agents, tmp_path):
    """Two agents, one is killed, another one joins: every sample once, the steps of one process."""
    first, second = agents.start(), agents.start()
    agents.wait_for_steps(2, 12, starts=2)
    kill(second)
    agents.wait_for_steps(1, 10)
    third = agents.start()
    agents.wait_for_steps(2, 4, starts=4)
    assert [first.wait(120), third.wait(120)] == [0, 0], agents.logs()
    starts = agents.journals()
    assert [lines[0][0] for lines in starts][-3:] == [1, 2, 2]
    steps = {}
    for (_, began_at, group), *lines in starts:
        # What was done after the checkpoint that this start went on from is done again.
        steps = {k: v for k, v in steps.items() if k[1] < began_at or k[2] == group}
        for epoch, step, rows, loss in filter(None, lines):
            steps.setdefault((epoch, step, group), []).append((tuple(rows), loss))
    by_one = dataclasses.replace(AGENTS, legs=(Leg(1),))
    alone = run_leg(by_one, Leg(1), tmp_path / "alone")
    expected, _ = merged([[alone]])
    taken = {key[:2]: sorted(batches) for key, batches in sorted(steps.items())}
    assert taken.keys() == expected.keys()
    for key, batches in taken.items():
        assert [rows for rows, _ in batches] == [rows for rows, _ in expected[key]]
        assert all(far(a, b) < 1e-5 for (_, a), (_, b) in zip(batches, expected[key], strict=True))
