"""When callbacks are called, and what they cost."""

from __future__ import annotations

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, Callback, Stage
from brain_core.callbacks.runner import CallbackRunner


class Recorder(Callback):
    """Records its calls in a list that may be shared."""

    def __init__(self, calls, name=""):
        self.calls, self.name = calls, name

    def on_fit_start(self, brain, *, is_resumed):
        self.calls.append(f"{self.name}fit_start" + (" resumed" if is_resumed else ""))

    def on_stage_start(self, brain, stage, epoch):
        self.calls.append(f"{self.name}start {stage.name} {epoch}")

    def on_fit_batch_end(self, brain, batch, loss):
        self.calls.append(f"{self.name}batch")

    def on_optimizer_step(self, brain, *, is_taken):
        self.calls.append(f"{self.name}step" + ("" if is_taken else " skipped"))

    def on_stage_end(self, brain, stage, stats, epoch):
        self.calls.append(f"{self.name}end {stage.name} {sorted(stats)}")

    def on_fit_end(self, brain):
        self.calls.append(f"{self.name}fit_end")


def test_callbacks_are_called_in_the_order_of_the_loop(net, fit_args):
    """Three batches, two to a step: the last step has one."""
    calls = []
    brain = net.make(callbacks=[Recorder(calls)], grad_accumulation_factor=2)
    brain.fit(**fit_args(range(1, 2), count=6))
    assert calls == [
        "fit_start",
        "start TRAIN 1",
        *("batch", "batch", "step", "batch", "step"),
        "end TRAIN ['loss']",
        "start VALID 1",
        "end VALID ['error', 'loss']",
        "fit_end",
    ]


def test_callbacks_are_called_in_the_order_of_the_list(net, fit_args):
    """Each hook of all of them before the next hook."""
    calls = []
    net.make(callbacks=[Recorder(calls, "a "), Recorder(calls, "b ")]).fit(**fit_args(range(1)))
    assert calls[:4] == ["a fit_start", "b fit_start", "a start TRAIN 0", "b start TRAIN 0"]
    assert calls[4:8] == ["a batch", "b batch", "a step", "b step"]


def test_a_test_calls_the_hooks_of_its_stage(net):
    """With the figures of the test, which stay readable."""
    calls = []
    brain = net.make(callbacks=[Recorder(calls)])
    loss = brain.evaluate(net.rows(4))
    assert calls == ["start TEST None", "end TEST ['loss']"]
    assert brain.stage_stats == {"loss": loss}


def test_a_step_that_was_skipped_is_not_taken(make_scripted, numbers):
    """The second of three batches has an infinite loss."""
    calls = []
    brain = make_scripted()
    brain._callbacks = CallbackRunner([Recorder(calls)], brain)
    brain.fit(range(1), numbers(1.0, float("inf"), 2.0))
    assert [call for call in calls if "step" in call] == ["step", "step skipped", "step"]


def test_a_fit_batch_of_a_recipes_own_calls_them_after_each_step(net, fit_args):
    """Without optimizers_step, and with two steps in a batch."""
    calls = []

    class Own(net.Net):
        def fit_batch(self, batch):
            loss = self.compute_objectives(self.compute_forward(batch, Stage.TRAIN), batch, None)
            loss.backward()
            self.optimizer.step()
            self.optimizer.step()
            self.optimizer.zero_grad()
            return loss.detach()

    net.make(callbacks=[Recorder(calls)], cls=Own).fit(**fit_args(range(1), count=4))
    assert calls[2:6] == ["batch", "step", "batch", "step"]


def test_a_nested_fit_and_evaluation_leave_the_figures_of_the_outer_one(net, fit_args):
    """A fit that a hook calls has no callbacks; a test that it calls has."""
    calls = []

    class Outer(net.Net):
        def on_stage_end(self, stage, stage_loss, epoch=None):
            if stage is Stage.TRAIN and not self._fit_state.is_nested:
                self.stage_stats["mine"] = 1
                self.fit(range(1), net.rows(2), train_loader_kwargs={"batch_size": 2})
                self.evaluate(net.rows(2))

    net.make(callbacks=[Recorder(calls)], cls=Outer).fit(**fit_args(range(1), count=2))
    assert calls[3:7] == [
        "step",
        "start TEST None",
        "end TEST ['loss']",
        "end TRAIN ['loss', 'mine']",
    ]
    assert calls.count("batch") == 1


def test_without_a_method_of_a_batch_the_loop_calls_the_brains_own(net):
    """No call and no look-up is added to a step."""

    class AtEnds(Callback):
        def on_stage_end(self, brain, stage, stats, epoch):
            pass

    for callbacks in ([], [AtEnds()]):
        brain = net.make(callbacks=callbacks)
        assert brain._train_batch_function() == brain._train_batch
        assert brain._watch_batches() is None
    brain = net.make(callbacks=[Recorder([])])
    brain.init_optimizers()
    assert brain._train_batch_function() != brain._train_batch


def test_what_is_no_callback_is_refused():
    """A class is told to be made an object."""
    with pytest.raises(TypeError, match=r"got <class '.*Callback'>. Make an object of the class"):
        Brain(callbacks=[Callback])
    with pytest.raises(TypeError, match="must hold objects of subclasses of Callback, got 3"):
        Brain(callbacks=[3])


