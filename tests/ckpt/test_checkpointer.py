"""The checkpointer's ordinary job: save, find, keep, recover."""

import logging

import pytest
import torch

from brain_ckpt import (
    DAY_S,
    Checkpointer,
    CheckpointLockedError,
    CheckpointMismatchError,
    CheckpointSaveError,
    KeepEvery,
    KeepPinned,
    RNGState,
    ckpt_recency,
)


@pytest.fixture
def model():
    return torch.nn.Linear(2, 2)


@pytest.fixture
def checkpointer(tmp_path, model):
    made = Checkpointer(tmp_path / "save", {"model": model})
    yield made
    made.close()


def losses(checkpointer):
    return sorted(one.meta["loss"] for one in checkpointer.list_checkpoints())


def test_what_was_saved_is_recovered(checkpointer, model):
    """Bit for bit."""
    before = model.weight.detach().clone()
    checkpointer.save_checkpoint()
    torch.nn.init.zeros_(model.weight)
    checkpointer.recover_if_possible()
    assert torch.equal(model.weight, before)


def test_an_empty_directory_is_no_error(checkpointer):
    """A run that starts has nothing to recover."""
    assert checkpointer.recover_if_possible() is None
    assert checkpointer.find_checkpoint() is None


def test_meta_holds_the_time_and_the_end_of_epoch(checkpointer):
    """As SpeechBrain's does, with what was given beside them."""
    saved = checkpointer.save_checkpoint(meta={"loss": 0.5}, end_of_epoch=False)
    assert saved.meta == {"unixtime": saved.meta["unixtime"], "end-of-epoch": False, "loss": 0.5}
    assert checkpointer.list_checkpoints() == [saved]
    assert (saved.path / "CKPT.yaml").read_text().startswith("# yamllint disable\n")


def test_by_default_the_newest_stays(checkpointer):
    """num_to_keep is 1, as in SpeechBrain."""
    for loss in (0.3, 0.2, 0.1):
        checkpointer.save_and_keep_only(meta={"loss": loss})
    assert losses(checkpointer) == [0.1]


def test_the_newest_and_the_best_of_each_metric_stay(checkpointer):
    """min_keys and max_keys are joined with the newest."""
    for loss, score in ((0.1, 1), (0.5, 9), (0.6, 2), (0.4, 3)):
        checkpointer.save_and_keep_only(
            meta={"loss": loss, "score": score}, min_keys=["loss"], max_keys=["score"]
        )
    assert losses(checkpointer) == [0.1, 0.4, 0.5]


def test_without_keep_recent_only_the_best_stay(checkpointer):
    """Two of them."""
    for loss in (0.1, 0.5, 0.2, 0.4):
        checkpointer.save_and_keep_only(
            meta={"loss": loss}, min_keys=["loss"], keep_recent=False, num_to_keep=2
        )
    assert losses(checkpointer) == [0.1, 0.2]


def test_a_checkpoint_without_the_key_is_left_alone(checkpointer):
    """It is none of that metric's business."""
    checkpointer.save_checkpoint(name="other")
    for loss in (0.2, 0.1):
        checkpointer.save_and_keep_only(meta={"loss": loss}, min_keys=["loss"], keep_recent=False)
    assert {one.path.name for one in checkpointer.list_checkpoints()} >= {"CKPT+other"}
    assert len(checkpointer.list_checkpoints()) == 2


def test_only_what_the_predicate_is_true_of_is_deleted(checkpointer):
    """As recipes guard their epochs' checkpoints from those inside epochs."""
    checkpointer.save_checkpoint(meta={"loss": 1.0, "intra": False})
    for loss in (0.2, 0.1):
        checkpointer.save_and_keep_only(
            meta={"loss": loss, "intra": True}, ckpt_predicate=lambda one: one.meta["intra"]
        )
    assert losses(checkpointer) == [0.1, 1.0]


def test_importance_keys_keep_the_highest(checkpointer):
    """And the caller's list is not edited."""
    keys = [lambda one: -abs(one.meta["loss"] - 0.5)]
    for loss in (0.1, 0.45, 0.9):
        checkpointer.save_and_keep_only(meta={"loss": loss}, importance_keys=keys)
    assert losses(checkpointer) == [0.45, 0.9]
    assert len(keys) == 1


