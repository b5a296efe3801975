"""A script under torchrun."""

import os
import subprocess
import sys

SCRIPT = """
import torch
import brain_dist

assert brain_dist.if_main_process() == (brain_dist.get_rank() == 0)
made = brain_dist.if_main_process()
brain_dist.ddp_init_group({"distributed_backend": "gloo", "device": "cpu"})
assert made == brain_dist.if_main_process()
modules = {"bn": torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))}
torch.manual_seed(brain_dist.get_rank())
brain_dist.wrap_modules(modules, device="cpu")
modules["bn"](torch.rand(4, 3)).square().sum().backward()
total = brain_dist.gather_objects(float(modules["bn"].module[0].weight.grad.abs().sum()))
if brain_dist.if_main_process():
    print("sums", len(set(total)), "ranks", brain_dist.get_world_size())
torch.distributed.destroy_process_group()
"""


def test_a_script_trains_under_torchrun(tmp_path):
    """On two ranks with BatchNorm on gloo, the gradients are the same on both."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(script)],
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "sums 1 ranks 2" in done.stdout
