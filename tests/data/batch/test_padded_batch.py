"""Batches: access to their values, moving and casting."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from brain_data import BatchsizeGuesser, PaddedBatch, PaddedData, PaddingError, UnknownKeyError


def make_batch(**options):
    return PaddedBatch(
        [
            {"id": "a", "wav": torch.tensor([1.0]), "n": 1, "words": ["x"]},
            {"id": "b", "wav": torch.tensor([2.0, 1.0]), "n": 2, "words": ["y", "z"]},
        ],
        **options,
    )


def test_values_are_reached_by_attribute_key_position_and_unpacking():
    """All four return the same objects, in the order of the keys."""
    batch = make_batch()
    ids, (wavs, lengths), numbers, words = batch
    assert ids is batch.id is batch["id"] is batch.at_position(0)
    assert wavs is batch.wav.data
    assert lengths is batch.wav.lengths is batch["wav"][1]
    assert (numbers.tolist(), words) == ([1, 2], [["x"], ["y", "z"]])
    assert (len(batch), batch.batchsize, batch.keys()) == (2, 2, ["id", "wav", "n", "words"])
    assert "wav" in batch
    assert "sig" not in batch


def test_tensors_are_padded_and_their_lengths_are_relative():
    """The layout is SpeechBrain's."""
    batch = make_batch()
    assert isinstance(batch.wav, PaddedData)
    assert batch.wav.data.tolist() == [[1.0, 0.0], [2.0, 1.0]]
    assert batch.wav.lengths.tolist() == [0.5, 1.0]
    assert batch.wav.lengths.dtype is torch.float32


def test_a_value_can_be_replaced():
    """Recipes write an augmented signal back into the batch."""
    batch = make_batch()
    batch.wav = batch.wav.data * 2, batch.wav.lengths
    wavs, _ = batch["wav"]
    assert wavs[0, 0] == 2


def test_each_key_has_its_own_padding_value():
    """A key without a padding of its own is padded as all others."""
    batch = PaddedBatch(
        [{"x": torch.ones(1), "y": torch.ones(2)}, {"x": torch.ones(2), "y": torch.ones(1)}],
        padding_kwargs={"value": 7},
        per_key_padding_kwargs={"y": {"value": -100}},
    )
    assert batch.x.data[0].tolist() == [1, 7]
    assert batch.y.data[1].tolist() == [1, -100]


def test_a_padding_function_of_the_user_gets_the_tensors_of_a_key():
    """It may return any data and lengths."""
    batch = make_batch(padding_func=lambda tensors: (torch.stack([t[:1] for t in tensors]), "all"))
    assert batch.wav.data.tolist() == [[1.0], [2.0]]
    assert batch.wav.lengths == "all"
    assert batch.to(torch.float64).wav.data.dtype is torch.float64


def test_only_the_named_keys_are_padded():
    """Other keys are stacked if their tensors have one shape."""
    rows = [{"x": torch.tensor([i]), "y": torch.ones(i)} for i in (1, 2)]
    batch = PaddedBatch(rows, padded_keys=["y"])
    assert batch.x.tolist() == [[1], [2]]
    assert isinstance(batch.y, PaddedData)
    unpadded = PaddedBatch(rows, padded_keys=[], nonpadded_stack=False)
    assert [one.tolist() for one in unpadded.x] == [[1], [2]]
    assert [len(one) for one in PaddedBatch(rows, padded_keys=[]).y] == [1, 2]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], torch.int64),
        ([1.5, 2.0], torch.float64),
        ([1, 2.5], torch.float64),
        ([True, False], torch.bool),
        ([np.float32(1), np.float32(2)], torch.float32),
        ([torch.tensor(1), torch.tensor(2)], torch.int64),
    ],
)
def test_numbers_are_stacked(values, dtype):
    """The dtype does not depend on which row comes first."""
    batch = PaddedBatch([{"x": value} for value in values])
    assert batch.x.dtype is dtype
    assert batch.x.tolist() == [float(value) for value in values]


@pytest.mark.parametrize("values", [["a", "b"], [None, 1], [1, None], [2**70, 1], [{"k": 1}, {}]])
def test_values_that_cannot_be_stacked_stay_a_list(values):
    """Strings, None and integers of more than 64 bits are listed."""
    assert PaddedBatch([{"x": value} for value in values]).x == values


def test_arrays_become_tensors_in_containers_too():
    """NumPy arrays are padded like tensors unless conversion is turned off."""
    rows = [{"x": np.arange(n), "in": {"y": np.arange(n)}, "s": np.array(["a"])} for n in (1, 2)]
    batch = PaddedBatch(rows)
    assert batch.x.data.tolist() == [[0, 0], [0, 1]]
    assert isinstance(batch["in"][0]["y"], torch.Tensor)
    assert batch.s[0].tolist() == ["a"]
    kept = PaddedBatch(rows, apply_default_convert=False, nonpadded_stack=False)
    assert isinstance(kept.x[0], np.ndarray)


