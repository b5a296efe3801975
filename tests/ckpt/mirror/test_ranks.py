"""A mirror on several ranks: who uploads what, and a world of another size."""

import importlib.util
from pathlib import Path

import pytest
import torch


def helper():
    """Import the programs for ranks."""
    path = Path(__file__).parents[1] / "helpers" / "ranks.py"
    spec = importlib.util.spec_from_file_location("mirror_ranks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sharded_run(rank, world_size, directory, url):
    """Save sharded tensors with a mirror; return the keys that this rank has put."""
    from brain_ckpt import Checkpointer
    from brain_ckpt.mirror.objects import ObjectStore

    put, create = [], ObjectStore.create

    def recording(self, key, data):
        put.append(key)
        return create(self, key, data)

    ObjectStore.create = recording
    model = torch.nn.Linear(6, 8)
    torch.nn.init.constant_(model.weight, 0.5)
    helper().sharded(model, world_size)
    checkpointer = Checkpointer(directory, {"model": model}, mirror=url)
    checkpointer.save_checkpoint(meta={"step": 1})
    checkpointer.close()
    return put


def loading_run(rank, world_size, directory, url):
    """Load from the mirror on another number of ranks; return the whole weight."""
    from brain_ckpt import Checkpointer

    model = torch.nn.Linear(6, 8)
    helper().sharded(model, world_size)
    checkpointer = Checkpointer(directory, {"model": model}, mirror=url)
    found = checkpointer.recover_if_possible()
    assert found.meta["step"] == 1
    return model.weight.full_tensor().unique().tolist()


@pytest.mark.parametrize("nodes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_each_node_uploads_the_shards_that_it_wrote(ranks, server, s3, tmp_path, nodes):
    """One rank publishes when all have arrived; a world of another size loads them."""
    environ = {
        **server.environment(),
        "RANK": "{rank}",
        "LOCAL_RANK": "{rank}" if nodes == 1 else "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": str(2 // nodes),
    }
    put = ranks(sharded_run, 2, 2, str(tmp_path / "save"), s3, environ=environ)
    shards = [[key for key in keys if ".distcp" in key] for keys in put]
    assert len(shards[0]) == (2 if nodes == 1 else 1)
    assert all("__1_" in key for key in shards[1])
    assert len(shards[1]) == nodes - 1
    assert [key for key in put[1] if key.startswith("commits/")] == []
    environ = {**server.environment(), "RANK": "{rank}", "WORLD_SIZE": "3"}
    assert ranks(loading_run, 3, 3, str(tmp_path / "other"), s3, environ=environ) == [[0.5]] * 3
