"""Pretrained parameters on two ranks: one collects, both load, and both get an error."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from brain_ckpt import Pretrainer
from brain_dist import run_on_main


def main(directory, rank, way, report):
    """Collect and load as one of two ranks; report 1 for a loaded model and 2 for an error."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=30),
    )
    model = torch.nn.Linear(1, 1)
    pretrainer = Pretrainer(directory / "in", {"model": model})
    fetch = pretrainer._fetch

    def fetch_noted(*arguments):
        (directory / f"fetched-{rank}").touch()
        return fetch(*arguments)

    pretrainer._fetch = fetch_noted
    source = directory / ("nowhere" if way == "missing" else "source")
    try:
        if way == "run_on_main":
            run_on_main(pretrainer.collect_files, kwargs={"default_source": source})
        else:
            pretrainer.collect_files(source)
        pretrainer.load_collected()
    except FileNotFoundError as error:
        report(2 if "nowhere/model.ckpt" in str(error) else 3)
    else:
        report(int(model.weight.item()))
    distributed.destroy_process_group()


@pytest.mark.parametrize(("way", "expected"), [("all", 1), ("run_on_main", 1), ("missing", 2)])
def test_the_first_rank_collects_and_every_rank_loads(way, expected, processes, tmp_path):
    """An error is raised on both ranks."""
    source = Path(tmp_path) / "source"
    source.mkdir()
    torch.save({"weight": torch.ones(1, 1), "bias": torch.ones(1)}, source / "model.ckpt")
    children = [
        processes.Child(lambda report, rank=rank: main(tmp_path, rank, way, report))
        for rank in range(2)
    ]
    assert [child.wait(60) for child in children] == [processes.FINISHED] * 2
    assert [child.reports for child in children] == [[expected]] * 2
    assert [path.name for path in tmp_path.glob("fetched-*")] == ["fetched-0"]