def test_lengths_stay_exact_when_the_data_is_cast():
    """123457 of 123904 samples in bfloat16 would be 123750 (SpeechBrain's)."""
    batch = PaddedBatch([{"wav": torch.zeros(n)} for n in (123_457, 123_904)])
    batch.to(torch.bfloat16)
    assert batch.wav.data.dtype is torch.bfloat16
    assert batch.wav.lengths.dtype is torch.float32
    assert (batch.wav.lengths * 123_904).round().tolist() == [123_457, 123_904]
    assert batch.wav.integer_lengths.tolist() == [123_457, 123_904]


@pytest.mark.parametrize("longest", [7_600, 10_000_019])
def test_integer_lengths_are_those_of_the_rows(longest):
    """Truncating relative lengths is off by one for many; rounding is, above eight million."""
    counts = [*range(1, longest, max(1, longest // 300)), longest]
    one = torch.zeros(1)
    batch = PaddedBatch([{"x": one.expand(n)} for n in counts[-3:]])
    assert batch.x.integer_lengths.tolist() == counts[-3:]
    lengths = torch.tensor([n / longest for n in counts if n < 2**22])
    data = PaddedData(one.expand(len(lengths), longest), lengths)
    assert data.integer_lengths.tolist() == [n for n in counts if n < 2**22]


def test_integers_are_not_cast_to_a_floating_dtype():
    """Token 257 would be 256 in bfloat16."""
    batch = PaddedBatch([{"tokens": torch.tensor([257]), "n": 257, "x": torch.ones(1)}])
    batch.to(torch.bfloat16)
    assert batch.tokens.data.tolist() == [[257]]
    assert batch.n.tolist() == [257]
    assert batch.x.data.dtype is torch.bfloat16
    assert batch.to(torch.int32).tokens.data.dtype is torch.int32
    assert batch.x.data.dtype is torch.int32


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("meta",), {}),
        ((torch.device("meta"), torch.float64), {}),
        (("meta", torch.float64, True), {}),
        (("meta",), {"dtype": torch.float64, "non_blocking": True}),
        ((), {"device": "meta", "dtype": torch.float64}),
        ((torch.ones(1, dtype=torch.float64, device="meta"),), {}),
        ((), {"tensor": torch.ones(1, dtype=torch.float64, device="meta")}),
    ],
)
def test_data_and_lengths_are_moved_to_one_device(args, kwargs):
    """Every signature of Tensor.to is supported; the lengths keep their dtype."""
    batch = PaddedBatch([{"x": torch.ones(2), "n": torch.tensor([1])}])
    assert batch.to(*args, **kwargs) is batch
    assert batch.x.data.device.type == batch.x.lengths.device.type == "meta"
    assert batch.n.data.device.type == "meta"
    assert batch.x.lengths.dtype is torch.float32
    assert batch.n.data.dtype is torch.int64
    cast = args != ("meta",) or kwargs
    assert batch.x.data.dtype is (torch.float64 if cast else torch.float32)


def test_images_take_a_memory_format():
    """The lengths have one dimension, and no memory format."""
    batch = PaddedBatch([{"x": torch.ones(2, 3, 4)}]).to("cpu", memory_format=torch.channels_last)
    assert batch.x.data.is_contiguous(memory_format=torch.channels_last)


def test_only_the_device_keys_move():
    """By default the keys that hold tensors are moved."""
    batch = make_batch(device_prep_keys=["n"]).to("meta")
    assert (batch.wav.data.device.type, batch.n.device.type) == ("cpu", "meta")
    assert make_batch().to("meta").id == ["a", "b"]


def test_nested_tensors_move_if_their_key_is_listed():
    """A list of dicts of tensors is moved as a whole."""
    rows = [{"x": {"y": [torch.ones(1)], "s": "text"}}]
    batch = PaddedBatch(rows, device_prep_keys=["x"]).to("meta")
    assert batch.x[0]["y"][0].device.type == "meta"
    assert batch.x[0]["s"] == "text"


