"""The directory of an experiment on several ranks, and in a script."""

import os
import subprocess
import sys
import textwrap

import pytest

ALONE = """
    import logging, sys
    from brain_data import create_experiment_directory
    create_experiment_directory(sys.argv[1])
    logging.getLogger("user").info("on the console")
    raise RuntimeError("the end")
"""

# Two forks of one process, which has imported torch once.
PAIR = """
    import logging, os, sys
    import torch
    import brain_dist
    from brain_data import create_experiment_directory
    torch.set_num_threads(1)
    folder, store = sys.argv[1:]
    child = os.fork()
    rank = 1 if child == 0 else 0
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(store, 2), rank=rank, world_size=2
    )
    try:
        create_experiment_directory(os.path.join(__file__, "below a file"))
    except OSError as error:
        print(f"rank {rank} got {type(error).__name__}: {error}", flush=True)
    made = create_experiment_directory(folder, save_env_desc=False)
    assert os.path.exists(os.path.join(folder, "log.txt"))
    logging.getLogger("user").info("hello of rank %d", rank)
    brain_dist.ddp_barrier()
    torch.distributed.destroy_process_group()
    if rank == 1:
        raise RuntimeError("rank 1 fell over")
    os.waitpid(child, 0)
"""


def run(text, tmp_path, *args):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(text))
    environ = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")
    }
    return subprocess.run(
        [sys.executable, str(script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_script_that_fails_has_its_traceback_in_the_log(tmp_path):
    """The console shows it once, as without a log."""
    done = run(ALONE, tmp_path, tmp_path / "x")
    log = (tmp_path / "x" / "log.txt").read_text()
    assert done.returncode == 1
    assert "user - on the console" in done.stdout
    assert "user - INFO - on the console" in log
    for text in (done.stderr, log):
        assert text.count("Traceback") == text.count("RuntimeError: the end") == 1
    assert (tmp_path / "x" / "train.py").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_rank_0_writes_and_every_rank_raises_its_error(tmp_path):
    """Each rank logs its own exception."""
    done = run(PAIR, tmp_path, tmp_path / "x", tmp_path / "store")
    for rank in (0, 1):
        assert f"rank {rank} got NotADirectoryError: An experiment needs" in done.stdout, (
            done.stderr
        )
    log = (tmp_path / "x" / "log.txt").read_text()
    assert log.count("Beginning experiment!") == 1
    assert "hello of rank 0" in log
    assert "rank 1" not in log
    own = (tmp_path / "x" / "log-rank1.txt").read_text()
    assert "RuntimeError: rank 1 fell over" in own
    assert "hello" not in own
