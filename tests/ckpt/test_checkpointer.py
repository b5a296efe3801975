"""Saving, finding, keeping and recovering checkpoints."""

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


def test_a_saved_state_is_recovered(checkpointer, model):
    """The recovered state is bit-equal."""
    before = model.weight.detach().clone()
    checkpointer.save_checkpoint()
    torch.nn.init.zeros_(model.weight)
    checkpointer.recover_if_possible()
    assert torch.equal(model.weight, before)


def test_recovery_from_an_empty_directory_returns_none(checkpointer):
    """A new run has nothing to recover."""
    assert checkpointer.recover_if_possible() is None
    assert checkpointer.find_checkpoint() is None


def test_meta_holds_the_time_and_the_end_of_epoch(checkpointer):
    """Meta has the keys of SpeechBrain and the given values."""
    saved = checkpointer.save_checkpoint(meta={"loss": 0.5}, end_of_epoch=False)
    assert saved.meta == {"unixtime": saved.meta["unixtime"], "end-of-epoch": False, "loss": 0.5}
    assert checkpointer.list_checkpoints() == [saved]
    assert (saved.path / "CKPT.yaml").read_text().startswith("# yamllint disable\n")


def test_by_default_only_the_newest_is_kept(checkpointer):
    """The default of num_to_keep is 1, as in SpeechBrain."""
    for loss in (0.3, 0.2, 0.1):
        checkpointer.save_and_keep_only(meta={"loss": loss})
    assert losses(checkpointer) == [0.1]


def test_the_newest_and_the_best_of_each_metric_are_kept(checkpointer):
    """The best by min_keys and max_keys are kept besides the newest."""
    for loss, score in ((0.1, 1), (0.5, 9), (0.6, 2), (0.4, 3)):
        checkpointer.save_and_keep_only(
            meta={"loss": loss, "score": score}, min_keys=["loss"], max_keys=["score"]
        )
    assert losses(checkpointer) == [0.1, 0.4, 0.5]


def test_without_keep_recent_only_the_best_are_kept(checkpointer):
    """The two best are kept."""
    for loss in (0.1, 0.5, 0.2, 0.4):
        checkpointer.save_and_keep_only(
            meta={"loss": loss}, min_keys=["loss"], keep_recent=False, num_to_keep=2
        )
    assert losses(checkpointer) == [0.1, 0.2]


def test_a_checkpoint_without_the_metric_is_not_deleted(checkpointer):
    """The metric does not apply to it."""
    checkpointer.save_checkpoint(name="other")
    for loss in (0.2, 0.1):
        checkpointer.save_and_keep_only(meta={"loss": loss}, min_keys=["loss"], keep_recent=False)
    assert {one.path.name for one in checkpointer.list_checkpoints()} >= {"CKPT+other"}
    assert len(checkpointer.list_checkpoints()) == 2


def test_only_checkpoints_that_match_the_predicate_are_deleted(checkpointer):
    """Recipes use a predicate to protect the checkpoints at the ends of epochs."""
    checkpointer.save_checkpoint(meta={"loss": 1.0, "intra": False})
    for loss in (0.2, 0.1):
        checkpointer.save_and_keep_only(
            meta={"loss": loss, "intra": True}, ckpt_predicate=lambda one: one.meta["intra"]
        )
    assert losses(checkpointer) == [0.1, 1.0]


def test_importance_keys_keep_the_highest(checkpointer):
    """The list of the caller is not changed."""
    keys = [lambda one: -abs(one.meta["loss"] - 0.5)]
    for loss in (0.1, 0.45, 0.9):
        checkpointer.save_and_keep_only(meta={"loss": loss}, importance_keys=keys)
    assert losses(checkpointer) == [0.45, 0.9]
    assert len(keys) == 1


def test_delete_checkpoints_can_delete_all(checkpointer):
    """All are deleted with num_to_keep=0."""
    checkpointer.save_checkpoint()
    checkpointer.delete_checkpoints(num_to_keep=0)
    assert checkpointer.list_checkpoints() == []
    with pytest.raises(ValueError, match="0 or more, got -1"):
        checkpointer.delete_checkpoints(num_to_keep=-1)


def test_a_spare_checkpoint_is_kept(tmp_path, model):
    """The newest intact one is kept, so that one flipped bit cannot end a run."""
    checkpointer = Checkpointer(tmp_path, {"model": model}, spare=1)
    for loss in (0.3, 0.2, 0.1):
        checkpointer.save_and_keep_only(meta={"loss": loss})
    assert losses(checkpointer) == [0.1, 0.2]
    spare = min(checkpointer.list_checkpoints(), key=ckpt_recency)
    (spare.path / "model.ckpt").write_bytes(b"")
    again = Checkpointer(tmp_path, {"model": model}, spare=1)
    again.save_and_keep_only(meta={"loss": 0.0})
    assert losses(again) == [0.0, 0.1]


