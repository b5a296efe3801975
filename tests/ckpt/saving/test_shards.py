"""Sharded states can be read on any number of ranks."""

import io
import pickle

import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, TensorStorageMetadata

from brain_ckpt import CheckpointDamagedError, Checkpointer, UnsafeCheckpointError
from brain_ckpt.loading.shards import _MetadataUnpickler

pytestmark = pytest.mark.filterwarnings("ignore")


def run(processes, directory, main, world, *arguments):
    (directory / "store").unlink(missing_ok=True)
    children = [
        processes.Child(lambda report, rank=rank: main(directory, rank, world, *arguments, report))
        for rank in range(world)
    ]
    assert [child.wait(60) for child in children] == [processes.FINISHED] * world


@pytest.mark.parametrize("asynchronous", [False, True])
def test_shards_of_four_ranks_are_loaded_by_one_two_and_three(
    asynchronous, processes, rank_programs, fast_dir
):
    """The tensors of the model and its optimizer are those at the time of the save.

    They can also be loaded without a process group.
    """
    run(processes, fast_dir, rank_programs.sharded_save_main, 4, asynchronous)
    for world in (1, 2, 3):
        run(processes, fast_dir, rank_programs.sharded_load_main, world)
    model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Linear(10, 5))
    optimizer = torch.optim.AdamW(model.parameters())
    checkpointer = Checkpointer(fast_dir / "save", {"model": model, "optimizer": optimizer})
    found = checkpointer.recover_if_possible()
    expected = torch.load(fast_dir / "expected.pt")
    assert all(
        torch.equal(model.state_dict()[key], expected["full"][key]) for key in expected["full"]
    )
    moments = [optimizer.state[parameter]["exp_avg"] for parameter in model.parameters()]
    assert all(map(torch.equal, moments, expected["moments"]))

    shard = next((found.path / "shards").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match=r"shards/.*distcp"):
        checkpointer.load_checkpoint(found)


def test_torch_reads_the_shards(processes, rank_programs, fast_dir):
    """The shards are a distributed checkpoint of torch."""
    from torch.distributed.checkpoint import FileSystemReader, load

    run(processes, fast_dir, rank_programs.sharded_save_main, 2, None)
    expected = torch.load(fast_dir / "expected.pt")
    shards = next((fast_dir / "save").glob("CKPT*/shards"))
    state = {f"model/{key}": torch.zeros_like(value) for key, value in expected["full"].items()}
    load(state, storage_reader=FileSystemReader(shards))
    assert all(torch.equal(state[f"model/{key}"], value) for key, value in expected["full"].items())


class ByGetattr:
    """Pickled as ``getattr(kind, name)``, as Python 3.11.2 pickles enum members."""

    def __init__(self, kind, name):
        self.arguments = kind, name

    def __reduce__(self):
        return getattr, self.arguments


def test_the_metadata_may_hold_enum_members_in_any_pickle_format():
    """Early versions of Python 3.11 pickle them with `getattr`."""
    member = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    for value in (member, ByGetattr(type(member), member.name)):
        assert _MetadataUnpickler(io.BytesIO(pickle.dumps(value))).load() is member


@pytest.mark.parametrize(
    ("kind", "name"), [(_MEM_FORMAT_ENCODING, "__init__"), (TensorStorageMetadata, "__init__")]
)
def test_the_metadata_reaches_no_other_attribute(kind, name):
    """The methods of a class are code."""
    content = io.BytesIO(pickle.dumps(ByGetattr(kind, name)))
    with pytest.raises(UnsafeCheckpointError, match="the attribute '__init__'"):
        _MetadataUnpickler(content).load()


def test_the_metadata_of_shards_runs_no_code(tmp_path):
    """torch unpickles any object from it."""
    file = tmp_path / "metadata"
    file.write_bytes(pickle.dumps(eval))
    with file.open("rb") as content, pytest.raises(UnsafeCheckpointError, match=r"builtins\.eval"):
        _MetadataUnpickler(content).load()
