"""A training script that torchrun restarts, and that is stopped under torchrun and SLURM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = """
import os
import signal
import sys
import time

import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, Stage, seed_everything
from brain_dist import ddp_init_group, get_rank, if_main_process

folder, what = sys.argv[1:]
attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
KILLS = {  # steps by attempt; every third step is saved, so the third attempt begins with 10
    "kill once": (4, None),
    "kill thrice": (4, 11, 10, None),
}


class Run(Brain):
    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        if what in KILLS and get_rank() == 1 and self.optimizer_step == KILLS[what][attempt]:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "wait" and self.optimizer_step == 3 and if_main_process():
            open(folder + "/here", "w").close()
        time.sleep(0.05 * (what == "wait"))

    def on_stage_end(self, stage, loss, epoch=None):
        if stage is Stage.VALID:
            self.checkpointer.save_and_keep_only({"loss": loss}, min_keys=["loss"])


ddp_init_group({"device": "cpu"})
seed_everything(1)
inputs = torch.randn(64, 4)
data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
layers = [torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2)]
model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 1))
epochs = EpochCounter(2)
brain = Run(
    {"model": model},
    lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    run_opts={"device": "cpu", "ckpt_interval_steps": 3},
    checkpointer=Checkpointer(folder + "/save", {"model": model, "epochs": epochs}),
)
loading = {"batch_size": 4, "shuffle": True}
brain.fit(epochs, data, data, train_loader_kwargs=loading, valid_loader_kwargs={"batch_size": 16})
if if_main_process():
    torch.save(brain.raw_modules.state_dict(), folder + "/weights.pt")
"""
SLURM = Path(__file__).parents[2] / "examples/slurm.sh"
# Start the tasks as SLURM does, write their pids, and exit with the highest of their codes.
SRUN = """#!/bin/bash
shift 2
pids=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NUM_TASKS=$SLURM_NTASKS "$@" &
    pids+=($!)
done
echo "${pids[@]}" >"$SLURM_FAKE/pids"
code=0
for pid in "${pids[@]}"; do
    wait "$pid"
    ended=$?
    ((ended > code)) && code=$ended
done
exit $code
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >>"$SLURM_FAKE/requeued"; fi
"""


def start(folder, what, *options):
    """Start the script on two ranks with torchrun."""
    script = folder / "train.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*torchrun, "--nproc-per-node", "2", *options, str(script), str(folder), what],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell starts background processes with SIGINT ignored, and they inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        start_new_session=True,
    )


def finish(process, timeout_s=250):
    """Wait until a process ends; return its exit code and its output."""
    try:
        printed, _ = process.communicate(timeout=timeout_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, printed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the weights of a run that is not disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, printed = finish(start(folder, "nothing"))
    assert code == 0, printed
    return torch.load(folder / "weights.pt", weights_only=True)


def has_weights(folder, weights):
    """Return whether the run in a folder ended with these weights, bit for bit."""
    found = torch.load(folder / "weights.pt", weights_only=True)
    return found.keys() == weights.keys() and all(torch.equal(found[k], weights[k]) for k in found)


@pytest.mark.parametrize("kills", ["once", pytest.param("thrice", marks=pytest.mark.long)])
def test_a_killed_run_is_restarted_and_ends_with_the_same_weights(tmp_path, undisturbed, kills):
    """``--max-restarts 3``; three kills hit two steps of an epoch, and the step after a restart."""
    restarts = ("--max-restarts", "3", "--monitor-interval", "0.2")
    process = start(tmp_path, f"kill {kills}", *restarts)
    code, printed = finish(process)
    assert code == 0, printed[-5000:]
    assert has_weights(tmp_path, undisturbed)


@pytest.mark.long
def test_ctrl_c_on_torchrun_saves_and_the_next_start_resumes(tmp_path, undisturbed):
    """The ranks get it twice, from the terminal and from torchrun, and count it once."""
    process = start(tmp_path, "wait")
    wait_for(tmp_path / "here", process)
    os.killpg(process.pid, signal.SIGINT)
    code, printed = finish(process)
    assert code != 0
    assert not (tmp_path / "weights.pt").exists()
    assert printed.count("Press Ctrl-C again to ") == 1
    assert "train.py" not in printed, "a rank ended with a traceback"
    assert len(list((tmp_path / "save").glob("CKPT*"))) == 1
    code, printed = finish(start(tmp_path, "nothing"))
    assert code == 0, printed[-5000:]
    assert has_weights(tmp_path, undisturbed)


def submit(folder, what):
    """Run the batch script under a fake SLURM with two tasks."""
    for name, text in {"train.py": SCRIPT, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environ = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "here", "SLURM_NTASKS": "2"}
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        ["bash", str(SLURM), str(folder / "train.py"), str(folder), what],
        env={**os.environ, **environ, "PATH": path, "SLURM_FAKE": str(folder)}
        | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(file, process):
    """Wait until a run has written a file."""
    deadline = time.monotonic() + 200
    while not file.exists():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_batch_script_requeues_a_stopped_run_until_it_ends(tmp_path, undisturbed):
    """SIGUSR1 stops it, and the second start ends with the same weights."""
    process = submit(tmp_path, "wait")
    wait_for(tmp_path / "here", process)
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    code, printed = finish(process)
    assert code == 75, printed
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    assert "Traceback" not in printed, printed
    code, printed = finish(submit(tmp_path, "nothing"))
    assert code == 0, printed
    assert (tmp_path / "requeued").read_text().count("requeue") == 1
    assert has_weights(tmp_path, undisturbed)


@pytest.mark.long
def test_the_batch_script_does_not_requeue_a_cancelled_run(tmp_path):
    """``scancel`` sends SIGTERM to the shell, too."""
    process = submit(tmp_path, "wait")
    wait_for(tmp_path / "here", process)
    for pid in [process.pid, *map(int, (tmp_path / "pids").read_text().split())]:
        os.kill(pid, signal.SIGTERM)
    code, printed = finish(process)
    assert (code, (tmp_path / "requeued").exists()) == (75, False), printed


def test_shellcheck_accepts_the_batch_script():
    """If shellcheck is installed."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=folders)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, str(SLURM)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
