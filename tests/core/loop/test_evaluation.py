"""`--shard_evaluation`: the figures of one process, on any number of ranks."""

from __future__ import annotations

import pytest
import torch

from brain_core import Brain
from brain_dist import gather_sharded, get_rank

ROWS, BATCH = 37, 4  # ten batches, the last of one row: divided by neither 2, 3 nor 4 ranks


class Rows(torch.utils.data.Dataset):
    """Inputs, a class to find, and the row's number."""

    def __init__(self):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(ROWS, 8, generator=generator)
        self.y = torch.randint(5, (ROWS,), generator=generator)

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return self.x[index], self.y[index], index


class Classifier(Brain):
    """Keeps for each of its batches which rows were classified wrongly."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        wrong = predictions.argmax(-1) != batch[1]
        self.found.append(list(zip(batch[2].tolist(), wrong.tolist(), strict=True)))
        return torch.nn.functional.cross_entropy(predictions, batch[1])

    def on_stage_start(self, stage, epoch=None):
        self.found = []

    def on_stage_end(self, stage, stage_loss, epoch=None):
        # One item for each batch of the test set, in the test set's order, on every rank.
        rows = [row for batch in gather_sharded(self.found) for row in batch]
        self.order = [number for number, _ in rows]
        self.error_rate = 100 * sum(wrong for _, wrong in rows) / len(rows)


def evaluate(rank, parallel, as_loader):
    """Return the loss, the error rate, the order of rows and how many batches were done here."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Tanh(), torch.nn.Linear(16, 5)
    )
    model[1].running_mean.fill_(0.1 * get_rank())  # rank 0's counts, as in training
    brain = Classifier(
        {"model": model},
        run_opts={"device": "cpu", "shard_evaluation": True, "parallel": parallel},
    )
    brain.on_fit_start()  # wraps
    loading = {"batch_size": BATCH}
    data = torch.utils.data.DataLoader(Rows(), **loading) if as_loader else Rows()
    loss = brain.evaluate(data, test_loader_kwargs={} if as_loader else loading)
    return loss, brain.error_rate, brain.order, len(brain.found)


@pytest.mark.parametrize(
    ("parallel", "as_loader"),
    [("ddp", False), ("ddp", True), ("fsdp", False)],
    ids=["DDP", "DDP, a loader", "FSDP2"],
)
def test_loss_and_error_rate_are_those_of_one_process(ranks, parallel, as_loader):
    """Equal to twelve digits on 1, 2, 3 and 4 ranks; every row once, in the set's own order."""
    seen = {n: ranks(evaluate, n, parallel, as_loader) for n in (1, 2, 3, 4)}
    loss, error_rate, order, batches = seen[1][0]
    assert order == list(range(ROWS))
    assert batches == 10
    assert 0 < error_rate < 100
    for n, results in seen.items():
        print(  # noqa: T201 - the table
            f"{parallel:4} on {n}: loss {results[0][0]:.15f}, error rate {results[0][1]:.12f} %, "
            f"batches a rank {[done for *_, done in results]}"
        )
        for other_loss, other_rate, other_order, _ in results:
            assert abs(other_loss - loss) <= 1e-12 * loss
            assert other_rate == error_rate
            assert other_order == order
        assert sum(done for *_, done in results) == 10
        assert max(done for *_, done in results) == -(-10 // n)


def evaluate_whole(rank):
    """Evaluate without dealing out."""
    brain = Classifier({"model": torch.nn.Linear(8, 5)}, run_opts={"device": "cpu"})
    brain.on_stage_end = lambda stage, loss, epoch: None
    brain.evaluate(Rows(), test_loader_kwargs={"batch_size": BATCH})
    return [number for batch in brain.found for number, _ in batch]


def test_without_it_every_rank_sees_all(ranks):
    """As in SpeechBrain."""
    assert ranks(evaluate_whole, 3) == [list(range(ROWS))] * 3