def test_the_policy_of_the_checkpointer_is_combined_with_the_arguments(tmp_path, model):
    """Pinned checkpoints and one a day are kept besides those of the call."""
    checkpointer = Checkpointer(tmp_path, {"model": model}, keep=KeepPinned(["start"]))
    checkpointer.save_checkpoint(name="start")
    for _ in range(3):
        checkpointer.save_and_keep_only()
    assert len(checkpointer.list_checkpoints()) == 2
    checkpointer.keep = KeepEvery(DAY_S)
    checkpointer.save_and_keep_only()
    assert (tmp_path / "CKPT+start").is_dir()


def test_find_returns_the_best_first(checkpointer):
    """The order is by time, by a metric or by a function."""
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
    with pytest.raises(ValueError, match="at most one of"):
        checkpointer.find_checkpoints(min_key="loss", max_key="loss")


def test_a_metric_that_no_checkpoint_has_is_an_error_that_lists_those_there_are(checkpointer):
    """None is returned only if there is no checkpoint."""
    assert checkpointer.find_checkpoint(max_key="acc") is None
    assert checkpointer.recover_if_possible(max_key="acc") is None
    checkpointer.save_checkpoint(meta={"loss": 0.5, "WER": 9.0})
    for search in (checkpointer.find_checkpoint, checkpointer.recover_if_possible):
        with pytest.raises(ValueError, match=r"max_key must .* got 'acc'.* have WER, loss: name"):
            search(max_key="acc")
    assert checkpointer.find_checkpoint(min_key="loss", ckpt_predicate=lambda one: False) is None


def test_a_named_checkpoint_is_replaced_completely(checkpointer, model):
    """The new checkpoint has no file of the old one."""
    checkpointer.add_recoverable("extra", torch.nn.Linear(1, 1))
    checkpointer.save_checkpoint(name="last")
    del checkpointer.recoverables["extra"]
    saved = checkpointer.save_checkpoint(name="last")
    assert saved.path.name == "CKPT+last"
    assert not (saved.path / "extra.ckpt").exists()
    assert [path.name for path in saved.path.parent.glob(".*")] == [".brain.lock"]


def test_a_clock_set_back_hides_no_checkpoint(checkpointer, monkeypatch):
    """A new save is the newest, whatever the clock says."""
    checkpointer.save_checkpoint(meta={"loss": 1.0})
    monkeypatch.setattr("brain_ckpt.saving.plan.time.time", lambda: 1_000_000.0)
    checkpointer.save_checkpoint(meta={"loss": 2.0})
    checkpointer.save_checkpoint(meta={"loss": 3.0})
    assert [one.meta["loss"] for one in checkpointer.find_checkpoints()] == [3.0, 2.0, 1.0]


def test_saves_within_a_second_have_different_names(checkpointer):
    """The names are numbered as SpeechBrain numbers them."""
    names = {checkpointer.save_checkpoint().path.name for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("CKPT+") for name in names)


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "a\\b", "a\nb", "x" * 200, 3])
def test_an_invalid_name_is_refused_before_anything_is_written(name, checkpointer):
    """This holds for the names of checkpoints and recoverables."""
    with pytest.raises(ValueError, match="plain name"):
        checkpointer.save_checkpoint(name=name)
    with pytest.raises(ValueError, match="plain name"):
        checkpointer.add_recoverable(name, torch.nn.Linear(1, 1))
    assert list(checkpointer.checkpoints_dir.iterdir()) == []


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, torch.ones(2, dtype=torch.complex64), b"bytes", lambda: 0]
)
def test_meta_that_is_not_plain_is_refused_before_anything_is_written(value, checkpointer):
    """The error names the value."""
    with pytest.raises(TypeError, match=r"plain values.*meta\['loss'\]"):
        checkpointer.save_checkpoint(meta={"loss": value})
    assert list(checkpointer.checkpoints_dir.iterdir()) == []


def test_an_object_without_state_or_hooks_is_refused_when_it_is_added(checkpointer):
    """The error comes before the first save."""
    with pytest.raises(TypeError, match="add the two methods"):
        checkpointer.add_recoverable("x", object())
    with pytest.raises(AttributeError, match="mapping from names"):
        checkpointer.add_recoverables([1])


