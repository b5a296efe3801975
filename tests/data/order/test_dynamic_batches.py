"""DynamicBatchSampler: its batches, its order, its limits."""

from __future__ import annotations

import logging
import math
import random
import statistics
from typing import Any

import numpy as np
import pytest
import torch

from brain_data import DynamicBatchSampler, DynamicItemDataset
from brain_data.order.sharding import ShardedPlan


def reference_batches(
    lengths: list[float], sampler: DynamicBatchSampler, order: list[int], *, drop_last: bool
) -> list[list[int]]:
    """Return the batches as SpeechBrain fills them, row by row."""
    edges, sizes = sampler.bucket_boundaries, sampler.bucket_sizes.tolist()
    filled: list[list[int]] = []
    open_batches: list[list[int]] = [[] for _ in sizes]
    for row in order:
        bucket = int(np.searchsorted(edges, lengths[row]))
        open_batches[bucket].append(row)
        if len(open_batches[bucket]) >= sizes[bucket]:
            filled.append(open_batches[bucket])
            open_batches[bucket] = []
    return filled if drop_last else filled + [batch for batch in open_batches if batch]


def reference_order(
    batches: list[list[int]], lengths: list[float], ordering: str, seed: int
) -> list[list[int]]:
    if ordering == "random":
        generator = torch.Generator().manual_seed(seed)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]
    return sorted(
        batches, key=lambda b: max(lengths[row] for row in b), reverse=ordering == "descending"
    )


def test_batches_equal_speechbrains() -> None:
    """Lengths, settings and epochs are random; without balancing the order is equal, too."""
    draw = random.Random(2)
    for _ in range(150):
        rows, limit = draw.randint(1, 150), draw.choice([100, 1000])
        lengths = [
            draw.choice([draw.randint(1, limit), draw.random() * limit]) for _ in range(rows)
        ]
        shuffle, drop_last = draw.random() < 0.6, draw.random() < 0.3
        ordering = draw.choice(["random", "ascending", "descending"])
        seed, epoch = draw.randint(0, 1000), draw.randint(0, 5)
        kwargs: dict[str, Any] = {
            "num_buckets": draw.choice([1, 2, 5, 20]), "lengths_list": lengths, "seed": seed,
            "shuffle": shuffle, "drop_last": drop_last, "batch_ordering": ordering,
            "max_batch_ex": draw.choice([None, None, 3]), "epoch": epoch,
        }  # fmt: skip
        ours = DynamicBatchSampler(range(rows), limit, balance_over=1, **kwargs)
        generator = torch.Generator().manual_seed(seed + epoch)
        order = torch.randperm(rows, generator=generator).tolist() if shuffle else list(range(rows))
        filled = reference_batches(lengths, ours, order, drop_last=drop_last)
        assert list(ours) == reference_order(filled, lengths, ordering, seed + epoch)
        assert len(ours) == len(filled)
        balanced = DynamicBatchSampler(range(rows), limit, **kwargs)
        assert sorted(balanced) == sorted(filled)
        assert len(balanced) == len(filled)


def test_lognormal_boundaries_are_quantiles_stretched_to_the_limit() -> None:
    """They are the exponential of the normal distribution's, which SpeechBrain takes from scipy."""
    sampler = DynamicBatchSampler([1], 90, num_buckets=12, lengths_list=[1])
    normal = statistics.NormalDist()
    quantiles = np.exp([normal.inv_cdf(share / 13) for share in range(1, 13)])
    expected = quantiles * 90 / quantiles[-1]
    np.testing.assert_allclose(sampler.bucket_boundaries, expected, rtol=1e-13)


def test_lognormal_boundaries_are_the_same_to_the_bit_everywhere() -> None:
    """Whatever the version of numpy, whose exponential differs in the last bit."""
    sampler = DynamicBatchSampler([1], 60, num_buckets=4, lengths_list=[1])
    expected = "0x1.64adfc8ed049ap+3 0x1.412b0e9d58e83p+4 0x1.0a8965aa3f3aep+5 0x1.e000000000000p+5"
    assert [edge.hex() for edge in sampler.bucket_boundaries.tolist()] == expected.split()


def test_a_boundary_that_differs_in_its_last_bit_is_no_other_plan() -> None:
    """A position that was saved on another machine is valid."""
    edges = [10.0, np.nextafter(20.0, 0.0), 60.0]
    samplers = [
        DynamicBatchSampler([1], 60, bucket_boundaries=each, lengths_list=[1])
        for each in (edges, [10.0, 20.0, 60.0], [10.0, 20.1, 60.0])
    ]
    first, same, other = (sampler.settings() for sampler in samplers)
    assert first == same != other


