"""Two gloo ranks: equal steps, equal errors, and runs that resume."""

from __future__ import annotations

import math
import os
import signal

import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, TrainingStopped, seed_everything
from brain_dist import OutOfStepError, get_rank


class Rows(torch.utils.data.Dataset):
    """Twenty rows: with batches of four, the last round has one batch for two ranks."""

    def __init__(self):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(20, 4, generator=generator)
        self.y = torch.randn(20, 2, generator=generator)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.x[index], self.y[index], index


class Run(Brain):
    """A Brain with BatchNorm and dropout whose rank 1 can fail in different ways."""

    def __init__(self, *args, disturb, **kwargs):
        super().__init__(*args, **kwargs)
        self.disturb = disturb if get_rank() == 1 else "nothing"
        self.rows, self.means, self.draws = [], [], []

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        loss = torch.nn.functional.mse_loss(predictions, batch[1])
        return loss + math.nan if self.disturb == "nan" and self.step in (1, 2) else loss

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.rows.append([] if self.is_padding else batch[2].tolist())
        self.draws.append(torch.rand(()).item())
        if self.disturb == "stop" and len(self.rows) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.disturb == "kill" and len(self.rows) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.means.append((stage.name, stage_loss))


def train(rank, folder, disturb, hparams=None, options=None):
    """Train on this rank and return its batches, losses and weights."""
    seed_everything(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.3), torch.nn.Linear(6, 2)
    )
    counter = EpochCounter(2)
    checkpointer = Checkpointer(folder, {"model": model, "counter": counter})
    brain = Run(
        {"model": model},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        hparams,
        {
            "device": "cpu",
            "ckpt_interval_steps": 2,
            "nonfinite_patience": 1,
            "recover_attributes": False,
            **(options or {}),
        },
        checkpointer,
        disturb=disturb,
    )
    error = None
    try:
        loading = {"batch_size": 4, "shuffle": True}
        brain.fit(counter, Rows(), Rows(), None, loading, {"batch_size": 4})
    except (TrainingStopped, ValueError) as stopped:
        error = f"{type(stopped).__name__}: {stopped}"
    checkpointer.close()
    return {
        "error": error,
        "rows": brain.rows,
        "means": brain.means,
        "draws": brain.draws,
        "nonfinite": brain.nonfinite_count,
        "weights": [p.tolist() for p in brain.raw_modules.parameters()],
    }


def test_two_ranks_train_to_the_same_weights_and_means(ranks, tmp_path):
    """Both ranks have equal weights and means, and different random numbers.

    In SpeechBrain 1.1, SyncBatchNorm on gloo raised a ValueError, missing hparams an
    AttributeError, the seed was not used, and all ranks drew the same numbers.
    """
    a, b = ranks(train, 2, tmp_path / "save", "nothing")
    assert a["error"] is b["error"] is None
    assert a["weights"] == b["weights"]
    assert a["means"] == b["means"]
    assert [name for name, _ in a["means"]] == ["TRAIN", "VALID"] * 2
    assert len(a["rows"]) == len(b["rows"]) == 6
    rows = [row for batch in a["rows"][:3] + b["rows"][:3] for row in batch]
    assert sorted(rows) == list(range(20))
    assert not set(a["draws"]) & set(b["draws"])


def unshuffled_batches(rank, folder):
    """Return the batches of a training loader with shuffle=False and `sorting` in hparams."""
    brain = Brain(hparams={"sorting": "random"}, run_opts={"device": "cpu"})
    from brain_core import Stage

    loader = brain.make_dataloader(Rows(), Stage.TRAIN, batch_size=4, shuffle=False)
    return [batch[2].tolist() for batch in loader]


def test_shuffle_false_applies_on_several_ranks(ranks, tmp_path):
    """The order is not shuffled; in SpeechBrain 1.1 it was, and depended on hparams.sorting."""
    a, b = ranks(unshuffled_batches, 2, tmp_path)
    assert a == [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17]]
    assert b == [[4, 5, 6, 7], [12, 13, 14, 15], [18, 19]]


