"""Runs that are killed and lose their disk, stores that die, and two runs of one mirror."""

import importlib.util
import itertools
import os
import random
import shutil
import signal
import threading
import time
import uuid
from pathlib import Path

import pytest
import torch

from brain_ckpt.errors import CheckpointLockedError

OPERATIONS = ("create", "replace", "read", "list", "delete")


def arm(kill_at, after):
    """Kill this process at an operation of the store, before it or once it is done."""
    from brain_ckpt.mirror.objects import ObjectStore

    counter, lock = itertools.count(1), threading.Lock()

    def armed(operation):
        def call(self, *args):
            with lock:
                number = next(counter)
            if number == kill_at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return operation(self, *args)
            finally:
                if number == kill_at and after:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in OPERATIONS:
        setattr(ObjectStore, name, armed(getattr(ObjectStore, name)))


def kill_later(seconds):
    """Kill this process after a time."""
    threading.Thread(
        target=lambda: (time.sleep(seconds), os.kill(os.getpid(), signal.SIGKILL)), daemon=True
    ).start()


def mirrored_training(rank, directory, url, report, how):
    """Train with a mirror, killed as asked on the first rank; return what `train` returns."""
    from brain_ckpt import Checkpointer

    path = Path(__file__).parents[1] / "helpers" / "training.py"
    spec = importlib.util.spec_from_file_location("mirrored_training", path)
    training = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(training)
    torch.set_num_threads(1)
    kind, value, waits = how
    if rank == 0 and kind in ("before", "after"):
        arm(value, kind == "after")
    if rank == 0 and kind == "time":
        kill_later(value)

    made = []

    def mark(place):
        uploader = made and made[0]._copies._uploader
        if waits and uploader and place in ("saved", "validation"):
            uploader.drain(30)

    class Reporting(Checkpointer):
        def recover_if_possible(self, *args, **kwargs):
            found = super().recover_if_possible(*args, **kwargs)
            made.append(self)
            if rank == 0:
                Path(report).write_text("nothing" if found is None else found.path.name)
            return found

    training.Checkpointer = Reporting
    weights, validated = training.train(directory, mark, mirror=url, mirror_grace_seconds=60)
    return [weight.tolist() for weight in weights], validated


def newest_in(url):
    """Return the name of the newest checkpoint in a mirror."""
    from brain_ckpt.mirror.listing import MirrorLister
    from brain_ckpt.mirror.objects import ObjectStore

    listed = MirrorLister(ObjectStore(url)).list().checkpoints(Path())
    return listed[-1].path.name if listed else "nothing"


def draw(generator):
    """Draw how to kill a run: at an operation of the store, or at a time; with or without lag."""
    kind, waits = generator.choice(["before", "after", "time"]), generator.random() < 0.7
    if kind == "time":
        return kind, generator.uniform(0.05, 1.0), waits
    return kind, generator.randint(1, 100 if waits else 25), waits


def kill_and_resume(ranks, world_size, tmp_path, s3, generator, kills_left, environ):
    """Run to the end, with a new directory after each kill; return the result and the kills."""
    url, kills = f"{s3}-{uuid.uuid4().hex[:8]}", 0
    while True:
        directory, report = tmp_path / uuid.uuid4().hex, tmp_path / "found"
        report.unlink(missing_ok=True)
        expected = newest_in(url)
        how = draw(generator) if kills < kills_left else ("never", 0, False)
        outcomes = ranks.outcomes(
            mirrored_training,
            world_size,
            str(directory),
            url,
            str(report),
            how,
            group=world_size > 1,
            environ=environ,
            timeout_s=120,
        )
        kind, value = outcomes[0]
        assert kind in ("returned", "exited"), f"could not resume: {value}"
        if report.exists():
            assert report.read_text() == expected
        shutil.rmtree(directory, ignore_errors=True)
        if kind == "returned":
            return value, kills
        assert value == -signal.SIGKILL
        kills += 1


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_killed_run_goes_on_from_the_bucket_after_the_loss_of_its_disk(
    ranks, server, bucket, s3, tmp_path, times, progress, tally, world_size, training
):
    """Each time from the newest checkpoint there, to the same bits."""
    total = times(3, 500) if world_size == 1 else 100
    generator = random.Random(progress.seed)
    expected, kills = None, 0
    environ = server.environment()
    expected, _ = kill_and_resume(ranks, world_size, tmp_path, s3, generator, 0, environ)
    if world_size == 1:
        weights, validated = training.train(tmp_path / "undisturbed")
        assert expected == ([weight.tolist() for weight in weights], validated)
    while kills < total:
        found, done = kill_and_resume(
            ranks, world_size, tmp_path, s3, generator, min(12, total - kills), environ
        )
        assert found == expected
        kills += done
        tally["kills in training"] += done
        progress("kills", kills, total)