def test_a_repeated_name_replaces_the_object_and_names_differing_by_case_are_refused(checkpointer):
    """`fit` called twice adds its optimizer twice; `Model` and `model` together are a mistake."""
    other = torch.nn.Linear(2, 2)
    checkpointer.add_recoverable("model", other)
    assert checkpointer.recoverables["model"] is other
    with pytest.raises(ValueError, match="more than case"):
        checkpointer.add_recoverable("Model", other)


def test_a_directory_that_is_not_a_checkpoint_is_not_replaced(checkpointer):
    """The content of the directory is kept."""
    mine = checkpointer.checkpoints_dir / "CKPT+mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="which is none"):
        checkpointer.save_checkpoint(name="mine")
    assert (mine / "notes.txt").read_text() == "mine"
    assert checkpointer.list_checkpoints() == []


def test_a_file_as_checkpoints_dir_is_an_error(tmp_path):
    """The error comes when the checkpointer is made."""
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="name another"):
        Checkpointer(tmp_path / "file")


def test_a_failing_saver_leaves_no_files(checkpointer):
    """The error of the saver is the cause of the raised one."""

    def fail(obj, path):
        path.write_text("half")
        raise ZeroDivisionError("mine")

    checkpointer.add_recoverable("x", object(), lambda obj, path: None, fail)
    with pytest.raises(CheckpointSaveError, match="ZeroDivisionError: mine"):
        checkpointer.save_checkpoint()
    assert [path.name for path in checkpointer.checkpoints_dir.iterdir()] == [".brain.lock"]


def test_a_saver_that_writes_nothing_is_an_error(checkpointer):
    """The checkpoint would be incomplete."""
    checkpointer.add_recoverable("x", object(), lambda obj, path: None, lambda obj, path: None)
    with pytest.raises(CheckpointSaveError, match=r"did not write x.ckpt"):
        checkpointer.save_checkpoint()


def test_a_mismatched_shape_changes_no_object(tmp_path, model):
    """A mismatch is an error of the user: no older checkpoint is tried, and nothing is loaded."""
    first = torch.nn.Linear(3, 3)
    checkpointer = Checkpointer(tmp_path, {"first": first, "model": model})
    checkpointer.save_checkpoint()
    checkpointer.save_checkpoint()
    checkpointer.add_recoverable("model", torch.nn.Linear(2, 5))
    torch.nn.init.zeros_(first.weight)
    with pytest.raises(CheckpointMismatchError, match=r"'weight' of shape \(2, 2\).*\(5, 2\)"):
        checkpointer.recover_if_possible()
    assert not first.weight.any()


def test_a_part_can_be_restored_by_name_or_type(checkpointer, model):
    """Evaluation restores only the modules."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    checkpointer.add_recoverable("optimizer", optimizer)
    checkpointer.save_checkpoint()
    optimizer.param_groups[0]["lr"] = 0.1
    torch.nn.init.zeros_(model.weight)
    checkpointer.recover_if_possible(only=lambda name, obj: isinstance(obj, torch.nn.Module))
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert model.weight.any()


def test_a_missing_file_is_accepted_if_it_is_optional(checkpointer, tmp_path, model):
    """allow_partial_load makes all optional, and optional_load makes one optional."""
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


def test_random_number_generators_are_restored(checkpointer):
    """The generators of Python, NumPy and torch are restored."""
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
    """The error names the writer."""
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


def test_a_reader_beside_a_writer_always_finds_a_complete_checkpoint(
    tmp_path, workloads, processes
):
    """If retention deletes a listed checkpoint, the reader lists again."""
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


def test_a_reader_finds_the_successor_of_a_deleted_checkpoint(tmp_path, workloads):
    """The checkpoint is deleted between listing the names and reading the directories."""
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


def test_saves_and_deletions_are_logged_at_the_requested_level(checkpointer, caplog):
    """Each save and each deletion is logged once."""
    with caplog.at_level(logging.DEBUG):
        checkpointer.save_and_keep_only(verbosity=logging.DEBUG)
        checkpointer.save_and_keep_only(verbosity=logging.DEBUG)
    mine = [record for record in caplog.records if record.name.startswith("brain_ckpt")]
    assert {record.levelno for record in mine} == {logging.DEBUG}
    assert len(mine) == 3


def test_the_directory_can_be_changed(checkpointer, tmp_path):
    """The debug mode of Brain changes it."""
    checkpointer.save_checkpoint()
    checkpointer.checkpoints_dir = tmp_path / "other"
    assert checkpointer.list_checkpoints() == []
    checkpointer.save_checkpoint()
    assert len(list((tmp_path / "other").glob("CKPT*"))) == 1


pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