def test_a_nan_on_one_rank_is_counted_and_raised_on_both(ranks, tmp_path):
    """Both ranks raise the same error; in SpeechBrain 1.1 the other rank hung."""
    a, b = ranks(train, 2, tmp_path / "save", "nan")
    assert a["error"] == b["error"]
    assert a["error"].startswith("ValueError: Losses and gradients must be finite, but 2 batches")
    assert a["weights"] == b["weights"]
    assert "nan" not in str(a["weights"])
    assert a["nonfinite"] == b["nonfinite"] == 2


def test_a_stop_on_one_rank_saves_on_both_and_the_run_resumes_bit_for_bit(ranks, tmp_path):
    """Both ranks stop at the same step boundary, and the resumed run equals a whole one."""
    whole = ranks(train, 2, tmp_path / "whole", "nothing")
    stopped = ranks(train, 2, tmp_path / "save", "stop")
    assert [seen["error"] for seen in stopped] == [
        "_ScriptStopped: training stopped: SIGTERM (on rank 1 of 2)"
    ] * 2
    resumed = ranks(train, 2, tmp_path / "save", "nothing")
    for one, before, after in zip(whole, stopped, resumed, strict=True):
        assert after["weights"] == one["weights"]
        assert before["rows"] + after["rows"] == one["rows"]
        assert before["draws"] + after["draws"] == one["draws"]
        assert after["means"] == one["means"]


def test_a_killed_rank_ends_the_run_and_the_next_run_resumes_bit_for_bit(ranks, tmp_path):
    """The next run resumes from the last checkpoint that both ranks completed."""
    whole = ranks(train, 2, tmp_path / "whole", "nothing")
    killed = ranks.outcomes(train, 2, tmp_path / "save", "kill")
    assert killed[0][0] == "raised"
    assert killed[1] == ("exited", -signal.SIGKILL)
    resumed = ranks(train, 2, tmp_path / "save", "nothing")
    for one, after in zip(whole, resumed, strict=True):
        assert after["weights"] == one["weights"]
        assert one["rows"][-len(after["rows"]) :] == after["rows"]


class Sharded(Brain):
    """A Brain in which each batch has the same weight."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        self.losses.append(len(batch[0]))
        return torch.nn.functional.mse_loss(predictions, batch[1])


class Weighted(Sharded):
    """A Brain in which each sample has the same weight."""

    def loss_weight(self, batch):
        return len(batch[0])


def train_sharded(rank, folder, parallel, weighed_by, rows=20, epochs=2):
    """Train with DDP or FSDP2 and return the full_tensor state dict."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    counter = EpochCounter(epochs)
    checkpointer = Checkpointer(folder, {"model": model, "counter": counter})
    brain = (Weighted if weighed_by == "samples" else Sharded)(
        {"model": model},
        lambda p: torch.optim.AdamW(p, lr=0.01),
        run_opts={"device": "cpu", "parallel": parallel, "max_grad_norm": 0.5},
        checkpointer=checkpointer,
    )
    brain.losses = []
    brain.on_stage_end = lambda stage, loss, epoch: checkpointer.save_checkpoint()
    data = torch.utils.data.Subset(Rows(), range(rows))
    brain.fit(counter, data, train_loader_kwargs={"batch_size": 4, "shuffle": True})
    checkpointer.close()
    state = {name: full_tensor(value) for name, value in model.state_dict().items()}
    return {name.removeprefix("module."): value.tolist() for name, value in state.items()}


