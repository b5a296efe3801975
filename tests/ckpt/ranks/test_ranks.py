"""Several ranks: a save in which one fails ends on all others, with the same error, and soon."""

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

ALWAYS = ("take", "begin", "write", "publish", "retention")
AT_ONCE = 6


class Case(NamedTuple):
    """One rank of some, at one place of a save, and how that is done."""

    way: str
    phase: str
    target: int
    world: int
    how: str


def all_cases():
    """Each way on each number of ranks in each phase; the first or the last rank in turn."""
    cases = []
    for world, way in itertools.product((2, 3, 4), ("raise", "kill", "stop")):
        for number, phase in enumerate((*ALWAYS, "shards")):
            # only the first rank can raise where only the first one works
            lonely = way == "raise" and phase in ALWAYS[1:]
            target = 0 if lonely or (number + world) % 2 else world - 1
            how = "sharded" if phase == "shards" else ""
            # the deletion comes after the save either way
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
    """Wait for all but a stopped child, which is killed then; return how each ended."""
    ends = {
        rank: child.wait(120)
        for rank, child in enumerate(children)
        if not (way == "stop" and rank == target)
    }
    if way == "stop":
        os.kill(children[target].pid, signal.SIGKILL)
        ends[target] = children[target].wait()
    return ends


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
    elif phase == "retention":
        # the save was acknowledged before: a failed deletion is logged, a lost rank is raised
        assert kinds == {"saved" if way == "raise" else "RanksLostError"}, (case, outcomes)
    else:
        assert kinds == {"CheckpointSaveError"}, (case, outcomes)
    seconds = [float((directory / f"seconds-{rank}").read_text()) for rank in alive]
    # by the timeout where a rank has stopped, and long before it where one is gone
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


def test_a_rank_that_fails_in_a_save_hangs_and_loses_nothing(
    processes, rank_programs, fast_dir, times, tally, progress
):
    """It raises, is killed or stops, in each phase, of 2, 3 and 4 ranks; six groups at a time."""
    cases = all_cases()[:: times(7, 1)]
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


def test_each_rank_gets_its_own_part_back_and_a_new_rank_keeps_its_own(
    processes, rank_programs, fast_dir
):
    """Saved by two ranks, loaded by three."""
    for world, number, expected in ((2, 1, [255, 255]), (3, 0, [100, 101, 102])):
        children = launch(processes, fast_dir, rank_programs.elastic_main, world, number)
        assert [child.wait(90) for child in children] == [processes.FINISHED] * world
        assert [child.reports[0] for child in children] == expected


def commits_of(directory):
    from brain_ckpt.storage.store import Store

    return [set(Store(directory / f"node-{node}", "reader").published_commits()) for node in (0, 1)]


def test_nodes_without_a_shared_file_system_each_keep_a_whole_copy(
    processes, rank_programs, fast_dir
):
    """The same commit on both, and the older one gone from both."""
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
def test_a_node_that_dies_in_a_save_leaves_the_nodes_in_agreement(
    fatal, recovered, processes, rank_programs, fast_dir
):
    """What was prepared everywhere and published somewhere is rolled forward; else nothing was."""
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
