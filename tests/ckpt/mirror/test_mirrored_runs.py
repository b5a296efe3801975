"""A checkpointer with a mirror: what is published is there, and an empty disk is filled from it."""

import logging
import shutil
import tempfile

import pytest
import torch

from brain_ckpt import (
    Checkpointer,
    CheckpointError,
    CheckpointLockedError,
    CheckpointMirrorError,
    KeepLast,
    NoIntactCheckpointError,
    Pretrainer,
    set_aside,
)


def names(checkpointer):
    return [one.path.name for one in checkpointer.list_checkpoints()]


def lose_disk(checkpointer):
    shutil.rmtree(checkpointer.checkpoints_dir)


def test_an_empty_disk_is_filled_from_the_mirror(make, s3):
    """The newest checkpoint comes back with the bits that were saved, and its meta."""
    first = make(value=0.1, mirror=s3)
    first.save_checkpoint(meta={"loss": 0.5}, name="one")
    first.close()
    saved = [path.read_bytes() for path in sorted(first.checkpoints_dir.glob("CKPT+one/*"))]
    lose_disk(first)
    second = make("other", mirror=s3)
    found = second.recover_if_possible()
    assert found.meta["loss"] == 0.5
    assert torch.equal(second.model.weight, first.model.weight)
    assert [path.read_bytes() for path in sorted(found.path.iterdir())] == saved


