"""A save in which one rank fails ends on all other ranks, and loses nothing."""

import itertools
import os
import random
import shutil
import signal
from typing import NamedTuple

import pytest
import torch

from brain_ckpt import Checkpointer

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")

ALWAYS = ("snapshot", "begin", "write", "publish", "retention")
AT_ONCE = 6


class Case(NamedTuple):
    """A failure of one rank in one phase of a save."""

    way: str
    phase: str
    target: int
    world: int
    how: str


def all_cases():
    """Return all combinations of ways, numbers of ranks and phases."""
    cases = []
    for world, way in itertools.product((2, 3, 4), ("raise", "kill", "stop")):
        for number, phase in enumerate((*ALWAYS, "shards")):
            # only the first rank can raise in a phase that only it runs
            first_only = way == "raise" and phase in ALWAYS[1:]
            target = 0 if first_only or (number + world) % 2 else world - 1
            how = "sharded" if phase == "shards" else ""
            # retention runs after the save in both cases
            if (number + len(cases)) % 2 and phase != "retention":
                how = f"{how} asynchronous"
            cases.append(Case(way, phase, target, world, how))
    return cases


def launch(processes, directory, main, world, *arguments):
    directory.mkdir(exist_ok=True)
    (directory / "store").unlink(missing_ok=True)
    return [
        processes.Child(lambda report, rank=rank: main(directory, rank, world, *arguments, report))
        for rank in range(world)
    ]


def end(processes, children, target, way):
    """Wait for all children, kill a stopped one and return how each ended."""
    ends = {
        rank: child.wait(120)
        for rank, child in enumerate(children)
        if not (way == "stop" and rank == target)
    }
    if way == "stop":
        os.kill(children[target].pid, signal.SIGKILL)
        ends[target] = children[target].wait()
    return ends


def expected_kinds(way, phase):
    """Return what the other ranks may say.

    A rank that is lost while the ranks agree behind the publication, or behind the deletions, is
    lost for some before they have heard from it, and for others after it.
    """
    if way == "raise":
        return {"saved"} if phase == "retention" else {"CheckpointSaveError"}
    later = {"publish": {"RanksLostError"}, "retention": {"RanksLostError", "saved"}}
    return {"CheckpointSaveError", *later.get(phase, ())}


def check(directory, ends, case, processes, tally):
    way, phase, target, world, _ = case
    tally["ranks lost"] += way != "raise"
    tally["hangs"] += processes.HUNG in ends.values()
    alive = [rank for rank in range(world) if way == "raise" or rank != target]
    assert all(ends[rank] == processes.FINISHED for rank in alive), (case, ends)
    outcomes = {(directory / f"outcome-{rank}").read_text() for rank in alive}
    kinds = {outcome.split(":")[0] for outcome in outcomes}
    if way == "raise" and phase != "retention":
        assert len({outcome.split(" (on rank")[0] for outcome in outcomes}) == 1, outcomes
        assert f"in {phase}" in outcomes.pop()
        assert kinds == {"CheckpointSaveError"}, (case, outcomes)
    else:
        assert kinds <= expected_kinds(way, phase), (case, outcomes)
    seconds = [float((directory / f"seconds-{rank}").read_text()) for rank in alive]
    # a stopped rank is noticed at the timeout, a killed one long before
    assert max(seconds) < 45, (case, seconds)
    model = torch.nn.Linear(4, 8)
    checkpointer = Checkpointer(directory / "save", {"model": model})
    found = checkpointer.recover_if_possible()
    acknowledged = 3 if way == "raise" else 2 if phase == "retention" else 1
    lost = found is None or found.meta["number"] < acknowledged
    tally["losses"] += lost
    assert not lost, case
    assert model.weight.unique().tolist() == [min(found.meta["number"], 2.0)]
    checkpointer.save_checkpoint()
    left = [path.name for path in (directory / "save").iterdir() if path.name.startswith(".")]
    assert left == [".brain.lock"]


def test_a_failing_rank_hangs_no_other_and_loses_nothing(
    processes, rank_programs, fast_dir, times, tally, progress
):
    """One of 2, 3 or 4 ranks raises, is killed or stops in each phase."""
    cases = all_cases()[:: times(12, 1)]
    chance = random.Random(progress.seed)
    losing = [case for case in cases if case.way != "raise"]
    cases += chance.choices(losing, k=max(0, times(0, 300) - len(losing)))
    for start in range(0, len(cases), AT_ONCE):
        groups = []
        for number, case in enumerate(cases[start : start + AT_ONCE]):
            directory = fast_dir / f"group-{start + number}"
            children = launch(processes, directory, rank_programs.rank_main, case.world, case)
            groups.append((directory, case, children))
        for directory, case, children in groups:
            ends = end(processes, children, case.target, case.way)
            check(directory, ends, case, processes, tally)
            shutil.rmtree(directory)
        progress("groups of ranks", start + len(groups), len(cases))


