"""Defects of SpeechBrain 1.1's checkpoints.py and repro.py, one test for each."""

import itertools
import logging
import math
import random

import pytest
import torch

from brain_ckpt import (
    Checkpointer,
    CheckpointMismatchError,
    NoIntactCheckpointError,
    RNGState,
    UnsafeCheckpointError,
    average_state_dicts,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
    torch_recovery,
)
from brain_ckpt.ranks import agreement


def model():
    return torch.nn.Linear(2, 2)


def test_a_nan_is_never_best_and_displaces_nothing(tmp_path):
    """The order of the losses does not matter."""
    values = [math.nan, 0.1, 0.2, 0.3]
    for number, order in enumerate(itertools.permutations(values)):
        checkpointer = Checkpointer(tmp_path / str(number), {"model": model()})
        for value in order:
            checkpointer.save_and_keep_only(
                meta={"loss": value}, min_keys=["loss"], keep_recent=False
            )
        assert checkpointer.find_checkpoint(min_key="loss").meta["loss"] == 0.1
        assert len(checkpointer.list_checkpoints()) == 1
        checkpointer.close()


def test_importance_keys_do_not_grow_from_call_to_call(tmp_path):
    """keep_recent=False applies after a call with True, and the caller's list is not changed."""
    checkpointer = Checkpointer(tmp_path, {"model": model()})
    keys = []
    checkpointer.save_and_keep_only(meta={"loss": 0.1}, importance_keys=keys)
    checkpointer.save_and_keep_only(
        meta={"loss": 0.2}, importance_keys=keys, min_keys=["loss"], keep_recent=False
    )
    assert keys == []
    assert [one.meta["loss"] for one in checkpointer.list_checkpoints()] == [0.1]


def test_an_override_of_a_marked_method_is_called(tmp_path):
    """The best score of the stopper is saved although the subclass has no marks."""

    @register_checkpoint_hooks
    class Counter:
        current = 0

        @mark_as_saver
        def save(self, path):
            path.write_text(str(self.current))

        @mark_as_loader
        def load(self, path, end_of_epoch):
            self.current = int(path.read_text())

    class Stopper(Counter):
        best = 0.0

        def save(self, path):
            path.write_text(f"{self.current} {self.best}")

        def load(self, path, end_of_epoch):
            current, best = path.read_text().split()
            self.current, self.best = int(current), float(best)

    stopper = Stopper()
    stopper.current, stopper.best = 3, 0.25
    Checkpointer(tmp_path, {"counter": stopper}).save_checkpoint()
    again = Stopper()
    Checkpointer(tmp_path, {"counter": again}).recover_if_possible()
    assert (again.current, again.best) == (3, 0.25)


def test_a_meta_file_with_numpy_values_needs_no_code(tmp_path):
    """NumPy values and tensors become plain numbers."""
    import numpy as np

    checkpointer = Checkpointer(tmp_path, {"model": model()})
    saved = checkpointer.save_checkpoint(
        meta={"a": np.float32(0.5), "b": torch.tensor(2), "c": np.array([1.5])}
    )
    assert "!!" not in (saved.path / "CKPT.yaml").read_text()
    meta = checkpointer.find_checkpoint().meta
    assert (meta["a"], meta["b"], meta["c"]) == (0.5, 2, 1.5)
    assert {type(meta[key]) for key in "abc"} == {float, int}


def test_a_crash_during_a_save_leaves_no_listed_checkpoint(tmp_path):
    """The meta file is written last but one, to a directory that is not listed."""
    checkpointer = Checkpointer(tmp_path, {"model": model()})
    seen = []
    checkpointer.add_recoverable(
        "late",
        object(),
        lambda obj, path: None,
        lambda obj, path: (seen.extend(checkpointer.list_checkpoints()), path.write_text("1")),
    )
    checkpointer.save_checkpoint()
    assert seen == []


def test_a_broken_checkpoint_is_passed_over(tmp_path, caplog):
    """An empty CKPT.yaml and garbage parameters are logged."""
    checkpointer = Checkpointer(tmp_path, {"model": model()})
    good = checkpointer.save_checkpoint()
    empty, garbage = checkpointer.save_checkpoint(), checkpointer.save_checkpoint()
    (empty.path / "CKPT.yaml").write_text("")
    (garbage.path / "model.ckpt").write_bytes(b"garbage")
    with caplog.at_level(logging.WARNING):
        assert checkpointer.recover_if_possible() == good
    assert str(empty.path) in caplog.text
    assert str(garbage.path) in caplog.text


