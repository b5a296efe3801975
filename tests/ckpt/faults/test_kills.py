"""Kills at any file operation of a save, a recovery or a deletion lose nothing."""

import shutil

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")


@pytest.fixture
def start(workloads, fast_dir):
    """Return a function that copies the directory that a workload starts from."""
    made = {}

    def copy(name):
        source, target = fast_dir / f"base-{name}", fast_dir / "save"
        if name not in made:
            source.mkdir()
            made[name] = workloads.base(source, name)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        return target, made[name]

    return copy


def operations_of(workloads, processes, workload, directory):
    counter = processes.Count()
    with workloads.failpoint(counter):
        workload(directory, lambda number: None)
    return counter.count


@pytest.mark.parametrize(
    "name",
    ["first", "later", "best", "replacing", "asynchronous", "unrenamed", "unrenamed, replacing"],
)
def test_a_kill_at_any_operation_of_a_save_loses_nothing(
    name, workloads, processes, start, times, tally
):
    """Every third operation or, in a long run, each; every second of them with a partial write."""
    workload = workloads.WORKLOADS[name]
    directory, _ = start(name)
    total = operations_of(workloads, processes, workload, directory)
    for number in range(1, total + 1, times(3, 1)):
        directory, before = start(name)
        point = processes.KillAt(number, torn=number % 2 == 0)

        def run(report, directory=directory, point=point):
            with workloads.failpoint(point):
                workload(directory, report)

        child = processes.Child(run)
        ended = child.wait()
        tally["hangs"] += ended == processes.HUNG
        assert ended in (processes.KILLED, processes.FINISHED)
        tally["kills done"] += ended == processes.KILLED
        acknowledged = max([before, *child.reports])
        problem = workloads.problem_after_fault(
            directory, acknowledged, saves_again=number % 4 == 0
        )
        tally["losses"] += problem is not None
        assert problem is None, f"killed at operation {number}"


def test_a_kill_at_any_operation_of_a_recovery_loses_nothing(workloads, processes, start, tally):
    """The recovery restores a replaced checkpoint and removes leftovers."""

    def leftovers():
        directory, before = start("replacing")
        current = next(directory.glob("CKPT*"))
        shutil.copytree(current, directory / ".tmp-CKPT+last.0123.1")
        shutil.copytree(current, directory / ".trash-CKPT+gone.0123")
        current.rename(directory / ".old-CKPT+last.0123")
        return directory, before

    directory, _ = leftovers()
    total = operations_of(
        workloads, processes, lambda path, _: workloads.Run(path).recover(), directory
    )
    for number in range(1, total + 1):
        directory, before = leftovers()

        def run(report, directory=directory, number=number):
            with workloads.failpoint(processes.KillAt(number)):
                workloads.Run(directory).recover()

        ended = processes.Child(run).wait()
        assert ended in (processes.KILLED, processes.FINISHED)
        tally["kills done"] += ended == processes.KILLED
        assert workloads.problem_after_fault(directory, before, saves_again=True) is None
