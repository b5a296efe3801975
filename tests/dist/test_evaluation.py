"""Evaluation sharded over the ranks."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import brain_dist
from brain_dist import ExactMean


def test_in_one_process_the_shard_is_all_items():
    """The results keep their order."""
    assert list(brain_dist.shard_items("abc")) == ["a", "b", "c"]
    assert brain_dist.gather_sharded([1, 2]) == [1, 2]


def _evaluate(rank, n_batches):
    """Evaluate a set that the ranks do not divide; return losses, errors and their order."""
    torch.manual_seed(0)
    modules = {"m": nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))}
    batches = [torch.rand(1 + i % 4, 3) for i in range(n_batches)]
    brain_dist.wrap_modules(modules, device="cpu")
    modules["m"](torch.rand(4, 3)).sum().backward()
    modules["m"].eval()
    mean, wrong = ExactMean(), []
    with torch.no_grad(), brain_dist.local_forward(modules):
        for batch in brain_dist.shard_items(batches):
            output = modules["m"](batch)
            mean.add(output.square().mean(), weight=len(batch))
            wrong.append((output[:, 0] > output[:, 1]).tolist())
    examples = [one for batch in brain_dist.gather_sharded(wrong) for one in batch]
    return mean.result(), sum(examples) / len(examples), examples


@pytest.fixture
def one_process(ranks):
    return ranks(_evaluate, 1, 7)[0]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_a_sharded_evaluation_equals_that_of_one_process_to_the_last_digit(
    ranks, one_process, world_size
):
    """Seven batches of unequal size, which no number of ranks here divides; no rank hangs."""
    assert ranks(_evaluate, world_size, 7) == [one_process] * world_size


def test_a_rank_without_any_batch_does_not_hang(ranks):
    """Two batches for four ranks."""
    results = ranks(_evaluate, 4, 2)
    assert results == [ranks(_evaluate, 1, 2)[0]] * 4


def _sharded(rank):
    torch.manual_seed(0)

    def make():
        # Two blocks: FSDP2 gathers them in the order in which they have run.
        return nn.Sequential(
            nn.Sequential(nn.Linear(3, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 2))
        )

    modules, plain = {"m": make()}, make()
    plain.load_state_dict(modules["m"].state_dict())
    brain_dist.wrap_modules(modules, device="cpu", parallel="fsdp")
    x = torch.rand(2, 3)
    with torch.no_grad(), brain_dist.local_forward(modules):
        outputs = [modules["m"](x) for _ in range(rank)]
    assert all(torch.equal(output, plain(x)) for output in outputs)
    # After the block the parameters are sharded again, and a backward works.
    shapes = [p.to_local().shape[0] for p in modules["m"].parameters()]
    modules["m"](x).sum().backward()
    plain(x).sum().backward()
    for p, expected in zip(modules["m"].parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad.full_tensor(), expected.grad)
    return shapes


def test_fsdp_evaluates_unequal_numbers_of_batches(ranks):
    """A forward of FSDP2 gathers parameters, so rank 0 without a batch would leave rank 1."""
    assert ranks(_sharded, 2) == [[4, 4, 1, 1]] * 2


def _wrong_numbers(rank):
    with pytest.raises(
        ValueError, match=r"got \[0, 2\] results where 2 items are sharded as \[1, 1\]"
    ):
        brain_dist.gather_sharded([1] * (2 * rank))
    return True


def test_results_that_do_not_match_the_shards_are_refused(ranks):
    """They cannot be ordered."""
    assert ranks(_wrong_numbers, 2) == [True, True]


_VALUES = st.lists(st.tuples(st.floats(-1e200, 1e200), st.integers(1, 1000)), min_size=1)


@given(_VALUES, st.randoms(use_true_random=False))
def test_an_exact_mean_does_not_depend_on_the_order(pairs, order):
    """It is the quotient of the fsums of all values and weights."""
    expected = math.fsum(v * w for v, w in pairs) / math.fsum(w for _, w in pairs)
    order.shuffle(pairs)
    mean = ExactMean()
    for value, weight in pairs:
        mean.add(value, weight)
    assert mean.result() == expected


def test_an_exact_mean_loses_nothing():
    """A running sum would round the ones away."""
    mean = ExactMean()
    for value in (1e16, 1.0, 1.0, -1e16):
        mean.add(value)
    mean.add(torch.tensor(2.0), weight=4)
    assert mean.result() == 10 / 8
    assert mean.result() == 10 / 8, "result() changes nothing"


def test_a_mean_of_nothing_is_nan_and_of_nan_too():
    """Not zero, and not an error."""
    assert math.isnan(ExactMean().result())
    mean = ExactMean()
    for value in (1.0, math.inf, -math.inf):
        mean.add(value)
    assert math.isnan(mean.result())


def test_random_sums_are_fsums():
    """A thousand values of all magnitudes."""
    source = random.Random(0)
    values = [source.uniform(-1, 1) * 10.0 ** source.randint(-20, 20) for _ in range(1000)]
    mean = ExactMean()
    for value in values:
        mean.add(value)
    assert mean.result() == math.fsum(values) / 1000