def test_a_missing_file_is_named_however_the_recoverable_was_added(tmp_path):
    """It was added by the constructor, by add_recoverables or in the mapping itself."""
    Checkpointer(tmp_path, {"model": model()}).save_checkpoint()
    by_constructor = Checkpointer(tmp_path, {"model": model(), "other": model()})
    by_mapping = Checkpointer(tmp_path, {"model": model()})
    by_mapping.recoverables["other"] = model()
    for checkpointer in (by_constructor, by_mapping):
        with pytest.raises(RuntimeError, match=r"none for 'other' \(it holds 'model'\)"):
            checkpointer.recover_if_possible()


def test_the_first_rank_chooses_the_checkpoint(tmp_path, monkeypatch):
    """Listing and choosing run inside one call on the first rank."""
    checkpointer = Checkpointer(tmp_path, {"model": model()})
    saved = checkpointer.save_checkpoint()
    depth, decided = [], []
    listing = checkpointer._directory.store.listing

    def decide(action):
        depth.append(1)
        decided.append(agreement.run_on_first_rank(action))
        depth.pop()
        return decided[-1]

    def list_in_a_decision():
        assert depth
        return listing()

    monkeypatch.setattr("brain_ckpt.loading.reader.run_on_first_rank", decide)
    monkeypatch.setattr(checkpointer._directory.store, "listing", list_in_a_decision)
    assert checkpointer.recover_if_possible() == saved
    assert decided[0].checkpoints == [saved]


def test_a_pickle_with_code_is_refused(tmp_path):
    """weights_only is passed explicitly, independent of torch's default."""
    path = tmp_path / "state.ckpt"
    torch.save({"weight": Exception}, path)
    with pytest.raises(UnsafeCheckpointError, match="trusted=True"):
        torch_recovery(model(), path, end_of_epoch=True)


def test_an_average_does_not_change_its_inputs():
    """It sums in float32, keeps integers and checks the keys."""
    states = [
        {"w": torch.full((2,), value, dtype=torch.float16), "n": torch.tensor(count)}
        for value, count in ((1.0, 10), (2.0, 20))
    ]
    states[0]["big"] = states[1]["big"] = torch.full((1,), 60000.0, dtype=torch.float16)
    average = average_state_dicts(states)
    assert average["w"].tolist() == [1.5, 1.5]
    assert average["w"].dtype == torch.float16
    assert average["big"].item() == 60000.0  # the sum overflows float16
    assert average["n"].dtype == torch.int64
    assert states[0]["w"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"same keys.*'n'"):
        average_state_dicts([states[0], {"w": states[1]["w"], "big": states[1]["big"]}])


def test_a_name_with_dataloader_is_required_like_any_other(tmp_path):
    """Only optional_load makes a recoverable optional."""
    Checkpointer(tmp_path, {"model": model()}).save_checkpoint()
    checkpointer = Checkpointer(tmp_path, {"model": model(), "dataloader-TRAIN": model()})
    with pytest.raises(CheckpointMismatchError, match="'dataloader-TRAIN'"):
        checkpointer.recover_if_possible()


def test_python_and_numpy_generators_are_saved(tmp_path):
    """SpeechBrain's SaveableGenerator saves only torch's."""
    import numpy as np

    checkpointer = Checkpointer(tmp_path)
    checkpointer.add_recoverable("rng", RNGState(), per_rank=True)
    saved = checkpointer.save_checkpoint()
    expected = (random.random(), np.random.rand(), torch.rand(()).item())
    checkpointer.recover_if_possible()
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    assert (saved.path / "ranks" / "0" / "rng.pt").is_file()


def test_a_directory_of_broken_checkpoints_is_an_error(tmp_path):
    """SpeechBrain crashes on it; starting over would lose the run."""
    saved = Checkpointer(tmp_path, {"model": model()}).save_checkpoint()
    (saved.path / "model.ckpt").write_bytes(b"")
    with pytest.raises(NoIntactCheckpointError, match=r"model\.ckpt"):
        Checkpointer(tmp_path, {"model": model()}).recover_if_possible()