def test_delete_checkpoints_can_delete_all(checkpointer):
    """num_to_keep=0."""
    checkpointer.save_checkpoint()
    checkpointer.delete_checkpoints(num_to_keep=0)
    assert checkpointer.list_checkpoints() == []
    with pytest.raises(ValueError, match="0 or more, got -1"):
        checkpointer.delete_checkpoints(num_to_keep=-1)


def test_a_spare_stays_beyond_what_is_asked_for(tmp_path, model):
    """The newest intact one, so that one flipped bit cannot end a run."""
    checkpointer = Checkpointer(tmp_path, {"model": model}, spare=1)
    for loss in (0.3, 0.2, 0.1):
        checkpointer.save_and_keep_only(meta={"loss": loss})
    assert losses(checkpointer) == [0.1, 0.2]
    spare = min(checkpointer.list_checkpoints(), key=ckpt_recency)
    (spare.path / "model.ckpt").write_bytes(b"")
    again = Checkpointer(tmp_path, {"model": model}, spare=1)
    again.save_and_keep_only(meta={"loss": 0.0})
    assert losses(again) == [0.0, 0.1]


def test_a_policy_of_the_checkpointers_own_is_joined(tmp_path, model):
    """Pinned ones and one a day, beside what a call keeps."""
    checkpointer = Checkpointer(tmp_path, {"model": model}, keep=KeepPinned(["start"]))
    checkpointer.save_checkpoint(name="start")
    for _ in range(3):
        checkpointer.save_and_keep_only()
    assert len(checkpointer.list_checkpoints()) == 2
    checkpointer.keep = KeepEvery(DAY_S)
    checkpointer.save_and_keep_only()
    assert (tmp_path / "CKPT+start").is_dir()


def test_find_returns_the_best_first(checkpointer):
    """By the newest, a metric or a function."""
    for loss in (0.2, 0.1, 0.3):
        checkpointer.save_checkpoint(meta={"loss": loss})
    by_time = [one.meta["loss"] for one in checkpointer.find_checkpoints()]
    by_loss = [
        one.meta["loss"]
        for one in checkpointer.find_checkpoints(min_key="loss", max_num_checkpoints=2)
    ]
    assert by_time == [0.3, 0.1, 0.2]
    assert by_loss == [0.1, 0.2]
    assert checkpointer.find_checkpoint(max_key="loss").meta["loss"] == 0.3
    assert checkpointer.find_checkpoint(lambda one: one.meta["loss"] == 0.2).meta["loss"] == 0.2
    assert checkpointer.find_checkpoints(max_key="unknown") == []
    with pytest.raises(ValueError, match="at most one of"):
        checkpointer.find_checkpoints(min_key="loss", max_key="loss")


def test_a_named_checkpoint_is_replaced_as_a_whole(checkpointer, model):
    """No file of the old one is left in the new one."""
    checkpointer.add_recoverable("extra", torch.nn.Linear(1, 1))
    checkpointer.save_checkpoint(name="last")
    del checkpointer.recoverables["extra"]
    saved = checkpointer.save_checkpoint(name="last")
    assert saved.path.name == "CKPT+last"
    assert not (saved.path / "extra.ckpt").exists()
    assert [path.name for path in saved.path.parent.glob(".*")] == [".brain.lock"]


def test_a_clock_set_back_hides_nothing(checkpointer, monkeypatch):
    """A save is newer than the newest, whatever the clock says."""
    checkpointer.save_checkpoint(meta={"loss": 1.0})
    monkeypatch.setattr("brain_ckpt.saving.plan.time.time", lambda: 1_000_000.0)
    checkpointer.save_checkpoint(meta={"loss": 2.0})
    checkpointer.save_checkpoint(meta={"loss": 3.0})
    assert [one.meta["loss"] for one in checkpointer.find_checkpoints()] == [3.0, 2.0, 1.0]


