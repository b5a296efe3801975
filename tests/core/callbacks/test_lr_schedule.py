"""`LRSchedule`: the rates of each step, and after a restart."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from brain_core import LRSchedule, Stage
from brain_core.testing import assert_resumes_exactly


def rates(net, fit_args, schedule, epochs=3, **options):
    """Return the learning rate of each step of epochs of five batches; the first rate is 0.1."""
    found = []

    class Noting(net.Net):
        def on_fit_batch_start(self, batch, should_step):
            if should_step:
                found.append(round(self.optimizer.param_groups[0]["lr"], 6))

    brain = net.make(callbacks=[schedule], cls=Noting, **options)
    brain.fit(**fit_args(range(1, epochs + 1)))
    return found


def test_a_function_gives_a_factor_of_the_first_rate_per_step(net, fit_args):
    """Of the steps done and of all of them."""
    found = rates(net, fit_args, LRSchedule(lambda step, total: 1 - step / total), epochs=2)
    assert found == [round(0.1 * (1 - step / 10), 6) for step in range(10)]


def test_accumulation_is_counted(net, fit_args):
    """Five batches are three steps with two batches to a step."""
    schedule = LRSchedule(lambda step, total: 1 - step / total)
    found = rates(net, fit_args, schedule, epochs=2, grad_accumulation_factor=2)
    assert found == [round(0.1 * (1 - step / 6), 6) for step in range(6)]


def test_a_function_per_epoch_sets_the_rate_of_whole_epochs(net, fit_args):
    """Of the epochs done and of all of them."""
    schedule = LRSchedule(lambda epoch, total: 1 - epoch / total, per="epoch")
    assert rates(net, fit_args, schedule) == [0.1] * 5 + [0.066667] * 5 + [0.033333] * 5


def test_a_scheduler_of_torch_per_epoch(net, fit_args):
    """It is made of the optimizer when there is one."""
    schedule = LRSchedule(lambda optimizer: StepLR(optimizer, 1, gamma=0.5), per="epoch")
    assert rates(net, fit_args, schedule) == [0.1] * 5 + [0.05] * 5 + [0.025] * 5


def test_a_scheduler_of_torch_per_step(net, fit_args):
    """As in a loop that calls step() after each optimizer step."""
    found = rates(net, fit_args, LRSchedule(lambda o: CosineAnnealingLR(o, 10)), epochs=2)
    expected = [0.05 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_rate_is_reduced_on_a_plateau_of_the_validation(net, fit_args):
    """Its metric is the Brain's, here one that never improves."""

    class Flat(net.Net):
        def on_stage_end(self, stage, stage_loss, epoch=None):
            if stage is Stage.VALID:
                self.stage_stats["score"] = 1.0

    found = []

    class Noting(Flat):
        def on_stage_start(self, stage, epoch=None):
            found.append((stage.name, self.optimizer.param_groups[0]["lr"]))

    schedule = LRSchedule(
        lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0), per="epoch", key="score"
    )
    net.make(callbacks=[schedule], cls=Noting).fit(**fit_args(range(1, 4)))
    assert [rate for stage, rate in found if stage == "VALID"] == [0.1, 0.1, 0.05]


def test_a_scheduler_of_ones_own_optimizer_is_used_as_it_is(net, fit_args):
    """Where opt_class returns an optimizer that there is already."""
    brain = net.make()
    optimizer = torch.optim.SGD(brain.modules.parameters(), lr=1.0)
    schedule = LRSchedule(StepLR(optimizer, 1, gamma=0.5), per="epoch")
    again = net.make(callbacks=[schedule])
    again.opt_class = lambda _: optimizer
    again.fit(**fit_args(range(1, 4)))
    assert optimizer.param_groups[0]["lr"] == 0.25
    with pytest.raises(ValueError, match=r"got one of another. Give a function of the optimizer"):
        net.make(callbacks=[schedule]).fit(**fit_args(range(1)))


def test_each_group_and_optimizer_has_its_own_first_rate(net, fit_args):
    """Only the named optimizers are scheduled."""

    class Two(net.Net):
        def init_optimizers(self):
            first, last = self.modules.net[0], self.modules.net[3]
            groups = [{"params": [first.weight]}, {"params": [first.bias], "lr": 0.5}]
            self.optimizers_dict = {
                "first": torch.optim.SGD(groups, lr=1.0),
                "last": torch.optim.SGD(last.parameters(), lr=2.0),
            }

    brain = net.make(callbacks=[LRSchedule(lambda s, t: 0.5, optimizers=["first"])], cls=Two)
    brain.fit(**fit_args(range(1)))
    found = {n: [g["lr"] for g in o.param_groups] for n, o in brain.optimizers_dict.items()}
    assert found == {"first": [0.5, 0.25], "last": [2.0]}
    with pytest.raises(ValueError, match="needs lost in optimizers_dict, got first, last"):
        net.make(callbacks=[LRSchedule(lambda s, t: 1, optimizers=["lost"])], cls=Two).fit(
            **fit_args(range(1))
        )


