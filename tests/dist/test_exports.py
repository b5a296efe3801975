"""The public names of the package."""

import subprocess
import sys

import brain_dist

SPEECHBRAIN = [
    "get_rank",
    "get_local_rank",
    "get_world_size",
    "is_distributed_initialized",
    "if_main_process",
    "is_local_rank_zero",
    "infer_device",
    "ddp_init_group",
    "ddp_barrier",
    "ddp_broadcast",
    "ddp_all_reduce",
    "main_process_only",
    "once_per_node",
    "run_on_main",
    "run_once_per_node",
    "no_sync",
    "AMPConfig",
    "TorchAutocast",
    "fwd_default_precision",
]


def test_every_public_name_is_listed_in_order_and_documented():
    """__all__ is sorted and complete, SpeechBrain's names are among them, each has a docstring."""
    names = brain_dist.__all__
    assert sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n)) == names
    assert set(SPEECHBRAIN) <= set(names)
    assert all(getattr(brain_dist, name).__doc__ for name in names)


def test_importing_changes_nothing_and_loads_little():
    """No sibling, no optional package, no FSDP, no flag of torch's, no signal handler."""
    code = """
import signal, sys, time, torch, torch.distributed
handlers = [signal.getsignal(s) for s in signal.valid_signals()]
before, threads = set(sys.modules), torch.get_num_threads()
started = time.process_time()
import brain_dist
took = time.process_time() - started
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert new == {"brain_dist"}, new
assert "torch.distributed.fsdp" not in sys.modules
assert handlers == [signal.getsignal(s) for s in signal.valid_signals()]
assert threads == torch.get_num_threads() and not torch.distributed.is_initialized()
print(took)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.1