def test_a_url_alone_is_staged_in_a_temporary_directory(tmp_path, monkeypatch, s3):
    """All there is of it on disk can be lost."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = torch.nn.Linear(2, 1)
    first = Checkpointer(s3, {"model": model})
    first.save_checkpoint(meta={"step": 3})
    first.close()
    assert tmp_path in first.checkpoints_dir.parents
    lose_disk(first)
    assert Checkpointer(s3, {"model": model}).recover_if_possible().meta["step"] == 3


def test_the_newest_of_both_places_is_loaded(make, s3):
    """Here if it is newer here, from the mirror if it is newer there."""
    first = make(mirror=s3)
    first.save_checkpoint(meta={"step": 1})
    first.close()
    shutil.copytree(first.checkpoints_dir, first.checkpoints_dir.with_name("older"))
    first.save_checkpoint(meta={"step": 2})
    first.close()
    older = make("older", mirror=s3)
    assert older.recover_if_possible().meta["step"] == 2
    without = make("older")
    without.save_checkpoint(meta={"step": 3})
    assert make("older", mirror=s3).recover_if_possible().meta["step"] == 3


def test_the_best_by_a_metric_is_downloaded(make, s3):
    """`find_checkpoint` and `recover_if_possible` look in both places."""
    first = make(mirror=s3)
    for loss in (0.3, 0.1, 0.2):
        first.save_checkpoint(meta={"loss": loss})
    first.close()
    second = make("other", mirror=s3)
    best = second.find_checkpoint(min_key="loss")
    assert best.meta["loss"] == 0.1
    assert best.paramfiles["model"].is_file()
    assert [one.meta["loss"] for one in second.list_checkpoints()] == [0.3, 0.1, 0.2]
    assert make("third", mirror=s3).recover_if_possible(max_key="loss").meta["loss"] == 0.3


def test_a_listed_checkpoint_is_downloaded_when_it_is_loaded(make, s3):
    """Listing downloads nothing."""
    first = make(mirror=s3, value=0.5)
    first.save_checkpoint()
    first.close()
    second = make("other", mirror=s3)
    (listed,) = second.list_checkpoints()
    assert not listed.path.exists()
    second.load_checkpoint(listed)
    assert second.model.weight.unique().tolist() == [0.5]


def test_a_damaged_checkpoint_is_replaced_with_its_copy(make, s3, caplog):
    """The newest is loaded, although its file on disk is damaged."""
    first = make(mirror=s3, value=0.7)
    first.save_checkpoint(name="old")
    first.save_checkpoint(name="new")
    first.close()
    file = first.checkpoints_dir / "CKPT+new" / "model.ckpt"
    file.write_bytes(file.read_bytes()[:-20] + bytes(20))
    second = make(mirror=s3)
    assert second.recover_if_possible().path.name == "CKPT+new"
    assert second.model.weight.unique().tolist() == pytest.approx([0.7])
    assert "is replaced with its copy" in caplog.text


def test_a_damaged_part_leads_to_the_next_older_checkpoint(make, s3, bucket):
    """It is named, and not loaded."""
    from brain_ckpt.mirror.objects import ObjectStore

    first = make(mirror=s3)
    for step in (1, 2):
        first.save_checkpoint(meta={"step": step})
    first.close()
    store = ObjectStore(s3)
    newest = first.list_checkpoints()[-1].commit_id
    key = next(key for key in bucket.objects(s3, f"parts/{newest}/") if "model" in key)
    store.replace(key, b"x" * bucket.objects(s3, f"parts/{newest}/")[key])
    second = make("other", mirror=s3)
    assert second.recover_if_possible().meta["step"] == 1
    assert "model.ckpt" in second.passed_over[0]


def test_a_run_with_only_damaged_copies_does_not_start_over(make, s3, bucket):
    """A missing part is damage, too."""
    from brain_ckpt.mirror.objects import ObjectStore

    first = make(mirror=s3)
    first.save_checkpoint()
    first.close()
    ObjectStore(s3).delete([key for key in bucket.objects(s3, "parts/") if "model" in key])
    with pytest.raises(NoIntactCheckpointError, match="is missing"):
        make("other", mirror=s3).recover_if_possible()


def test_each_place_has_its_own_retention(make, s3):
    """Two here, four there."""
    checkpointer = make(mirror=s3, mirror_keep=KeepLast(4))
    for _ in range(6):
        checkpointer.save_and_keep_only(num_to_keep=2)
        checkpointer._copies.finish()
    checkpointer.close()
    assert len(list(checkpointer.checkpoints_dir.glob("CKPT+*"))) == 2
    assert len(names(make("other", mirror=s3))) == 4


def test_the_mirror_keeps_what_the_saves_keep(make, s3, bucket):
    """By default; what it deletes leaves no part, and its number stays taken."""
    checkpointer = make(mirror=s3)
    for loss in (0.1, 0.3, 0.2):
        checkpointer.save_and_keep_only(meta={"loss": loss}, min_keys=["loss"])
        checkpointer._copies.finish()
    checkpointer.close()
    elsewhere = make("other", mirror=s3)
    assert [one.meta["loss"] for one in elsewhere.list_checkpoints()] == [0.1, 0.2]
    found = bucket.objects(s3)
    commits = {key.split("/")[1] for key in found if key.startswith("parts/")}
    assert commits == {one.commit_id for one in elsewhere.list_checkpoints()}
    assert len([key for key in found if key.startswith("commits/")]) == 3


def test_a_replaced_name_is_there_once(make, s3):
    """The later one of the name counts."""
    checkpointer = make(mirror=s3)
    for step in (1, 2):
        checkpointer.save_checkpoint(meta={"step": step}, name="best")
        checkpointer._copies.finish()
    checkpointer.close()
    other = make("other", mirror=s3)
    assert [one.meta["step"] for one in other.list_checkpoints()] == [2]
    assert other.recover_if_possible().meta["step"] == 2


def test_what_a_killed_run_has_not_uploaded_is_uploaded_by_the_next_one(make, s3):
    """Also if that one saves nothing."""
    make().save_checkpoint(meta={"step": 5})
    again = make(mirror=s3)
    again.recover_if_possible()
    again.close()
    assert make("other", mirror=s3).recover_if_possible().meta["step"] == 5


def test_a_reader_uploads_nothing(make, s3, bucket):
    """Recovering beside a run does not publish anything."""
    make().save_checkpoint()
    reader = make(mirror=s3)
    assert reader.recover_if_possible() is not None
    assert list(bucket.objects(s3)) == ["BRAIN_MIRROR"]


def test_an_asynchronous_save_is_uploaded_once_it_is_published(make, s3):
    """With the state at the call."""
    checkpointer = make(mirror=s3, value=0.3, asynchronous=True)
    checkpointer.save_checkpoint()
    torch.nn.init.constant_(checkpointer.model.weight, 9.0)
    checkpointer.close()
    other = make("other", mirror=s3)
    other.recover_if_possible()
    assert other.model.weight.unique().tolist() == pytest.approx([0.3])


def test_no_temporary_name_is_left_after_a_download(make, s3):
    """The directory looks as if the run had always been here."""
    first = make(mirror=s3)
    first.save_checkpoint(name="one")
    first.close()
    second = make("other", mirror=s3)
    second.recover_if_possible()
    assert sorted(path.name for path in second.checkpoints_dir.iterdir()) == [
        ".brain.lock",
        "CKPT+one",
    ]


def test_file_systems_without_atomic_rename_are_filled_too(make, s3):
    """By the manifest, written last."""
    first = make(mirror=s3)
    first.save_checkpoint(meta={"step": 2}, name="one")
    first.close()
    second = make("other", mirror=s3, atomic_rename=False)
    assert second.recover_if_possible().meta["step"] == 2
    assert make("other").recover_if_possible().meta["step"] == 2


def test_two_checkpointers_of_one_process_are_one_writer(make, s3):
    """As with the lock of the directory."""
    first, second = make(mirror=s3), make(mirror=s3)
    for step in range(3):
        for checkpointer in (first, second):
            checkpointer.save_checkpoint(meta={"step": step})
            checkpointer.close()
    assert len(names(make("other", mirror=s3))) == 6


def test_a_debug_directory_has_no_mirror(make, s3, tmp_path):
    """Assigning another directory ends the mirror."""
    checkpointer = make(mirror=s3)
    assert checkpointer.mirror == s3
    checkpointer.checkpoints_dir = tmp_path / "debug"
    assert checkpointer.mirror is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": "s3://no-such-bucket/runs/7"}, "bucket must exist"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "check the endpoint"),
    ],
)
def test_a_mirror_that_cannot_be_used_is_an_error_at_once(
    make, s3, monkeypatch, fast_retries, change, words
):
    """Before the first batch; the text says what to correct."""
    url = change.pop("url", s3)
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CheckpointMirrorError, match=words):
        make(mirror=url)


def test_refused_credentials_are_an_error_without_them(make, s3, proxy, bucket, caplog):
    """The answer of the store repeats them; the error and the log do not."""
    caplog.set_level(logging.DEBUG)
    proxy.plan = lambda method, path, number: bucket.Fault("403")
    with pytest.raises(CheckpointMirrorError, match="403 AccessDenied; the credentials") as error:
        make(mirror=s3)
    shown = f"{error.value!r} {error.value.__cause__!r} {caplog.text}"
    assert bucket.SECRET not in shown
    assert bucket.KEY_ID not in shown
    assert error.value.__suppress_context__


@pytest.mark.parametrize("url", ["s3://", "s3://user:key@bucket/x", "ftp://host/x", "http://a/b"])
def test_a_url_that_is_no_mirror_is_refused(make, url):
    """Without repeating a password."""
    with pytest.raises(ValueError, match="must be the URL of an object store") as error:
        make(mirror=url)
    assert "key@" not in str(error.value)


def test_a_store_without_conditional_puts_is_refused(make, s3, monkeypatch):
    """Two runs could overwrite each other there."""
    from brain_ckpt.mirror.objects import ObjectStore

    monkeypatch.setattr(
        ObjectStore, "create", lambda self, key, data: self.replace(key, bytes(data)) or ""
    )
    with pytest.raises(CheckpointMirrorError, match="If-None-Match"):
        make(mirror=s3)


@pytest.mark.parametrize("seconds", [-1, "10", float("nan"), True])
def test_a_grace_time_must_be_a_number_of_seconds(make, s3, seconds):
    """Zero or more."""
    with pytest.raises(ValueError, match="mirror_grace_seconds must be a number"):
        make(mirror=s3, mirror_grace_seconds=seconds)


def test_a_pretrainer_reads_a_file_of_a_mirror(make, s3, tmp_path):
    """It is verified on its way."""
    first = make(mirror=s3, value=0.25)
    first.save_checkpoint(name="one")
    first.close()
    model = torch.nn.Linear(2, 1)
    pretrainer = Pretrainer(
        tmp_path / "collected", {"model": model}, {"model": f"{s3}/CKPT+one/model.ckpt"}
    )
    pretrainer.collect_files()
    pretrainer.load_collected()
    assert model.weight.unique().tolist() == [0.25]
    pretrainer.add_paths({"model": f"{s3}/CKPT+two/model.ckpt"})
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        pretrainer.collect_files()


def test_looking_at_another_runs_publication_does_not_make_it_ones_own(make, s3, ranks, server):
    """A run that has resumed earlier is the second writer, although it has listed the first."""
    make("seed").close()
    slow = make("slow", mirror=s3)
    assert slow.recover_if_possible() is None
    assert ranks(publish, 1, s3, group=False, environ=server.environment()) == ["saved"]
    assert len(slow.list_checkpoints()) == 1
    slow.save_checkpoint()
    with pytest.raises(CheckpointLockedError, match="only one run may write"):
        slow.close()


def publish(rank, url):
    """Save once, in another process."""
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(folder, {"model": torch.nn.Linear(2, 1)}, mirror=url)
        checkpointer.save_checkpoint()
        checkpointer.close()
    return "saved"


def test_going_back_needs_a_mirror_without_newer_checkpoints(make, s3):
    """They would come back from there."""
    checkpointer = make(mirror=s3)
    for name in ("one", "two"):
        checkpointer.save_checkpoint(name=name)
    checkpointer.close()
    one = checkpointer.list_checkpoints()[0]
    with pytest.raises(CheckpointError, match=r"got CKPT\+two in s3.*a mirror of its own"):
        set_aside(checkpointer, one)
    checkpointer.set_mirror(f"{s3}-again")
    assert set_aside(checkpointer, one) == ["CKPT+two"]
    checkpointer.close()
    assert make("other", mirror=f"{s3}-again").recover_if_possible().path.name == "CKPT+one"
