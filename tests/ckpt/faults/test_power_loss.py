"""After a power loss the last acknowledged checkpoint exists."""

import random
import shutil

import pytest

from brain_ckpt.storage import filesystem

# A save has about forty operations, and the power loss can come after any of them.
PER_WORKLOAD = {
    "first": 300, "later": 700, "best": 400, "replacing": 500, "asynchronous": 300,
    "unrenamed": 400, "unrenamed, replacing": 400,
}  # fmt: skip


def losses(workloads, power, fast_dir, start, workload, states, *, seed, renames=True, told=None):
    """Try states that a power loss can leave; return (tried, distinct, problems)."""
    directory = fast_dir / "recorded"
    directory.mkdir()
    before = workloads.base(directory, start)
    confirmed = power.read_tree(directory)
    recorder = power.Recorder(directory)
    with workloads.failpoint(recorder):
        workload(directory, recorder.acknowledge, saves=2)
    operations = recorder.operations
    assert sum(operation == "acknowledge" for operation, _, _ in operations) > 0
    chance = random.Random(seed)
    shutil.rmtree(directory)
    directory.mkdir()
    disk = power.Disk(directory, renames=renames)
    disk.root, disk.acknowledged = confirmed, before
    seen, found, tried = set(), [], 0
    places = len(operations) + 1
    for place in range(places):
        # the power loss comes after so many operations, equally often at each place
        disk.run(operations[place - 1 : place] if place else [])
        for _ in range(states // places + (place < states % places)):
            tried += 1
            if told is not None and (tried % 100 == 0 or tried == states):
                told("power-loss states", tried, states)
            tree = disk.after_power_loss(chance)
            key = (power.fingerprint(tree), disk.acknowledged)
            if key in seen:
                continue
            seen.add(key)
            shutil.rmtree(directory)
            power.write_tree(tree, directory)
            problem = workloads.problem_after_fault(
                directory, disk.acknowledged, saves_again=tried % 10 == 0, atomic_rename=renames
            )
            if problem is not None:
                found.append(f"after operation {place} {operations[:place][-1:]}: {problem}")
    return tried, len(seen), found


@pytest.mark.parametrize("name", PER_WORKLOAD)
def test_no_power_loss_takes_an_acknowledged_checkpoint(
    name, workloads, power, fast_dir, times, tally, progress
):
    """Data that was not flushed is dropped, zeroed or truncated, and renames are reordered."""
    states = times(PER_WORKLOAD[name] // 2, -(-PER_WORKLOAD[name] * 100 // 3))
    renames = "unrenamed" not in name
    tried, distinct, found = losses(
        workloads, power, fast_dir, name, workloads.WORKLOADS[name], states,
        seed=progress.seed, renames=renames, told=progress,
    )  # fmt: skip
    tally["states tried"] += tried
    tally["distinct states"] += distinct
    tally["losses"] += len(found)
    assert distinct > min(states // 10, 100)  # small losses repeat
    assert found == []


@pytest.mark.parametrize("name", ["later", "replacing"])
def test_a_disk_that_renames_file_by_file_needs_the_option(name, workloads, power, fast_dir):
    """Without the option checkpoints are lost, so the tests above can fail."""
    _, _, found = losses(
        workloads, power, fast_dir, name, workloads.WORKLOADS[name], 200, seed=name, renames=False
    )
    assert len(found) > 5


def no_fsync_of_files(monkeypatch, workloads):
    monkeypatch.setattr(filesystem, "fsync", lambda descriptor, path: None)
    return workloads.later_saves


def no_fsync_of_the_temporary_directory(monkeypatch, workloads):
    real = filesystem.fsync_directory
    monkeypatch.setattr(
        filesystem, "fsync_directory", lambda path: None if ".tmp-" in str(path) else real(path)
    )
    return workloads.later_saves


def no_fsync_of_the_save_directory(monkeypatch, workloads):
    real = filesystem.fsync_directory
    monkeypatch.setattr(
        filesystem, "fsync_directory", lambda path: real(path) if ".tmp-" in str(path) else None
    )
    return workloads.later_saves


def delete_before_save(monkeypatch, workloads):
    return workloads.deleting_first


@pytest.mark.parametrize(
    "mutant",
    [
        no_fsync_of_files,
        pytest.param(no_fsync_of_the_temporary_directory, marks=pytest.mark.long),
        pytest.param(no_fsync_of_the_save_directory, marks=pytest.mark.long),
        pytest.param(delete_before_save, marks=pytest.mark.long),
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_a_protocol_without_one_of_its_steps_loses_checkpoints(
    mutant, workloads, power, fast_dir, monkeypatch, capsys
):
    """Each mutant of the protocol loses checkpoints, so the test above can fail."""
    workload = mutant(monkeypatch, workloads)
    tried, distinct, found = losses(
        workloads, power, fast_dir, "later", workload, 300, seed="mutant"
    )
    with capsys.disabled():
        print(  # noqa: T201 - the figure is what the test shows
            f"\n  {mutant.__name__}: {len(found)} of {distinct} states lost ({tried} tried)"
        )
    assert len(found) > 5