def full_tensor(value):
    """Return the full_tensor tensor of a value that may be a DTensor."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def assert_close(a, b):
    """Compare two state dicts up to rounding."""
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            torch.tensor(a[name]), torch.tensor(b[name]), rtol=2e-6, atol=1e-7
        )


def test_fsdp_trains_to_the_weights_of_ddp_with_the_same_keys(ranks, tmp_path):
    """Gradients are clipped by one norm over all shards."""
    ddp = ranks(train_sharded, 2, tmp_path / "ddp", "ddp", "batches")
    fsdp = ranks(train_sharded, 2, tmp_path / "fsdp", "fsdp", "batches")
    assert fsdp[0] == fsdp[1]
    assert_close(ddp[0], fsdp[0])


def test_an_fsdp_run_resumes_from_its_checkpoint_bit_for_bit(ranks, tmp_path):
    """The resumed run restores the sharded optimizer state."""
    whole = ranks(train_sharded, 2, tmp_path / "whole", "fsdp", "batches")
    ranks(train_sharded, 2, tmp_path / "save", "fsdp", "batches", 20, 1)
    resumed = ranks(train_sharded, 2, tmp_path / "save", "fsdp", "batches")
    assert resumed == whole


def test_with_sample_weights_two_ranks_and_one_process_take_the_same_steps(ranks, tmp_path):
    """With eighteen rows, the last batch is shorter and has a smaller weight."""
    two = ranks(train_sharded, 2, tmp_path / "two", "ddp", "samples", 18)
    assert_close(two[0], train_alone())


def train_alone():
    """Train in one process with two batches in a step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    brain = Weighted(
        {"model": model},
        lambda p: torch.optim.AdamW(p, lr=0.01),
        run_opts={"device": "cpu", "grad_accumulation_factor": 2, "max_grad_norm": 0.5},
    )
    brain.losses = []
    data = torch.utils.data.Subset(Rows(), range(18))
    kwargs = {"batch_size": 4, "shuffle": True}
    brain.fit(EpochCounter(2), data, train_loader_kwargs=kwargs)
    return {name: value.tolist() for name, value in model.state_dict().items()}


def evaluate_sharded(rank, own_loader):
    """Return the mean loss of 18 rows in five sharded batches, and this rank's batches."""
    brain = Sharded(
        {"model": torch.nn.Linear(4, 2)}, run_opts={"device": "cpu", "shard_evaluation": True}
    )
    brain.losses = []
    torch.nn.init.ones_(brain.modules.model.weight)
    torch.nn.init.zeros_(brain.modules.model.bias)
    data = torch.utils.data.Subset(Rows(), range(18))
    if own_loader:
        data = torch.utils.data.DataLoader(data, batch_size=4)
    return brain.evaluate(data, test_loader_kwargs={"batch_size": 4}), brain.losses


def test_a_sharded_evaluation_gives_the_mean_of_one_process(ranks):
    """The mean is equal on 2 and 3 ranks, from a dataset and a loader, and no row is repeated."""
    mean, batches = evaluate_sharded(0, own_loader=False)
    assert batches == [4, 4, 4, 4, 2]
    for own_loader in (False, True):
        for world_size in (2, 3):
            seen = ranks(evaluate_sharded, world_size, own_loader)
            for other, _ in seen:
                assert abs(other - mean) < 1e-12 * abs(mean)
            assert sum(len(losses) for _, losses in seen) == 5
            assert sum(sum(losses) for _, losses in seen) == 18


def out_of_step(rank):
    """Evaluate on one rank, and train on the other; return what was raised."""
    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.randn(8, 2))
    brain = Brain({"model": torch.nn.Linear(4, 2)}, run_opts={"device": "cpu"})
    try:
        brain.evaluate(data) if rank == 0 else brain.fit(range(1), data)
    except OutOfStepError as error:
        return str(error)
    return "nothing"


def test_ranks_that_are_out_of_step_are_told_what_each_one_does(ranks):
    """Instead of waiting for each other without a word."""
    for text in ranks(out_of_step, 2):
        assert "rank 0 is in evaluate()" in text
        assert "rank 1" in text
        assert "fit()" in text