def test_saves_of_one_second_have_names_of_their_own(checkpointer):
    """Numbered, as SpeechBrain numbers them."""
    names = {checkpointer.save_checkpoint().path.name for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("CKPT+") for name in names)


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "a\\b", "a\nb", "x" * 200, 3])
def test_a_name_that_is_no_file_name_is_refused_before_anything_is_written(name, checkpointer):
    """Of a checkpoint and of a recoverable."""
    with pytest.raises(ValueError, match="plain name"):
        checkpointer.save_checkpoint(name=name)
    with pytest.raises(ValueError, match="plain name"):
        checkpointer.add_recoverable(name, torch.nn.Linear(1, 1))
    assert list(checkpointer.checkpoints_dir.iterdir()) == []


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.ones(2), b"bytes", lambda: 0])
def test_meta_that_is_not_plain_is_refused_before_anything_is_written(value, checkpointer):
    """The text says which value."""
    with pytest.raises(TypeError, match=r"plain scalars.*meta\['loss'\]"):
        checkpointer.save_checkpoint(meta={"loss": value})
    assert list(checkpointer.checkpoints_dir.iterdir()) == []


def test_what_is_neither_stateful_nor_hooked_is_refused_when_it_is_added(checkpointer):
    """Not in the middle of the first save."""
    with pytest.raises(TypeError, match="add the two methods"):
        checkpointer.add_recoverable("x", object())
    with pytest.raises(AttributeError, match="mapping from names"):
        checkpointer.add_recoverables([1])


def test_a_name_given_twice_gets_the_new_object_and_twins_by_case_are_refused(checkpointer):
    """`fit` called twice adds its optimizer twice; `Model` beside `model` is a mistake."""
    other = torch.nn.Linear(2, 2)
    checkpointer.add_recoverable("model", other)
    assert checkpointer.recoverables["model"] is other
    with pytest.raises(ValueError, match="more than case"):
        checkpointer.add_recoverable("Model", other)


def test_a_directory_that_is_no_checkpoint_is_not_replaced(checkpointer):
    """Its content is the user's."""
    mine = checkpointer.checkpoints_dir / "CKPT+mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="which is none"):
        checkpointer.save_checkpoint(name="mine")
    assert (mine / "notes.txt").read_text() == "mine"
    assert checkpointer.list_checkpoints() == []


def test_a_file_in_the_place_of_the_directory_is_an_error(tmp_path):
    """Said when the checkpointer is made."""
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="name another"):
        Checkpointer(tmp_path / "file")


def test_a_saver_that_raises_leaves_nothing_behind(checkpointer):
    """Its error is the cause of the one that is raised."""

    def fail(obj, path):
        path.write_text("half")
        raise ZeroDivisionError("mine")

    checkpointer.add_recoverable("x", object(), lambda obj, path: None, fail)
    with pytest.raises(CheckpointSaveError, match="ZeroDivisionError: mine"):
        checkpointer.save_checkpoint()
    assert [path.name for path in checkpointer.checkpoints_dir.iterdir()] == [".brain.lock"]


def test_a_saver_that_writes_nothing_is_an_error(checkpointer):
    """The checkpoint would not be whole."""
    checkpointer.add_recoverable("x", object(), lambda obj, path: None, lambda obj, path: None)
    with pytest.raises(CheckpointSaveError, match=r"did not write x.ckpt"):
        checkpointer.save_checkpoint()


def test_a_shape_that_does_not_fit_touches_nothing(tmp_path, model):
    """It is the user's error: never a reason to fall back, nor to load half."""
    first = torch.nn.Linear(3, 3)
    checkpointer = Checkpointer(tmp_path, {"first": first, "model": model})
    checkpointer.save_checkpoint()
    checkpointer.save_checkpoint()
    checkpointer.add_recoverable("model", torch.nn.Linear(2, 5))
    torch.nn.init.zeros_(first.weight)
    with pytest.raises(CheckpointMismatchError, match=r"'weight' of shape \(2, 2\).*\(5, 2\)"):
        checkpointer.recover_if_possible()
    assert not first.weight.any()