class Counter(Callback):
    """Counts its batches, in the checkpoints."""

    def __init__(self):
        self.batches, self.starts = 0, []

    def on_fit_start(self, brain, *, is_resumed):
        self.starts.append((is_resumed, self.batches))

    def on_fit_batch_end(self, brain, batch, loss):
        self.batches += 1

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


def test_a_callback_with_a_state_is_in_the_checkpoints(net, fit_args, tmp_path):
    """Under the name of its class, a second one with a number; a test does not touch it."""
    one, two = Counter(), Counter()
    brain = net.make(tmp_path, [one, two])
    brain.fit(**fit_args(range(1, 3)))
    assert {"callback-Counter", "callback-Counter-2"} <= set(brain.checkpointer.recoverables)
    again = Counter()
    resumed = net.make(tmp_path, [again])
    resumed.evaluate(net.rows(2))
    assert again.batches == 0
    resumed.fit(**fit_args(range(1, 4)))
    assert again.starts == [(True, 10)]
    assert again.batches == one.batches + 5


def test_a_second_fit_is_not_resumed(net, fit_args, tmp_path):
    """It has the same callbacks, and they are told that another fit begins."""
    counter = Counter()
    brain = net.make(tmp_path, [counter])
    brain.fit(**fit_args(range(1)))
    brain.fit(**fit_args(range(2)))
    assert counter.starts == [(False, 0), (False, 5)]


def test_a_hook_that_raises_leaves_no_hook_in_the_optimizer(net, fit_args):
    """The optimizers are no longer watched after a fit, however it ends."""

    class Failing(Recorder):
        def on_optimizer_step(self, brain, *, is_taken):
            raise RuntimeError("a fault")

    brain = net.make(callbacks=[Failing([])])
    with pytest.raises(RuntimeError, match="a fault"):
        brain.fit(**fit_args(range(1)))
    assert not brain.optimizer._optimizer_step_post_hooks


def test_the_callbacks_of_a_run_are_resumed_inside_an_epoch_without_a_second_start(
    net, fit_args, tmp_path
):
    """What on_stage_start had done is in the state."""
    calls = []

    class Stopping(Recorder):
        def on_fit_batch_end(self, brain, batch, loss):
            super().on_fit_batch_end(brain, batch, loss)
            if brain.step == 3:
                brain.stop("for the test")

    with pytest.raises(BaseException, match="for the test"):
        net.make(tmp_path, [Stopping(calls)]).fit(**fit_args(range(1)))
    calls.clear()
    net.make(tmp_path, [Recorder(calls)]).fit(**fit_args(range(1)))
    assert calls[:4] == ["fit_start resumed", "batch", "step", "batch"]


@pytest.mark.parametrize(
    ("epochs", "options", "expected"),
    [
        (range(1, 4), {}, 15),
        (range(1, 4), {"grad_accumulation_factor": 2}, 9),
        (range(1, 4), {"optimizer_step_limit": 7}, 7),
        (range(1, 9), {"debug": True, "debug_epochs": 2, "debug_batches": 3}, 6),
        (iter([1, 2]), {}, None),
        (iter([1, 2]), {"optimizer_step_limit": 7}, 7),
    ],
)
def test_the_number_of_steps_is_known_before_the_first(net, fit_args, epochs, options, expected):
    """Epochs, accumulation, limits and debug mode are counted, and it comes true."""
    totals = []

    class Totals(Callback):
        def on_fit_start(self, brain, *, is_resumed):
            totals.append(brain.total_optimizer_steps)

    brain = net.make(callbacks=[Totals()], **options)
    brain.fit(**fit_args(epochs))
    assert totals == [expected]
    assert expected in (None, brain.optimizer_step)


def test_the_number_of_steps_is_that_of_the_whole_fit_after_a_restart(net, fit_args, tmp_path):
    """Within an epoch and after one, of the first call of fit and of the second."""
    totals = []

    class Stop(Callback):
        def __init__(self, at):
            self.at = at

        def on_fit_start(self, brain, *, is_resumed):
            totals.append(brain.total_optimizer_steps)

        def on_optimizer_step(self, brain, *, is_taken):
            if brain.optimizer_step == self.at:
                brain.stop("for the test")

    def script(stop_at=None):
        brain = net.make(tmp_path, [Stop(stop_at)], optimizer_step_limit=33)
        brain.fit(**fit_args(range(1, 4)))
        brain.fit(**fit_args(range(1, 6)))

    for stop_at in (7, 25):
        with pytest.raises(BaseException, match="for the test"):
            script(stop_at)
    script()
    assert totals == [15, 15, 18, 18]


class Unsized(torch.utils.data.IterableDataset):
    """A dataset without a length."""

    def __iter__(self):
        return iter(torch.zeros(4, 3))


def test_without_a_length_the_number_of_steps_is_not_known(net):
    """It is None; with a limit of steps it is the limit."""
    brain = net.make()
    brain.fit(range(1), Unsized(), train_loader_kwargs={"batch_size": 2})
    assert brain.total_optimizer_steps is None
    assert brain.total_epochs == 1


def test_a_checkpointer_is_shared_by_two_brains_with_the_same_callback(net, tmp_path):
    """The callback is added once."""
    counter, checkpointer = Counter(), Checkpointer(tmp_path)
    for _ in range(2):
        Brain(checkpointer=checkpointer, callbacks=[counter])
    assert [n for n, obj in checkpointer.recoverables.items() if obj is counter] == [
        "callback-Counter"
    ]