def test_quantile_warping_gives_buckets_of_equally_many_rows() -> None:
    """It is the other option to place the boundaries."""
    lengths = np.random.default_rng(1).lognormal(3, 1, 1000).clip(1, 500)
    sampler = DynamicBatchSampler(
        range(1000), 500, num_buckets=10, lengths_list=lengths, warping="quantile"
    )
    counts = np.bincount(np.searchsorted(sampler.bucket_boundaries, lengths))
    assert counts.tolist() == [100] * 10


def test_no_batch_is_longer_than_the_limit_when_padded() -> None:
    """None has more rows than max_batch_ex."""
    lengths = np.random.default_rng(1).integers(1, 100, 500).tolist()
    sampler = DynamicBatchSampler(
        range(500), 100, num_buckets=8, lengths_list=lengths, max_batch_ex=20
    )
    for batch in sampler:
        durations = sampler.get_durations(batch)
        assert max(durations) * len(durations) <= 100
        assert len(batch) <= 20
        assert durations == [lengths[row] for row in batch]


def test_each_epoch_has_other_batches_in_another_order() -> None:
    """SpeechBrain repeats those of the first epoch in one process."""
    lengths = np.random.default_rng(1).integers(1, 100, 300).tolist()
    sampler = DynamicBatchSampler(range(300), 100, num_buckets=8, lengths_list=lengths)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert list(sampler) == epochs[-1]
    assert len({frozenset(map(frozenset, batches)) for batches in epochs}) == 3
    sampler.set_epoch(0)
    assert list(sampler) == epochs[0]


@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_ranks_have_similar_total_lengths_in_a_step(world_size: int) -> None:
    """They differ by less than 5 % in the median, with the default settings."""
    lengths = np.random.default_rng(1).lognormal(5, 0.6, 4000).clip(1, 2000)
    sampler = DynamicBatchSampler(range(4000), 8000, num_buckets=20, lengths_list=lengths)
    shards = ShardedPlan(sampler.plan(), world_size)
    spread = []
    for number in range(shards.num_rounds):
        totals = [sum(sampler.get_durations(shards.rows(number, r)[1])) for r in range(world_size)]
        spread.append((max(totals) - min(totals)) / max(totals))
    assert statistics.median(spread) < 0.05


def test_lengths_come_from_the_rows_of_a_dynamic_item_dataset() -> None:
    """length_func or the key "duration" gives them."""
    data = {f"utt{i}": {"duration": float(1 + i % 5), "words": "a " * i} for i in range(20)}
    dataset = DynamicItemDataset(data)
    assert DynamicBatchSampler(dataset, 10, 3).get_durations([0, 4]) == [1.0, 5.0]
    by_words = DynamicBatchSampler(dataset, 40, 3, lambda row: len(row["words"]))
    assert by_words.get_durations([3]) == [6.0]


def test_a_row_longer_than_the_limit_is_named() -> None:
    """No batch could hold it."""
    data = {f"utt{i}": {"duration": 3 + i} for i in range(4)}
    with pytest.raises(ValueError, match=r"max_batch_length=5.*row 3 \(id 'utt3'\): 6\.0"):
        DynamicBatchSampler(DynamicItemDataset(data), 5, num_buckets=2)


