"""With `hang_seconds`, a batch that does not end is logged with its place."""

from __future__ import annotations

import threading
import time

import torch


def waiting(caplog):
    return [r.getMessage() for r in caplog.records if "No step has ended" in r.getMessage()]


def make(regression, caplog, *, hangs_in, **options):
    """Return a Brain whose third batch of a stage lasts until that is logged."""

    class Hanging(regression):
        def compute_forward(self, batch, stage):
            if stage.name == hangs_in and self.step == 3:
                before = len(waiting(caplog))
                while len(waiting(caplog)) == before:
                    time.sleep(0.01)
            return super().compute_forward(batch, stage)

    return Hanging(
        {"model": torch.nn.Linear(4, 2)},
        lambda p: torch.optim.SGD(p, lr=0.1),
        run_opts={"device": "cpu", "noprogressbar": True, **options},
    )


def test_a_batch_that_does_not_end_is_logged_with_its_stack(regression, pairs, caplog):
    """In training, in validation and in a test."""
    for hangs_in in ("TRAIN", "VALID", "TEST"):
        caplog.clear()
        brain = make(regression, caplog, hangs_in=hangs_in, hang_seconds=0.2)
        if hangs_in == "TEST":
            brain.evaluate(pairs, test_loader_kwargs={"batch_size": 4})
        else:
            brain.fit(range(1), pairs, pairs, train_loader_kwargs={"batch_size": 4})
        message = waiting(caplog)[0]
        assert "on rank 0, which waits in" in message
        assert "in compute_forward" in message
        assert not [t for t in threading.enumerate() if t.name == "brain_dist-hang"]


def test_without_the_option_there_is_no_watch(regression, pairs, caplog):
    """And no thread."""
    seen = []

    class Watched(regression):
        def compute_forward(self, batch, stage):
            seen.extend(t.name for t in threading.enumerate())
            return super().compute_forward(batch, stage)

    brain = Watched(
        {"model": torch.nn.Linear(4, 2)},
        lambda p: torch.optim.SGD(p, lr=0.1),
        run_opts={"device": "cpu"},
    )
    brain.fit(range(1), pairs)
    assert seen
    assert "brain_dist-hang" not in seen
