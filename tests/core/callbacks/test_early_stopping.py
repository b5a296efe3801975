"""`EarlyStopping`: when it ends a fit, and that a restart ends it there, too."""

from __future__ import annotations

import math

import pytest

from brain_core import EarlyStopping, EpochCounter, Stage
from brain_core.testing import assert_resumes_exactly


def scored(net, scores, *, late=False):
    """Return a Brain class whose validations have these scores, from epoch 1 on."""

    class Scored(net.Net):
        def on_stage_end(self, stage, stage_loss, epoch=None):
            if stage is Stage.VALID:
                if not late:
                    self.stage_stats["score"] = scores[epoch - 1]
                if self.checkpointer is not None:
                    self.checkpointer.save_and_keep_only({"epoch": epoch}, num_to_keep=1)
                self.stage_stats["score"] = scores[epoch - 1]

    return Scored


def epochs_trained(net, fit_args, scores, **arguments):
    """Return how many of ten epochs are trained."""
    epochs = EpochCounter(10)
    stopping = EarlyStopping("score", **arguments)
    brain = net.make(callbacks=[stopping], cls=scored(net, scores + [scores[-1]] * 10))
    brain.fit(**fit_args(epochs, count=2))
    return epochs.current


def test_it_ends_after_as_many_validations_without_improvement(net, fit_args):
    """The third value is the best; two more follow it."""
    assert epochs_trained(net, fit_args, [3.0, 2.0, 1.0, 1.5], patience=2) == 5
    assert epochs_trained(net, fit_args, [1.0, 2.0, 3.0, 2.5], patience=2, direction="max") == 5
    assert epochs_trained(net, fit_args, [-1.0, -2.0, -3.0], patience=1, direction="max") == 2


def test_an_improvement_has_to_exceed_min_delta(net, fit_args):
    """Steps of a quarter are none if half is needed; measured from the best that counted."""
    scores = [2.0, 1.75, 1.5, 1.25, 1.0]
    assert epochs_trained(net, fit_args, scores, patience=2, min_delta=0.5) == 3
    assert epochs_trained(net, fit_args, scores, patience=2, min_delta=0.25) == 7
    assert epochs_trained(net, fit_args, scores, patience=2, min_delta=0.2) == 7


def test_nan_is_no_improvement(net, fit_args):
    """At the beginning, too."""
    assert epochs_trained(net, fit_args, [math.nan, math.nan], patience=2) == 2
    assert epochs_trained(net, fit_args, [1.0, math.nan, 0.5, math.nan], patience=2) == 5


def test_it_ends_fit_and_not_the_script(net, fit_args, caplog):
    """The log says why; a further fit begins to count anew."""
    caplog.set_level("INFO")
    stopping = EarlyStopping("score", patience=1)
    brain = net.make(callbacks=[stopping], cls=scored(net, [1.0] * 9))
    for _ in range(2):
        brain.fit(**fit_args(EpochCounter(9), count=2))
        assert (stopping.best, stopping.waited) == (1.0, 1)
    assert caplog.text.count("EarlyStopping ends training after epoch 2: score has not") == 2


def test_a_restart_of_a_run_that_has_ended_trains_no_epoch(net, fit_args, tmp_path, caplog):
    """Its checkpoint was saved before callbacks heard of the end of the validation."""
    caplog.set_level("INFO")
    cls = scored(net, [1.0] * 9)
    for counter in (EpochCounter(9), EpochCounter(9)):
        stopping = EarlyStopping("score", patience=2)
        brain = net.make(tmp_path, [stopping], cls=cls)
        brain.fit(**fit_args(counter, count=2))
        assert (counter.current, brain.optimizer_step, stopping.waited) == (3, 3, 2)
    assert "EarlyStopping has ended this fit before" in caplog.text


def test_a_metric_that_is_not_there_is_an_error_that_says_where_to_set_it(net, fit_args, tmp_path):
    """Never set, set only after the checkpoint, and no validation at all."""
    arguments = fit_args(range(1, 4), count=2)
    with pytest.raises(ValueError, match=r"needs 'wer' among .* got loss, error. Set self.stage_"):
        net.make(callbacks=[EarlyStopping("wer")]).fit(**arguments)
    late = net.make(tmp_path, [EarlyStopping("score")], cls=scored(net, [1.0] * 9, late=True))
    with pytest.raises(ValueError, match="needs 'score' before a checkpoint is saved, got it aft"):
        late.fit(**arguments)
    with pytest.raises(ValueError, match=r"an epoch without one. Give fit a valid_set"):
        net.make(callbacks=[EarlyStopping()]).fit(**{**arguments, "valid_set": None})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patience": 0}, "patience of 1 or more, got 0"),
        ({"direction": "up"}, "'min' or 'max', got direction='up'"),
        ({"min_delta": -1}, "min_delta of 0 or more, got -1"),
    ],
)
def test_wrong_arguments_name_what_is_right(arguments, message):
    """When it is made."""
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**arguments)


def make_for_kills(net, folder):
    """Return a Brain that ends after epoch 4, saved every two batches."""
    cls = scored(net, [3.0, 2.0, 2.5, 2.5, 0.0, 0.0])
    return net.make(folder, [EarlyStopping("score", patience=2)], cls=cls, ckpt_interval_steps=2)


@pytest.mark.long
def test_a_killed_run_ends_after_the_same_epoch(net, fit_args):
    """Killed inside epochs and between them."""
    assert_resumes_exactly(
        lambda folder: make_for_kills(net, folder),
        lambda _: fit_args(EpochCounter(6), count=4),
        kills=[4, 7, 12],
    )


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_killed_at_every_batch_ends_after_the_same_epoch(net, fit_args, ranks):
    """On one rank and on two."""
    assert_resumes_exactly(
        lambda folder: make_for_kills(net, folder),
        lambda _: fit_args(EpochCounter(6), count=4 * ranks),
        kills=list(range(2, 15)),
        ranks=ranks,
        timeout_s=600,
    )