def verify_everything(url):
    """Return what is damaged in a mirror, and sweep it; return what is left over then."""
    from brain_ckpt.mirror.deletion import sweep
    from brain_ckpt.mirror.download import verify_in_mirror
    from brain_ckpt.mirror.entry import PARTS, commit_of
    from brain_ckpt.mirror.listing import MirrorLister
    from brain_ckpt.mirror.objects import ObjectStore

    store = ObjectStore(url)
    listing = MirrorLister(store).list()
    damage = [verify_in_mirror(store, one) for one in listing.entries]
    sweep(store, listing, age_s=0)
    named = {one.commit_id for one in (*listing.entries, *listing.replaced)}
    left = {commit_of(one.key) for one in store.list(PARTS)} - named
    return len(listing.entries), [*filter(None, damage), *listing.unreadable.values()], left


def test_a_store_that_dies_at_any_request_leaves_no_half_checkpoint(
    make, server, proxy, bucket, s3, times, progress, tally
):
    """In an upload and in a deletion; what is left of them is swept."""
    moments = times(4, 100)
    for moment in range(1, moments + 1):
        url = f"{s3}-{moment}"
        checkpointer = make(f"save-{moment}", mirror=url, mirror_grace_seconds=0)
        checkpointer.save_and_keep_only()
        checkpointer._copies._uploader.drain(60)
        started = len(proxy.log)
        dies_at = 1 + (moment * 7) % 18 if moments < 100 else 1 + moment % 34
        kind = ("cut request", "lose answer", "cut answer")[moment % 3]

        def plan(method, path, total, started=started, dies_at=dies_at, kind=kind):
            since = total - started
            if since < dies_at:
                return None
            return bucket.Fault(kind, after_bytes=300) if since == dies_at else bucket.Fault("503")

        proxy.plan = plan
        for _ in range(2):
            checkpointer.save_and_keep_only()
        uploader = checkpointer._copies._uploader
        bucket.wait_until(
            lambda start=started, at=dies_at, one=uploader: (
                len(proxy.log) - start > at or one._done >= one._requested
            )
        )
        checkpointer.close()
        proxy.plan = lambda method, path, total: None
        with bucket.environment(server.environment()):
            count, damage, left = verify_everything(url)
        assert count >= 1
        assert damage == []
        assert left == set()
        tally["deaths of a store"] += 1
        progress("moments", moment, moments)


def lost_and_new(rank, directory, url, role, folder):
    """Write to a mirror as the run that was thought dead, or as its successor."""
    from brain_ckpt import Checkpointer

    folder = Path(folder)

    def wait_for(name):
        deadline = time.monotonic() + 60
        while not (folder / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    checkpointer = Checkpointer(directory, {"model": torch.nn.Linear(2, 1)}, mirror=url)
    if role == "lost":
        checkpointer.save_checkpoint(meta={"by": "lost"})
        checkpointer.close()
        (folder / "saved").touch()
        wait_for("taken over")
        try:
            checkpointer.save_checkpoint(meta={"by": "lost again"})
            checkpointer.close()
        except CheckpointLockedError as error:
            return str(error)
        return "it went on"
    wait_for("saved")
    found = checkpointer.recover_if_possible().meta["by"]
    for by in ("new", "newer"):  # the retention deletes the one before
        checkpointer.save_and_keep_only(meta={"by": by}, num_to_keep=1)
        checkpointer._copies.finish()  # or the first is left out, if the second is saved before
    checkpointer.close()
    (folder / "taken over").touch()
    return found


def test_a_run_that_was_thought_dead_stops_at_its_next_publication(
    ranks, server, s3, tmp_path, make
):
    """Although the publication that it did not know is deleted again."""
    outcomes = {}

    def start(role):
        outcomes[role] = ranks.outcomes(
            lost_and_new,
            1,
            str(tmp_path / role),
            s3,
            role,
            str(tmp_path),
            group=False,
            environ=server.environment(),
        )[0]

    threads = [threading.Thread(target=start, args=(role,)) for role in ("lost", "new")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes["new"] == ("returned", "lost")
    kind, text = outcomes["lost"]
    assert kind == "returned"
    assert "only one run may write" in text
    assert "publication 2 was made and deleted again" in text
    print(f"\nthe second run found {outcomes['new'][1]!r} and published; the first: {text}")  # noqa: T201
    assert make("third", mirror=s3).recover_if_possible().meta["by"] == "newer"