def test_a_part_can_be_restored_by_name_or_kind(checkpointer, model):
    """For evaluation only the modules are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    checkpointer.add_recoverable("optimizer", optimizer)
    checkpointer.save_checkpoint()
    optimizer.param_groups[0]["lr"] = 0.1
    torch.nn.init.zeros_(model.weight)
    checkpointer.recover_if_possible(only=lambda name, obj: isinstance(obj, torch.nn.Module))
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert model.weight.any()


def test_a_part_may_be_missing_where_that_was_said(checkpointer, tmp_path, model):
    """By allow_partial_load for all, by optional_load for one."""
    checkpointer.save_checkpoint()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    checkpointer.add_recoverable("scaler", scaler)
    with pytest.raises(CheckpointMismatchError, match=r"'scaler'.*optional_load=True"):
        checkpointer.recover_if_possible()
    partial = Checkpointer(
        tmp_path / "save", {"model": model, "scaler": scaler}, allow_partial_load=True
    )
    assert partial.recover_if_possible() is not None
    checkpointer.add_recoverable("scaler", scaler, optional_load=True)
    assert checkpointer.recover_if_possible() is not None


def test_random_numbers_go_on_where_they_were(checkpointer):
    """Python's, NumPy's and torch's."""
    import random

    import numpy as np

    checkpointer.add_recoverable("rng", RNGState(), per_rank=True)
    checkpointer.save_checkpoint()

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1)

    expected = draw()
    draw()
    checkpointer.recover_if_possible()
    assert draw() == expected


def test_a_second_process_may_read_but_not_write(tmp_path, workloads, processes):
    """It hears who writes."""
    run = workloads.Run(tmp_path)
    run.set(1)
    run.checkpointer.save_checkpoint()

    def other(report):
        second = workloads.Run(tmp_path)
        assert second.recover() == 1
        with pytest.raises(CheckpointLockedError, match='"pid": '):
            second.checkpointer.save_checkpoint()
        report(1)

    child = processes.Child(other)
    assert child.wait() == processes.FINISHED
    assert child.reports == [1]
    run.checkpointer.close()

    def later(report):
        workloads.Run(tmp_path).checkpointer.save_checkpoint()

    assert processes.Child(later).wait() == processes.FINISHED


def test_a_reader_beside_a_writer_always_finds_a_whole_checkpoint(tmp_path, workloads, processes):
    """Retention deletes what the reader has just listed; it looks again."""
    start = workloads.Run(tmp_path)
    start.set(1)
    start.checkpointer.save_checkpoint()
    start.checkpointer.close()

    def write(report):
        run = workloads.Run(tmp_path)
        for number in range(2, 60):
            run.set(number)
            run.checkpointer.save_and_keep_only()

    child = processes.Child(write)
    reader, numbers = workloads.Run(tmp_path), [1]
    for _ in range(25):
        numbers += [reader.recover()]
    assert child.wait() == processes.FINISHED
    assert numbers == sorted(numbers)


def test_a_reader_finds_the_next_one_where_the_one_it_saw_is_gone(tmp_path, workloads):
    """Between the look at the names and the look into the directories."""
    writer = workloads.Run(tmp_path)
    writer.set(1)
    writer.checkpointer.save_checkpoint()
    replaced = []

    def replace(operation, path, detail):
        if operation == "open" and path.endswith("CKPT.yaml") and not replaced:
            replaced.append(path)
            with workloads.failpoint(None):
                writer.set(2)
                writer.checkpointer.save_and_keep_only()

    reader = workloads.Run(tmp_path)
    with workloads.failpoint(replace):
        assert reader.recover() == 2
    assert replaced


def test_nothing_is_logged_above_the_level_asked_for(checkpointer, caplog):
    """Each save and each deletion once."""
    with caplog.at_level(logging.DEBUG):
        checkpointer.save_and_keep_only(verbosity=logging.DEBUG)
        checkpointer.save_and_keep_only(verbosity=logging.DEBUG)
    mine = [record for record in caplog.records if record.name.startswith("brain_ckpt")]
    assert {record.levelno for record in mine} == {logging.DEBUG}
    assert len(mine) == 3


def test_the_directory_can_be_changed(checkpointer, tmp_path):
    """As Brain's debug mode does."""
    checkpointer.save_checkpoint()
    checkpointer.checkpoints_dir = tmp_path / "other"
    assert checkpointer.list_checkpoints() == []
    checkpointer.save_checkpoint()
    assert len(list((tmp_path / "other").glob("CKPT*"))) == 1


pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