def test_rows_longer_than_the_limit_come_alone_if_a_boundary_is_above_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in SpeechBrain; one warning names the first of them."""
    lengths = [4.0, 25.0, 5.0, 90.0, 15.0, 12.0]
    sampler = DynamicBatchSampler(
        range(6), 20, bucket_boundaries=[10, 30], lengths_list=lengths, shuffle=False,
        batch_ordering="ascending",
    )  # fmt: skip
    assert list(sampler) == [[0, 2], [5], [4], [1], [3]]
    assert len(sampler) == 5
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "2 rows" in record.message
    assert "(row 1: 25.0, row 3: 90.0)" in record.message
    with pytest.raises(ValueError, match=r"at most max_batch_length=20, got 2 rows"):
        DynamicBatchSampler(range(6), 20, bucket_boundaries=[10, 20], lengths_list=lengths)


def test_a_row_without_a_length_is_named() -> None:
    """The error of the function is the cause."""
    dataset = DynamicItemDataset({"a": {"duration": 1}, "b": {"words": "x"}})
    with pytest.raises(ValueError, match=r"got KeyError.*'duration'.* row 1 \(id 'b'\)") as caught:
        DynamicBatchSampler(dataset, 5, num_buckets=2)
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_file_of_a_row_that_is_too_long_is_named(tmp_path: Any) -> None:
    """The error names the id of the row, too."""
    (tmp_path / "train.json").write_text('{"utt0": {"duration": 9}}')
    dataset = DynamicItemDataset.from_json(tmp_path / "train.json")
    with pytest.raises(ValueError, match=r"train\.json .*id 'utt0'\): 9\.0"):
        DynamicBatchSampler(dataset, 5, num_buckets=2)


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf])
def test_an_invalid_length_is_named(bad: float) -> None:
    """It is negative, infinite or not a number."""
    with pytest.raises(ValueError, match=r"finite length of at least 0.*row 1: "):
        DynamicBatchSampler(range(2), 5, num_buckets=2, lengths_list=[1, bad])


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({}, RuntimeError, "num_buckets or bucket_boundaries is required"),
        ({"num_buckets": 0}, ValueError, "num_buckets must be at least 1"),
        ({"num_buckets": 2, "lengths_list": [1]}, ValueError, "each of the 3 rows, got shape"),
        ({"num_buckets": 2, "batch_ordering": "up"}, ValueError, "batch_ordering must be one of"),
        ({"num_buckets": 2, "warping": "linear"}, ValueError, "warping must be one of"),
        ({"bucket_boundaries": [3, 2]}, ValueError, "ascending and without duplicates"),
        ({"bucket_boundaries": [2, 2]}, ValueError, "ascending and without duplicates"),
        ({"bucket_boundaries": [-1, 2]}, ValueError, "must be non-negative"),
        ({"num_buckets": 2, "lengths_list": None}, NotImplementedError, "give lengths_list"),
    ],
)
def test_invalid_arguments_are_refused(kwargs: Any, error: Any, words: str) -> None:
    """The error is raised before the first batch."""
    with pytest.raises(error, match=words):
        DynamicBatchSampler([1, 2, 3], 10, **{"lengths_list": [1, 2, 3], **kwargs})


def test_boundaries_may_be_given_and_longer_rows_are_batches_of_one() -> None:
    """A boundary of 0 is for rows without length."""
    lengths = [0, 0, 0, 2, 2, 9, 9]
    sampler = DynamicBatchSampler(
        lengths, 10, bucket_boundaries=[0, 2], lengths_list=lengths, shuffle=False,
        batch_ordering="ascending",
    )  # fmt: skip
    assert list(sampler) == [[0, 1, 2], [3, 4], [5], [6]]


def test_the_callers_arguments_are_not_modified() -> None:
    """There is no mutable default, and no plan before it is needed."""
    boundaries, lengths = [2, 5], [1, 4]
    for _ in range(2):
        sampler = DynamicBatchSampler(
            range(2), 10, bucket_boundaries=boundaries, lengths_list=lengths
        )
        assert len(sampler) == 2
    assert (boundaries, lengths) == ([2, 5], [1, 4])


def test_an_empty_dataset_has_no_batches() -> None:
    """This holds for any order."""
    for ordering in ("random", "ascending"):
        sampler = DynamicBatchSampler(
            [], 10, num_buckets=2, lengths_list=[], batch_ordering=ordering
        )
        assert list(sampler) == []
        assert len(sampler) == 0


def test_a_dataset_smaller_than_a_batch_has_no_full_batch() -> None:
    """All its rows in one batch are not a full one, where no number of rows limits a batch."""
    options: dict[str, Any] = {"lengths_list": [3.0, 3.0], "drop_last": True}
    options["bucket_boundaries"] = [5]  # a batch may have six rows
    assert list(DynamicBatchSampler([0, 1], 30, **options)) == []
    assert len(DynamicBatchSampler([0, 1], 30, **options)) == 0
    assert len(DynamicBatchSampler([0, 1], 30, max_batch_ex=2, **options)) == 1


def test_statistics_are_logged_at_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    """Those of batches are logged in epoch 0 if verbose."""
    caplog.set_level(logging.INFO)
    DynamicBatchSampler(range(2), 10, num_buckets=2, lengths_list=[1, 4], verbose=True).plan()
    assert caplog.records == []
    caplog.set_level(logging.DEBUG)
    DynamicBatchSampler(range(2), 10, num_buckets=2, lengths_list=[1, 4], verbose=True).plan()
    assert "bucket 0: lengths over 0.0" in caplog.text
    assert "of it padding" in caplog.text