def test_a_rate_that_is_a_tensor_is_changed_in_place(net, fit_args):
    """As compiled optimizers need it."""
    rate = torch.tensor(0.1)
    brain = net.make(callbacks=[LRSchedule(lambda step, total: 1 - step / total)])
    brain.opt_class = lambda parameters: torch.optim.Adam(parameters, lr=rate, foreach=False)
    brain.fit(**fit_args(range(1)))
    assert brain.optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.0


@pytest.mark.parametrize(
    "schedule",
    [
        lambda: LRSchedule(lambda step, total: 1 - step / total),
        lambda: LRSchedule(lambda optimizer: StepLR(optimizer, 3, gamma=0.5)),
    ],
)
def test_a_second_fit_begins_the_schedule_anew(net, fit_args, tmp_path, schedule):
    """From the first rate, although the optimizer's state goes on."""
    found = []

    class Noting(net.Net):
        def on_fit_batch_start(self, batch, should_step):
            found.append(self.optimizer.param_groups[0]["lr"])

    brain = net.make(tmp_path, [schedule()], cls=Noting)
    brain.fit(**fit_args(range(1, 2)))
    brain.fit(**fit_args(range(1, 2)))
    assert found[:5] == found[5:]
    assert found[0] == 0.1 > found[4]


class Unsized(torch.utils.data.IterableDataset):
    """A dataset without a length."""

    def __iter__(self):
        return iter(torch.randn(4, 3))


def test_a_total_that_is_not_known_is_an_error_only_where_it_is_needed(net):
    """A function of the first argument alone, and a limit of steps, do without a length."""

    def fit(schedule, **options):
        brain = net.make(callbacks=[LRSchedule(schedule)], **options)
        brain.fit(range(1), Unsized(), train_loader_kwargs={"batch_size": 2})
        return brain.optimizer.param_groups[0]["lr"]

    with pytest.raises(ValueError, match=r"needs the total number of steps .*have no length. Set"):
        fit(lambda step, total: 1 - step / total)
    assert fit(lambda step, _: 0.5**step) == pytest.approx(0.025)
    assert fit(lambda step, total: 1 - step / total, optimizer_step_limit=4) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((StepLR,), ValueError, "For a class of torch, write"),
        ((3,), ValueError, "needs a function of"),
        ((lambda step, total: 1, "batch"), ValueError, "per='step' or per='epoch', got 'batch'"),
    ],
)
def test_wrong_arguments_name_what_is_right(arguments, error, message):
    """When it is made."""
    with pytest.raises(error, match=message):
        LRSchedule(*arguments)


def test_a_schedule_that_cannot_work_is_an_error_when_fit_begins(net, fit_args):
    """No scheduler, a plateau per step, no optimizer."""
    for schedule, error, message in (
        (LRSchedule(lambda optimizer: 0.5), TypeError, "to return an LRScheduler, got 0.5"),
        (LRSchedule(lambda o: ReduceLROnPlateau(o, patience=1)), ValueError, "got per='step'"),
    ):
        with pytest.raises(error, match=message):
            net.make(callbacks=[schedule]).fit(**fit_args(range(1)))
    none = type("NoOptimizer", (net.Net,), {"init_optimizers": lambda self: None})
    brain = net.make(callbacks=[LRSchedule(lambda s, t: 1)], cls=none)
    with pytest.raises(ValueError, match=r"got no optimizer. Give the Brain an opt_class"):
        brain.fit(**fit_args(range(1)))


SCHEDULES = {
    "function per step": lambda: LRSchedule(lambda step, total: 1 - 0.9 * step / total),
    "function per epoch": lambda: LRSchedule(lambda n, total: 1 - n / total, "epoch"),
    "torch per step": lambda: LRSchedule(
        lambda o: OneCycleLR(o, max_lr=0.2, total_steps=30, cycle_momentum=True)
    ),
    "torch per epoch": lambda: LRSchedule(lambda o: StepLR(o, 1, gamma=0.5), "epoch"),
    "plateau": lambda: LRSchedule(
        lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=9.0), "epoch"
    ),
}


def test_a_killed_run_has_the_same_rates(net, fit_args):
    """A scheduler of torch, per epoch and per step at once."""
    assert_resumes_exactly(
        lambda folder: net.make(
            folder,
            [SCHEDULES["plateau"](), SCHEDULES["torch per step"]()],
            ckpt_interval_steps=2,
        ),
        lambda _: fit_args(range(1, 4), count=6),
        kills=[2, 7, 10],
    )


@pytest.mark.long
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_that_is_killed_often_has_the_same_rates(net, fit_args, name):
    """Each kind of schedule, killed after every other batch."""
    assert_resumes_exactly(
        lambda folder: net.make(folder, [SCHEDULES[name]()], ckpt_interval_steps=1),
        lambda _: fit_args(range(1, 5), count=6),
        kills=list(range(1, 20, 2)),
        timeout_s=600,
    )
