"""Rank, size and device of this process."""

import pytest
import torch
from torch import distributed

import brain_dist
from brain_dist import World


def test_a_process_started_by_hand_is_rank_0_of_1():
    """Without a launcher's variables there is one process."""
    assert World.from_environment({}) == World(0, 1, 0, 1, launched=False)
    assert (brain_dist.get_rank(), brain_dist.get_local_rank()) == (0, 0)
    assert brain_dist.get_world_size() == 1
    assert brain_dist.if_main_process()
    assert brain_dist.is_local_rank_zero()
    assert not brain_dist.is_distributed_initialized()


def test_torchruns_variables_are_read():
    """Torchrun sets all four numbers."""
    environ = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert World.from_environment(environ) == World(5, 8, 1, 4, launched=True)


def test_torchruns_variables_win_over_slurms():
    """SLURM_PROCID counts the tasks of srun, in which torchrun starts more processes."""
    environ = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}
    environ |= {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}
    world = World.from_environment(environ)
    assert (world.rank, world.world_size, world.local_rank) == (3, 4, 3)


def test_sruns_variables_are_read():
    """Srun is a launcher, too; it writes a repeated number as 2(x3)."""
    environ = {"SLURM_PROCID": "4", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "0"}
    environ["SLURM_NTASKS_PER_NODE"] = "2(x3)"
    assert World.from_environment(environ) == World(4, 6, 0, 2, launched=True)


@pytest.mark.parametrize("tasks", [{}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_the_shell_of_a_slurm_job_is_one_process(tasks):
    """A batch script has SLURM_PROCID=0 and the job's SLURM_NTASKS, and no other rank."""
    environ = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", **tasks}
    assert World.from_environment(environ) == World()


def test_jsruns_variables_are_read():
    """LSF's jsrun has names of its own."""
    environ = {
        "JSM_NAMESPACE_RANK": "1",
        "JSM_NAMESPACE_SIZE": "2",
        "JSM_NAMESPACE_LOCAL_RANK": "1",
    }
    assert World.from_environment(environ) == World(1, 2, 1, 2, launched=True)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "1"}, r"needs WORLD_SIZE as well, got rank 1 .* start with `torchrun"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, r"got RANK='one'; .*unset RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"got rank=2 and world_size=2; start with `torchrun"),
    ],
)
def test_an_inconsistent_environment_is_refused(environ, message):
    """The error names the variable and the command to write."""
    with pytest.raises(ValueError, match=message):
        World.from_environment(environ)


def test_under_torchrun_only_rank_0_is_main_before_the_group_exists(monkeypatch):
    """In SpeechBrain every process is main then, and all make the experiment's folder."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not brain_dist.if_main_process()
    assert not brain_dist.is_local_rank_zero()
    assert (brain_dist.get_rank(), brain_dist.get_world_size()) == (1, 2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert brain_dist.if_main_process()
    assert brain_dist.is_local_rank_zero()


def _rank_and_main(rank):
    return brain_dist.get_rank(), brain_dist.if_main_process(), brain_dist.is_local_rank_zero()


def test_a_group_made_without_rank_has_one_main_process(ranks):
    """In SpeechBrain no process is main then."""
    assert ranks(_rank_and_main, 2) == [(0, True, True), (1, False, False)]


def test_the_rank_in_the_group_wins_over_the_environment(ranks):
    """A group may number its ranks otherwise."""
    environ = {"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert ranks(_rank_and_main, 2, environ=environ) == [(0, True, False), (1, False, False)]


def test_the_device_is_the_cpu_without_an_accelerator(monkeypatch):
    """With MPS it is MPS; neither has an index."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert brain_dist.infer_device() == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert brain_dist.infer_device() == "mps"


def test_under_a_launcher_each_process_has_a_gpu_of_its_own(monkeypatch):
    """The device has the local rank as its index under torchrun, and none in one process."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert brain_dist.infer_device() == "cuda"
    for name, value in {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert brain_dist.infer_device() == "cuda:1"


def _make_two_groups(rank, folder):
    found = []
    for name in ("first", "second"):
        store = distributed.FileStore(f"{folder}/{name}", 2)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
        found.append(brain_dist.gather_objects((name, brain_dist.get_rank())))
        distributed.destroy_process_group()
    return found


def test_a_second_group_has_a_control_group_of_its_own(ranks, tmp_path):
    """The first control group is not used again."""
    expected = [[(name, 0), (name, 1)] for name in ("first", "second")]
    assert ranks(_make_two_groups, 2, str(tmp_path), group=False) == [expected] * 2


def test_after_the_group_is_destroyed_collectives_are_local(tmp_path):
    """As in one process; a new group works, time and again."""
    for name in map(str, range(30)):
        store = distributed.FileStore(str(tmp_path / name), 1)
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        assert brain_dist.gather_objects(name) == [name]
        distributed.destroy_process_group()
        assert not brain_dist.is_distributed_initialized()
        assert brain_dist.gather_objects("alone") == ["alone"]
