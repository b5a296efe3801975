"""A training that is killed repeatedly ends like an undisturbed one."""

import os
import random
import shutil
import signal
import time

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")


@pytest.fixture
def undisturbed(training, fast_dir):
    return training.train(fast_dir / "undisturbed")


def same(result, expected):
    return result[1] == expected[1] and all(map(torch.equal, result[0], expected[0]))


class Plan:
    """Kills the process the n-th time that it reaches a place."""

    def __init__(self, place, number):
        self.place, self.number = place, number

    def __call__(self, place):
        if place == self.place:
            self.number -= 1
            if self.number == 0:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)


@pytest.mark.parametrize(
    "kills",
    [
        [("step", 2), ("step", 1)],
        [("step", 4), ("saved", 1)],
        [("validation", 1), ("validation", 1)],
        [("epoch_end", 1), ("epoch_end", 2)],
        [("step", 5), ("recovery", 1), ("recovered", 1)],
    ],
    ids=str,
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_kills_at_chosen_places_change_nothing(
    kills, asynchronous, training, undisturbed, processes, fast_dir, tally
):
    """The kills are in an epoch, in validation, between epochs and in recovery."""
    save = fast_dir / "save"
    for place, number in kills:
        plan = Plan(place, number)
        child = processes.Child(
            lambda report, plan=plan: training.train(save, plan, asynchronous=asynchronous)
        )
        assert child.wait() == processes.KILLED
        tally["kills done"] += 1
    assert same(training.train(save), undisturbed)


def test_random_kills_change_nothing(
    training, undisturbed, processes, fast_dir, times, tally, workloads, progress
):
    """Half of the kills are at random times, half at a file operation of a save."""
    chance = random.Random(progress.seed)
    started = time.monotonic()
    training.train(fast_dir / "timed")
    usual_s = time.monotonic() - started
    kills, runs, total = 0, 0, times(15, 1000)
    while kills < total:
        save = fast_dir / f"save-{runs}"
        runs += 1
        asynchronous = runs % 2 == 0
        for _ in range(5):
            aimed, place = kills % 2 == 0, chance.randint(1, 150)

            def run(report, aimed=aimed, place=place):
                if aimed:
                    with workloads.failpoint(processes.KillAt(place, torn=place % 3 == 0)):
                        training.train(save, asynchronous=asynchronous)  # noqa: B023 - runs now
                else:
                    training.train(save, asynchronous=asynchronous)  # noqa: B023 - runs now

            child = processes.Child(run)
            if not aimed:
                time.sleep(chance.random() * usual_s)
                child.kill()
            ended = child.wait()
            tally["hangs"] += ended == processes.HUNG
            assert ended in (processes.KILLED, processes.FINISHED), f"run {runs} {ended}"
            kills += ended == processes.KILLED
            tally["kills in training"] += ended == processes.KILLED
            tally["kills done"] += ended == processes.KILLED
        result = training.train(save)
        tally["losses"] += not same(result, undisturbed)
        assert same(result, undisturbed), f"run {runs} of seed {progress.seed!r}"
        assert not [path for path in save.iterdir() if path.name.startswith((".tmp", ".old"))]
        shutil.rmtree(save)
        progress("kills in training", min(kills, total), total)
