"""Averages of parameters."""

import gc
import weakref

import pytest
import torch

from brain_ckpt import (
    CheckpointDamagedError,
    Checkpointer,
    UnsafeCheckpointError,
    average_checkpoints,
    average_state_dicts,
)


def model_of(value):
    """A module with equal parameters and an integer buffer."""
    model = torch.nn.BatchNorm1d(2)
    for tensor in (*model.parameters(), model.running_mean, model.running_var):
        torch.nn.init.constant_(tensor, value)
    model.num_batches_tracked.fill_(int(value))
    return model


@pytest.fixture
def saved(tmp_path):
    """Save five checkpoints with the parameters 1 to 5."""
    model = model_of(0)
    checkpointer = Checkpointer(tmp_path / "save", {"model": model, "other": model_of(9)})
    for value in range(1, 6):
        model.load_state_dict(model_of(value).state_dict())
        checkpointer.save_checkpoint({"loss": abs(value - 3)})
    return checkpointer


def test_an_average_of_the_newest_can_be_loaded(saved):
    """SpeechBrain's recipes average in this way."""
    found = saved.find_checkpoints(max_num_checkpoints=3)
    average = average_checkpoints(found, recoverable_name="model")
    model = model_of(0)
    model.load_state_dict(average, strict=True)
    assert model.weight.tolist() == [4.0, 4.0]
    assert model.num_batches_tracked.item() == 5
    assert average["num_batches_tracked"].dtype == torch.int64


def test_states_are_read_one_at_a_time_from_any_iterable():
    """There is never more than one state besides the sum."""
    alive = []

    def states():
        for value in range(4):
            gc.collect()
            assert [reference for reference in alive if reference() is not None] == []
            tensor = torch.full((3,), float(value))
            alive.append(weakref.ref(tensor))
            yield {"w": tensor}
            del tensor

    assert average_state_dicts(states())["w"].tolist() == [1.5, 1.5, 1.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_summed_in_float32(dtype):
    """In float16 the sum of 4096 and 1 is 4096."""
    states = [{"w": torch.tensor([value], dtype=dtype)} for value in (4096.0, *[1.0] * 4095)]
    average = average_state_dicts(states)["w"]
    assert average.dtype == dtype
    assert average.item() == torch.tensor(8191 / 4096).to(dtype).item()


def test_doubles_and_complex_numbers_keep_their_precision():
    """Neither is cast to float32."""
    small = 1e-12
    states = [
        {"d": torch.tensor([value], dtype=torch.float64), "c": torch.tensor([value * 1j])}
        for value in (1.0, 1.0 + 2 * small)
    ]
    average = average_state_dicts(states)
    assert average["d"].item() == pytest.approx(1.0 + small, abs=1e-16)
    assert average["c"].dtype == torch.complex64


def test_the_inputs_and_their_shared_values_are_not_changed():
    """Integers and nested values are copied from the first state."""
    first = {"w": torch.zeros(2), "n": torch.tensor(3), "extra": {"names": ["a"]}}
    second = {"w": torch.ones(2), "n": torch.tensor(5), "extra": {"names": ["b"]}}
    average = average_state_dicts([first, second])
    average["w"].add_(1)
    average["n"].add_(1)
    average["extra"]["names"].append("c")
    assert first["w"].tolist() == [0, 0]
    assert (first["n"].item(), first["extra"]) == (3, {"names": ["a"]})
    assert second["w"].tolist() == [1, 1]


def test_the_average_of_one_state_is_a_copy():
    """The average does not share memory with the state."""
    state = {"w": torch.randn(3)}
    average = average_state_dicts([state])
    assert torch.equal(average["w"], state["w"])
    assert average["w"].data_ptr() != state["w"].data_ptr()


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([], "at least one state dict, got none"),
        ([{"a": torch.ones(1)}, {}], r"same keys, got number 2 that differs.*\['a'\]"),
        (
            [{}, {str(key): torch.ones(1) for key in range(8)}],
            r"\['0', '1', '2', '3', '4'\] and 3 more",
        ),
        ([{"a": torch.ones(2)}, {"a": torch.ones(3)}], r"same shapes, got \(3,\) for 'a'"),
        (
            [{"a": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.int64)}],
            r"same types of values, got torch\.int64 for 'a'",
        ),
        ([[torch.ones(1)]], "only state dicts can be averaged, got a list as number 1"),
    ],
)
def test_a_state_that_cannot_be_averaged_is_named(states, message):
    """Keys, shapes and types must be the same."""
    with pytest.raises(ValueError, match=message):
        average_state_dicts(states)


def test_a_missing_recoverable_is_named(saved):
    """The error also names the existing ones."""
    with pytest.raises(ValueError, match=r"hold 'lm' to be averaged, got \['model', 'other'\]"):
        average_checkpoints(saved.find_checkpoints(), "lm")


def test_a_damaged_file_is_not_averaged(saved):
    """Only files that are read must be intact."""
    found = saved.find_checkpoints(max_num_checkpoints=2)
    other = found[0].paramfiles["other"]
    other.write_bytes(b"x")
    average_checkpoints(found, "model")
    content = bytearray(found[1].paramfiles["model"].read_bytes())
    content[-1000] ^= 1
    found[1].paramfiles["model"].write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match=r"model\.ckpt must be intact"):
        average_checkpoints(found, "model")


def test_a_file_of_speechbrain_is_averaged_and_one_that_runs_code_is_not(tmp_path, speechbrain_run):
    """The file is compared with the checksums of the zip and read with weights_only."""
    checkpoints = Checkpointer(speechbrain_run / "stopped").find_checkpoints()
    average = average_checkpoints(checkpoints, "model")
    parts = [torch.load(one.paramfiles["model"], weights_only=True) for one in checkpoints]
    assert torch.equal(average["0.weight"], (parts[0]["0.weight"] + parts[1]["0.weight"]) / 2)
    torch.save({"w": test_the_average_of_one_state_is_a_copy}, tmp_path / "model.ckpt")
    bad = checkpoints[0]._replace(paramfiles={"model": tmp_path / "model.ckpt"})
    with pytest.raises(UnsafeCheckpointError, match="tensors and plain values only"):
        average_checkpoints([bad], "model")


def test_a_custom_loader_and_averager_are_called_as_in_speechbrain(saved):
    """The loader is called with (path, map_location=...), and the averager with an iterator."""
    told = []

    def loader(path, map_location):
        told.append((path.name, map_location))
        return 2

    found = saved.find_checkpoints(max_num_checkpoints=2)
    assert average_checkpoints(found, "model", loader, sum) == 4
    assert told == [("model.ckpt", "cpu")] * 2