def test_pinning_reaches_data_and_lengths(monkeypatch):
    """A stand-in replaces a device, which a test machine may lack."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    batch = make_batch()
    assert batch.pin_memory() is batch
    assert sorted(one.ndim for one in pinned) == [1, 1, 2]
    assert batch.wav.integer_lengths.tolist() == [1, 2]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_batch_can_be_cloned_and_pickled(clone):
    """The exact lengths are part of the copy."""
    batch = clone(make_batch())
    assert batch.wav.data.tolist() == [[1.0, 0.0], [2.0, 1.0]]
    assert batch.wav.integer_lengths.tolist() == [1, 2]
    assert batch.to(torch.float64).keys() == ["id", "wav", "n", "words"]


def test_a_batch_from_a_worker_is_complete():
    """The loader sends it through shared memory."""
    rows = [{"wav": torch.arange(float(n + 1))} for n in range(4)]
    loader = DataLoader(rows, batch_size=2, num_workers=1, collate_fn=PaddedBatch)
    assert [batch.wav.integer_lengths.tolist() for batch in loader] == [[1, 2], [3, 4]]


def test_an_unknown_key_is_named_with_the_nearest():
    """Those of the batch are listed."""
    with pytest.raises(UnknownKeyError, match=r"no 'wavs' \(did you mean 'wav'\?\); its keys are"):
        _ = make_batch()["wavs"]
    with pytest.raises(UnknownKeyError, match="no 'batchsize'"):
        _ = make_batch()["batchsize"]


def test_an_unknown_attribute_is_named_with_the_keys(monkeypatch):
    """Python's traceback suggests the nearest one; `hasattr` does not look for it."""
    batch = make_batch()
    monkeypatch.delattr("difflib.get_close_matches")
    assert not hasattr(batch, "tokens")
    with pytest.raises(AttributeError, match="no 'wavs'; its keys are") as caught:
        _ = batch.wavs
    assert (caught.value.name, caught.value.obj) == ("wavs", batch)


def test_a_key_that_is_a_method_of_the_batch_is_refused():
    """A key named "to" would replace batch.to."""
    with pytest.raises(ValueError, match=r"'to', a method.*\{'other': 'to'\}"):
        PaddedBatch([{"to": 1}])


def test_rows_with_different_keys_are_refused():
    """A row may neither lack a key nor have another one (SpeechBrain drops it)."""
    with pytest.raises(PaddingError, match=r"row 'b' has \['id', 'y'\], and row 'a' has"):
        PaddedBatch([{"id": "a", "x": 1}, {"id": "b", "y": 1}])
    with pytest.raises(PaddingError, match=r"row 'b' has \['id', 'y'\], and row 'a' has"):
        PaddedBatch([{"id": "a"}, {"id": "b", "y": 1}])


def test_a_row_without_a_tensor_is_named():
    """A function may return None for some rows."""
    with pytest.raises(PaddingError, match=r"'x' is padded.*row 'b' has a NoneType"):
        PaddedBatch([{"id": "a", "x": torch.ones(1)}, {"id": "b", "x": None}])


def test_shapes_that_differ_are_shown_with_their_key_and_rows():
    """Two and three channels cannot be padded into one batch."""
    with pytest.raises(
        PaddingError, match=r"'x' cannot be padded.*row 'a' \(5, 2\), row 'b' \(4, 3\)"
    ):
        PaddedBatch([{"id": "a", "x": torch.ones(5, 2)}, {"id": "b", "x": torch.ones(4, 3)}])


def test_an_empty_batch_is_refused():
    """The error refers to the sampler."""
    with pytest.raises(PaddingError, match="at least one row"):
        PaddedBatch([])


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(2, 3), 2),
        ((torch.zeros(2, 3), torch.zeros(5)), 2),
        ({"signal": torch.zeros(4)}, 4),
        ([[1, 2, 3], [4, 5, 6]], 3),
        (torch.tensor(1.0), 1),
        (7, 1),
        ("x", 1),
    ],
)
def test_the_size_of_any_batch_is_guessed(batch, size):
    """A batch without a size counts as one row."""
    assert BatchsizeGuesser()(batch) == size


def test_a_guesser_works_for_batches_of_different_types():
    """After a batch without a size too (SpeechBrain remembers the number 1 as its method)."""
    guesser = BatchsizeGuesser()
    assert [guesser(one) for one in (7, 7, make_batch(), torch.zeros(3), 7, (torch.zeros(4),))] == [
        *(1, 1, 2, 3, 1, 4)
    ]
    assert callable(guesser.method)


@pytest.mark.parametrize(
    ("values", "stacked"),
    [
        ([np.int64(1), np.int64(2)], torch.tensor([1, 2])),
        ([np.float32(0.5), np.float32(1)], torch.tensor([0.5, 1.0])),
        ([np.asarray(3), np.asarray(4)], torch.tensor([3, 4])),
        ([np.ones(2, np.float32)] * 2, torch.ones(2, 2)),
    ],
)
def test_numpy_numbers_that_are_not_converted_are_stacked(values, stacked):
    """As numbers of Python are; arrays of one shape too."""
    batch = PaddedBatch([{"x": value} for value in values], apply_default_convert=False)
    assert torch.equal(batch.x, stacked)
    assert batch.x.dtype == stacked.dtype


def test_arrays_of_text_remain_in_a_list():
    """They have no tensor."""
    words = [np.array(["a", "b"]), np.array(["c"])]
    batch = PaddedBatch([{"x": value} for value in words], apply_default_convert=False)
    assert all(one is other for one, other in zip(batch.x, words, strict=True))
