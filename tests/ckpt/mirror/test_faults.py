"""A store that cuts connections, refuses, stalls, loses answers and damages what it is sent."""

import logging
import re

import pytest
import torch

from brain_ckpt import CheckpointMirrorError, KeepLast, KeepPinned, any_of

FAULTS = {
    "cut request": {"after_bytes": 700},
    "cut answer": {"after_bytes": 10},
    "503": {},
    "403": {},
    "stall": {"seconds": 0.2},
    "flip request": {"after_bytes": 900},
    "lose answer": {},
}


def is_part(method, path):
    return method == "PUT" and "/parts/" in path


def is_manifest(method, path):
    return method == "PUT" and "/commits/" in path


def is_read(method, path):
    return (
        method == "GET" and ("/parts/" in path or "/commits/" in path) and "list-type" not in path
    )


def is_list(method, path):
    return method == "GET" and "list-type" in path


def is_deletion(method, path):
    return method == "DELETE" or (method == "POST" and "delete" in path)


def disturb(bucket, proxy, kind, chosen, times=3, **details):
    """Disturb the first requests that are chosen; return the list of those."""
    disturbed = []

    def plan(method, path, number):
        if chosen(method, path) and len(disturbed) < times:
            disturbed.append((method, path, number))
            return bucket.Fault(kind, **details)
        return None

    proxy.plan = plan
    return disturbed


def values_in_mirror(make, s3, server, bucket):
    """Download every checkpoint without the proxy; return the weights by step."""
    with bucket.environment(server.environment()):
        other = make("other", mirror=s3)
        values = {}
        for one in other.list_checkpoints():
            other.load_checkpoint(one)
            values[one.meta["step"]] = other.model.weight.unique().tolist()
        return values


def show(kind, chosen, outcome, log=""):
    """Print a row of the table of faults, for ``pytest -s``."""
    reasons = {re.sub(r"localhost|127[.0-9:]+", "HOST", line) for line in log.splitlines()}
    said = sorted({line.split(": ", 1)[-1][:160] for line in reasons if "attempt" in line})
    print(f"\n{kind} x {chosen.__name__.removeprefix('is_')}: {outcome} | {' | '.join(said)}")  # noqa: T201


def every_fault(chosen, often):
    """Return parameters for each fault at each request that is chosen; most are long."""
    return [
        pytest.param(kind, one, marks=() if (kind, one) in often else pytest.mark.long)
        for kind in FAULTS
        for one in chosen
    ]


@pytest.mark.parametrize(
    ("kind", "chosen"),
    every_fault(
        (is_part, is_manifest, is_list),
        {
            *((kind, is_part) for kind in ("cut request", "503", "stall", "flip request")),
            *((kind, is_manifest) for kind in ("cut answer", "lose answer", "flip request")),
            ("403", is_list),
        },
    ),
)
def test_no_fault_of_an_upload_loses_or_damages_a_checkpoint(
    make, s3, server, proxy, bucket, fast_retries, caplog, kind, chosen
):
    """Every checkpoint arrives once, intact; training sees nothing, and the log says why."""
    caplog.set_level(logging.INFO)
    checkpointer = make(mirror=s3)
    disturbed = disturb(bucket, proxy, kind, chosen, **FAULTS[kind])
    for step in range(3):
        torch.nn.init.constant_(checkpointer.model.weight, float(step))
        checkpointer.save_checkpoint(meta={"step": step})
        checkpointer.poll()
        checkpointer._copies.finish()
    checkpointer.close()
    proxy.plan = lambda method, path, number: None
    if (kind, chosen) != ("flip request", is_list):  # a list request has no body
        assert len(disturbed) == 3
    assert values_in_mirror(make, s3, server, bucket) == {0: [0.0], 1: [1.0], 2: [2.0]}
    commits = [key for key in bucket.objects(s3) if key.startswith("commits/")]
    assert len(commits) == 3
    assert bucket.SECRET not in caplog.text
    assert bucket.KEY_ID not in caplog.text
    show(kind, chosen, f"trained on; {len(commits)} checkpoints in the bucket", caplog.text)


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        *every_fault((is_read, is_list), {("cut answer", is_read), ("403", is_read)}),
        ("flip answer", is_read),
        ("truncate answer", is_read),
    ],
)
def test_no_fault_of_a_download_is_loaded(make, s3, proxy, bucket, fast_retries, kind, chosen):
    """What arrives damaged is fetched again."""
    first = make(mirror=s3, value=0.5)
    first.save_checkpoint()
    first.close()
    second = make("other", mirror=s3)
    details = FAULTS.get(kind, {"after_bytes": 100})
    times = 3 if kind in FAULTS and kind != "403" else 2
    disturb(bucket, proxy, kind, chosen, times=times, **details)
    outcome = "recovered"
    if kind == "403":
        with pytest.raises(CheckpointMirrorError, match="the credentials must be valid") as refused:
            second.recover_if_possible()
        proxy.plan = lambda method, path, number: None
        outcome = f"{refused.type.__name__}, then recovered"
    second.recover_if_possible()
    assert second.model.weight.unique().tolist() == [0.5]
    show(kind, chosen, outcome)


def test_a_store_that_always_damages_is_not_believed(make, s3, server, proxy, bucket, fast_retries):
    """No manifest names a part that did not arrive intact."""
    checkpointer = make(mirror=s3, mirror_grace_seconds=1)
    proxy.plan = lambda method, path, number: (
        bucket.Fault("flip request", after_bytes=5) if is_part(method, path) else None
    )
    checkpointer.save_checkpoint()
    checkpointer.close()
    with bucket.environment(server.environment()):
        assert not [key for key in bucket.objects(s3) if key.startswith("commits/")]


