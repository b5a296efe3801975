"""Making the process group."""

import pytest
import torch
from torch import distributed

import brain_dist


@pytest.fixture
def launched(monkeypatch):
    """Set the variables of a rank that torchrun started."""

    def launch(rank=0, world_size=2, **more):
        names = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, **more}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))

    return launch


def test_one_process_makes_no_group():
    """It needs none."""
    brain_dist.ddp_init_group({"distributed_backend": "gloo"})
    brain_dist.ddp_init_group()
    assert not distributed.is_initialized()


def test_a_group_that_exists_is_kept(group_of_one, launched):
    """It does not matter who made it."""
    launched(1, 2)
    brain_dist.ddp_init_group({"distributed_backend": "nonsense"})
    assert distributed.get_world_size() == 1


def test_a_backend_that_does_not_exist_is_refused(launched):
    """The error lists the known ones."""
    launched()
    with pytest.raises(ValueError, match=r"nccl, gloo, mpi, got 'goo'; write .*=gloo"):
        brain_dist.ddp_init_group({"distributed_backend": "goo"})


def test_a_backend_that_is_not_built_is_refused(launched):
    """MPI is in no wheel of torch."""
    launched()
    with pytest.raises(ValueError, match=r"MPI is not supported .* got distributed_backend='mpi'"):
        brain_dist.ddp_init_group({"distributed_backend": "mpi"})


def test_more_ranks_than_gpus_are_refused(launched, monkeypatch):
    """The error says which rank, how many GPUs, and the line to write."""
    launched(2, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "is_backend_available", lambda _: True)
    message = (
        r"Not enough GPUs .* rank 2 as number 2 .* 2 GPU\(s\); write torchrun --nproc-per-node=2"
    )
    with pytest.raises(ValueError, match=message):
        brain_dist.ddp_init_group({"distributed_backend": "nccl", "device": "cuda"})


def test_rank_without_world_size_is_refused(launched, monkeypatch):
    """The line that sets both is in the error."""
    launched()
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ValueError, match="needs WORLD_SIZE as well"):
        brain_dist.ddp_init_group({"distributed_backend": "gloo"})


def test_a_rank_needs_an_address(launched):
    """RANK and WORLD_SIZE set by hand are not enough."""
    launched()
    with pytest.raises(ValueError, match=r"no MASTER_ADDR; start with `torchrun"):
        brain_dist.ddp_init_group({"distributed_backend": "gloo"})


def _init(rank, options):
    if options.pop("absent", None) == rank:
        return None
    try:
        backend = options.pop("backend", "gloo")
        brain_dist.ddp_init_group({"distributed_backend": backend, "device": "cpu"}, **options)
    except brain_dist.RanksLostError as error:
        return str(error)
    return brain_dist.gather_objects(brain_dist.get_rank())


def test_the_ranks_of_torchrun_form_a_group(ranks, free_port):
    """With torchrun's variables, on gloo."""
    environ = {"RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "{rank}"}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    assert ranks(_init, 2, {"timeout_s": 20.0}, group=False, environ=environ) == [[0, 1]] * 2


def test_nccl_becomes_gloo_on_the_cpu(ranks, free_port):
    """nccl is SpeechBrain's default, and the same command has to work without a GPU."""
    environ = {"RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "{rank}"}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    options = {"timeout_s": 20.0, "backend": "nccl"}
    assert ranks(_init, 2, options, group=False, environ=environ) == [[0, 1]] * 2


def test_the_ranks_of_srun_form_a_group(ranks, free_port):
    """SLURM's variables suffice; the port is derived from the job's number."""
    environ = {"SLURM_PROCID": "{rank}", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "{rank}"}
    environ |= {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_JOB_ID": str(free_port() - 20000)}
    assert ranks(_init, 2, {"timeout_s": 20.0}, group=False, environ=environ) == [[0, 1]] * 2


def test_a_rank_that_does_not_arrive_is_an_error_on_the_others(ranks, free_port):
    """Within the timeout."""
    environ = {"RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "{rank}"}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    options = {"timeout_s": 2.0, "absent": 1}
    results = ranks(_init, 2, options, group=False, environ=environ)
    assert "all 2 ranks have to arrive within 2 s, got on rank 0" in results[0]


def test_under_an_agents_store_the_missing_rank_is_named(ranks, free_port):
    """Torchrun keeps the store, so the ranks that arrived can see which one did not."""
    port = free_port()
    agent = distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    environ = {"RANK": "{rank}", "WORLD_SIZE": "3", "LOCAL_RANK": "{rank}"}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    options = {"timeout_s": 2.0, "absent": 1}
    results = ranks(_init, 3, options, group=False, environ=environ)
    assert "got on rank 0: rank(s) 1 did not" in results[0]
    assert "got on rank 2: rank(s) 1 did not" in results[2]
    del agent
