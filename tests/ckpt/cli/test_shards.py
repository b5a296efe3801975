"""The command assembles sharded states in one process without a process group."""

import pytest
import torch

from brain_ckpt import CheckpointDamagedError, Checkpointer, average_checkpoints
from brain_ckpt.cli.main import main

# torch 2.6 warns about the random state of sharded tensors on the CPU.
pytestmark = pytest.mark.filterwarnings("ignore:DTensor random operators")


@pytest.fixture
def save(processes, rank_programs, fast_dir):
    """Save a model of two ranks, each with half of every tensor; return the directory."""
    children = [
        processes.Child(
            lambda report, rank=rank: rank_programs.sharded_save_main(
                fast_dir, rank, 2, None, report
            )
        )
        for rank in range(2)
    ]
    assert [child.wait() for child in children] == [processes.FINISHED] * 2
    return fast_dir / "save"


def test_shards_are_shown_compared_and_averaged_as_whole_tensors(save, capsys):
    """The tensors have the shapes of the whole model."""
    (checkpoint,) = save.glob("CKPT+*")
    assert main(["ls", str(save)]) == main(["verify", str(save)]) == 0
    capsys.readouterr()
    assert main(["show", str(checkpoint), "model"]) == 0
    assert "10x6" in capsys.readouterr().out
    assert main(["diff", str(checkpoint), str(checkpoint)]) == 0
    assert main(["average", str(checkpoint), "-o", str(save.parent / "average.pt")]) == 0
    expected = torch.load(save.parent / "expected.pt", weights_only=True)["full"]
    average = torch.load(save.parent / "average.pt", weights_only=True)
    assert average.keys() == expected.keys()
    assert all(torch.equal(average[key], expected[key]) for key in expected)


def test_a_damaged_shard_is_not_averaged(save):
    """The parts of the model are in files of their own."""
    shard = next(save.glob("CKPT+*/shards/*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match="shards/"):
        average_checkpoints(Checkpointer(save).list_checkpoints(), "model")