def test_a_download_that_was_cut_off_is_continued(make, s3, proxy, bucket, fast_retries):
    """What is here is verified, and not fetched again."""
    first = make(mirror=s3, size=6 * 2**20)  # 24 MB in two parts
    first.save_checkpoint()
    first.close()
    second = make("other", mirror=s3, size=6 * 2**20)
    second_part = re.compile(r"model\.ckpt/00001")
    proxy.plan = lambda method, path, number: (
        bucket.Fault("403") if method == "GET" and second_part.search(path) else None
    )
    with pytest.raises(CheckpointMirrorError):
        second.recover_if_possible()
    proxy.plan = lambda method, path, number: None
    before = len(proxy.log)
    assert second.recover_if_possible() is not None
    fetched = [path for _, path, _ in proxy.log[before:] if "model.ckpt" in path]
    assert len(fetched) == 1
    assert second_part.search(fetched[0])


def test_an_upload_that_was_cut_off_is_continued(make, s3, proxy, bucket, fast_retries):
    """By the next run, which sends only what is missing."""
    from brain_ckpt.mirror.uploader import _running as running

    checkpointer = make(mirror=s3, size=6 * 2**20, mirror_grace_seconds=0.5)
    proxy.plan = lambda method, path, number: (
        bucket.Fault("503") if is_part(method, path) and "/00001" in path else None
    )
    checkpointer.save_checkpoint(name="one")
    bucket.wait_until(lambda: any(kind == "503" for *_, kind in proxy.log))
    uploader = checkpointer._copies._uploader
    checkpointer.close()
    bucket.wait_until(lambda: uploader not in running)
    proxy.plan = lambda method, path, number: None
    before = len(proxy.log)
    again = make(mirror=s3, size=6 * 2**20)
    again.close()
    sent = [path for method, path, _ in proxy.log[before:] if is_part(method, path)]
    assert [path for path in sent if "/00000" in path and "model" in path] == []
    assert len([path for path in sent if "/00001" in path]) == 1
    assert len(again._copies.only_there([])) == 1


def test_a_bucket_that_is_away_ends_nothing_and_is_caught_up_with(
    make, s3, server, proxy, bucket, fast_retries, caplog
):
    """The newest comes first, then the best; the log says what was left out."""
    caplog.set_level(logging.INFO)
    checkpointer = make(mirror=s3, mirror_grace_seconds=30)
    proxy.plan = lambda method, path, number: bucket.Fault("503")
    for step in range(12):
        torch.nn.init.constant_(checkpointer.model.weight, float(step))
        loss = 0.1 if step == 2 else 1.0 + step
        meta = {"step": step, "loss": loss}
        checkpointer.save_and_keep_only(meta=meta, num_to_keep=1, min_keys=["loss"])
        checkpointer.poll()
        assert checkpointer.find_checkpoint().meta["step"] == step
    proxy.plan = lambda method, path, number: None
    before = len(proxy.log)
    checkpointer.close()
    assert values_in_mirror(make, s3, server, bucket) == {2: [2.0], 11: [11.0]}
    newest = checkpointer.list_checkpoints()[-1].commit_id
    first_put = next(path for method, path, _ in proxy.log[before:] if is_part(method, path))
    assert newest in first_put
    assert "which would not keep it" in caplog.text
    here = sorted(one.meta["step"] for one in make().list_checkpoints())
    assert here == [2, 11]


def test_a_bounded_number_waits_for_a_bucket_that_is_away(
    make, s3, server, proxy, bucket, fast_retries, caplog
):
    """The newest ones, and one with a name that is kept; the log names the others."""
    checkpointer = make(mirror=s3, mirror_keep=any_of(KeepLast(20), KeepPinned(["first"])))
    proxy.plan = lambda method, path, number: bucket.Fault("503")
    for step in range(9):
        checkpointer.save_checkpoint(meta={"step": step}, name=None if step else "first")
        torch.nn.init.constant_(checkpointer.model.weight, step + 1.0)
    bucket.wait_until(lambda: caplog.text.count("uploads are slower than saves") >= 4)
    proxy.plan = lambda method, path, number: None
    checkpointer.close()
    found = values_in_mirror(make, s3, server, bucket)
    assert sorted(found) == [0, 5, 6, 7, 8]


def test_a_run_waits_no_longer_than_the_grace_time(make, s3, proxy, bucket, fast_retries, caplog):
    """What is missing is logged, and stays on this disk."""
    checkpointer = make(mirror=s3, mirror_grace_seconds=0.3)
    proxy.plan = lambda method, path, number: bucket.Fault("503")
    checkpointer.save_and_keep_only()
    checkpointer.close()
    assert "Not all checkpoints were copied" in caplog.text
    proxy.plan = lambda method, path, number: None
    assert len(make().list_checkpoints()) == 1


@pytest.mark.parametrize("kind", ["503", "cut request", "lose answer", "403"])
def test_no_fault_of_a_deletion_leaves_half_a_checkpoint(
    make, s3, server, proxy, bucket, fast_retries, kind
):
    """The manifest goes first; the parts go at last."""
    checkpointer = make(mirror=s3)
    checkpointer.save_and_keep_only(meta={"step": 0})
    checkpointer._copies.finish()
    disturb(bucket, proxy, kind, is_deletion, **FAULTS[kind])
    checkpointer.save_and_keep_only(meta={"step": 1})
    checkpointer.close()
    proxy.plan = lambda method, path, number: None
    assert list(values_in_mirror(make, s3, server, bucket)) == [1]
    show(kind, is_deletion, "trained on; the replaced checkpoint is gone, the new one is there")