def test_each_rank_restores_its_own_state(processes, rank_programs, fast_dir):
    """A third rank without a saved state keeps its own."""
    for world, number, expected in ((2, 1, [255, 255]), (3, 0, [100, 101, 102])):
        children = launch(processes, fast_dir, rank_programs.elastic_main, world, number)
        assert [child.wait(90) for child in children] == [processes.FINISHED] * world
        assert [child.reports[0] for child in children] == expected


def test_all_ranks_load_the_same_save_beside_a_writer(processes, rank_programs, fast_dir):
    """Meta and states are those of one save on both ranks."""
    model = torch.nn.Linear(2, 2)

    def save(checkpointer, number):
        torch.nn.init.constant_(model.weight, float(number))
        checkpointer.save_and_keep_only({"number": number}, name="best")

    def write(report):
        checkpointer = Checkpointer(fast_dir / "save", {"model": model})
        number = 1
        while True:
            number += 1
            save(checkpointer, number)

    first = Checkpointer(fast_dir / "save", {"model": model})
    save(first, 1)
    first.close()
    writer = processes.Child(write)
    readers = launch(processes, fast_dir, rank_programs.reading_main, 2, 60)
    try:
        assert [reader.wait(600) for reader in readers] == [processes.FINISHED] * 2
    finally:
        writer.kill()
        writer.wait()
    assert readers[0].reports == readers[1].reports
    assert readers[0].reports[0] > 1


def test_ranks_finish_reading_a_checkpoint_that_is_deleted(processes, rank_programs, fast_dir):
    """The first rank holds its files open, and the others read them through its handles."""
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, 7.0)
    first = Checkpointer(fast_dir / "save", {"model": model})
    first.save_checkpoint({"number": 7})
    first.close()
    readers = launch(processes, fast_dir, rank_programs.deleting_main, 3)
    assert [reader.wait(120) for reader in readers] == [processes.FINISHED] * 3
    assert [reader.reports for reader in readers] == [[7, 7]] * 3


def commits_of(directory):
    from brain_ckpt.storage.store import Store

    return [set(Store(directory / f"node-{node}", "reader").published_commits()) for node in (0, 1)]


def test_nodes_without_a_shared_file_system_each_keep_a_complete_copy(
    processes, rank_programs, fast_dir
):
    """Both nodes have the same commit, and the older one is deleted on both."""
    for number in (1, 2):
        children = launch(processes, fast_dir, rank_programs.nodes_main, 4, number, None)
        assert [child.wait(90) for child in children] == [processes.FINISHED] * 4
        assert [child.reports[0] for child in children] == [number - 1] * 4
    first, second = commits_of(fast_dir)
    assert first == second
    assert len(first) == 1
    for node in (0, 1):
        copy = next((fast_dir / f"node-{node}").glob("CKPT*"))
        assert sorted(path.name for path in (copy / "ranks").iterdir()) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("fatal", "recovered"), [("write", 1), ("rename", 2)])
def test_nodes_agree_after_one_dies_during_a_save(
    fatal, recovered, processes, rank_programs, fast_dir
):
    """A commit prepared everywhere and published somewhere is rolled forward."""
    children = launch(processes, fast_dir, rank_programs.nodes_main, 4, 1, None)
    assert [child.wait(90) for child in children] == [processes.FINISHED] * 4
    children = launch(processes, fast_dir, rank_programs.nodes_main, 4, 2, fatal)
    ends = [child.wait(90) for child in children]
    assert ends[2] == processes.KILLED
    assert [ends[rank] for rank in (0, 1, 3)] == [processes.FINISHED] * 3
    outcomes = {(fast_dir / f"outcome-{rank}").read_text() for rank in (0, 1, 3)}
    assert outcomes == {"CheckpointSaveError"}
    children = launch(processes, fast_dir, rank_programs.nodes_main, 4, 3, None)
    assert [child.wait(90) for child in children] == [processes.FINISHED] * 4
    assert [child.reports[0] for child in children] == [recovered] * 4
    first, second = commits_of(fast_dir)
    assert first == second
