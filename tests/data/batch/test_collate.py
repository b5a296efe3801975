"""Padding, compared with a plain implementation, and its errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_data import PaddedBatch, PaddingError, batch_pad_right, undo_padding

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda ns: max(ns) > 0)


@settings(max_examples=50, deadline=None)
@given(
    LENGTHS,
    st.lists(st.integers(1, 3), max_size=2),
    st.sampled_from([0, -100, 7]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.float64]),
)
def test_padding_equals_a_tensor_filled_row_by_row(lengths, rest, value, dtype):
    """Lengths of zero, further dimensions, and dtypes that NumPy lacks are padded alike."""
    tensors = [(torch.randn(n, *rest) * 9).to(dtype) for n in lengths]
    data, relative = batch_pad_right(tensors, value=value)
    expected = torch.full((len(lengths), max(lengths), *rest), value, dtype=dtype)
    for row, one in zip(expected, tensors, strict=True):
        row[: len(one)] = one
    assert torch.equal(data, expected)
    assert torch.equal(relative, torch.tensor([n / max(lengths) for n in lengths]))


@settings(max_examples=50, deadline=None)
@given(LENGTHS)
def test_undo_padding_returns_the_rows(lengths):
    """Relative lengths and lengths in steps give the same rows."""
    rows = [list(range(n)) for n in lengths]
    batch = PaddedBatch([{"x": torch.tensor(row, dtype=torch.long)} for row in rows])
    assert undo_padding(*batch.x) == rows
    assert undo_padding(batch.x.data, batch.x.integer_lengths) == rows


def test_one_tensor_is_not_a_view_of_the_row():
    """Changing the batch in place does not change a dataset that keeps its tensors."""
    row = torch.ones(3)
    data, _ = batch_pad_right([row])
    data.zero_()
    assert row.tolist() == [1, 1, 1]


@pytest.mark.parametrize("mode", ["replicate", "reflect"])
def test_other_modes_pad_with_the_row_s_own_values(mode):
    """SpeechBrain's modes work for vectors and for features."""
    filled = {"replicate": [0, 1, 2, 2, 2], "reflect": [0, 1, 2, 1, 0]}[mode]
    data, _ = batch_pad_right([torch.arange(3.0), torch.arange(5.0)], mode=mode)
    assert data[0].tolist() == filled
    wide, _ = batch_pad_right(
        [torch.arange(3.0)[:, None].expand(3, 2), torch.ones(5, 2)], mode=mode
    )
    assert wide[0, :, 1].tolist() == filled


def test_gradients_flow_through_padding():
    """Padding may be used inside a model."""
    short, long = torch.ones(1, requires_grad=True), torch.ones(2)
    data, _ = batch_pad_right([short, long])
    (data * 3).sum().backward()
    assert short.grad.tolist() == [3]


def test_mixed_dtypes_are_promoted():
    """Integers and floats are padded as floats, whichever comes first."""
    whole, half = torch.tensor([1]), torch.tensor([0.5, 1])
    assert batch_pad_right([whole, half])[0].tolist() == [[1.0, 0.0], [0.5, 1.0]]
    assert batch_pad_right([half, whole])[0].tolist() == [[0.5, 1.0], [1.0, 0.0]]


def test_a_batch_may_consist_of_empty_tensors():
    """Every row may be without words."""
    data, lengths = batch_pad_right([torch.ones(0, 2)] * 2)
    assert (data.shape, lengths.tolist()) == ((2, 0, 2), [1.0, 1.0])


@pytest.mark.parametrize(
    "tensors",
    [
        [torch.ones(2), torch.ones(2, 1)],
        [torch.ones(2, 1), torch.ones(2, 2)],
        [torch.tensor(1)] * 2,
    ],
)
def test_shapes_that_do_not_fit_are_refused(tensors):
    """Only the first dimension may vary, and there must be one."""
    with pytest.raises(PaddingError, match=r"agree in all but the first; got \("):
        batch_pad_right(tensors)


def test_an_empty_list_cannot_be_padded():
    """An empty list has no shape."""
    with pytest.raises(PaddingError, match="at least one tensor"):
        batch_pad_right([])


def test_one_number_is_padded_as_one_step():
    """A batch of one row takes a tensor without dimensions."""
    data, lengths = batch_pad_right((torch.tensor(3),))
    assert (data.tolist(), data.dtype, lengths.tolist()) == ([3], torch.int64, [1.0])


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda lengths: lengths.unsqueeze(1), id="a column"),
        pytest.param(list, id="a list of tensors"),
        pytest.param(lambda lengths: tuple(lengths.unsqueeze(1)), id="tensors of one element"),
        pytest.param(lambda lengths: lengths.tolist(), id="numbers"),
        pytest.param(lambda lengths: lengths.numpy(), id="an array"),
        pytest.param(lambda lengths: lengths.numpy().reshape(-1, 1), id="a column of an array"),
    ],
)
def test_undo_padding_takes_lengths_in_any_form(form):
    """A beam search returns a column; relative lengths and steps alike."""
    batch = torch.arange(12).reshape(3, 4)
    rows = [[0, 1], [4, 5, 6, 7], []]
    assert undo_padding(batch, form(torch.tensor([0.5, 1.0, 0.0]))) == rows
    assert undo_padding(batch, form(torch.tensor([2, 4, 0]))) == rows


def test_lengths_of_another_batch_are_refused():
    """Lengths that do not match the batch would truncate it silently."""
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and 1 lengths"):
        undo_padding(torch.ones(2, 3), torch.ones(1))
