"""Loggers of an epoch's figures."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from brain_core import (
    CSVLogger,
    FileTrainLogger,
    JSONLinesLogger,
    LoggerList,
    MLflowLogger,
    TensorboardLogger,
    WandBLogger,
)


def log(logger, epoch):
    """Log an epoch of training."""
    logger.log_stats({"epoch": epoch}, {"loss": 12.345}, {"loss": 0.00123})


def test_a_line_contains_meta_train_and_valid_figures(tmp_path):
    """The line has SpeechBrain's format."""
    logger = FileTrainLogger(tmp_path / "log.txt")
    logger.log_stats({"epoch": 1, "lr": 0.5}, {"loss": 12.345}, {"loss": 0.00123})
    assert (tmp_path / "log.txt").read_text() == (
        "epoch: 1, lr: 5.00e-01 - train loss: 12.35 - valid loss: 1.23e-03\n"
    )


def test_a_tensor_or_numpy_number_is_written_as_its_number(tmp_path):
    """Without a type around it; a tensor of one element keeps its brackets."""
    logger = FileTrainLogger(tmp_path / "log.txt")
    figures = {"a": torch.tensor(293), "b": np.float64(0.5), "c": np.int64(7), "d": np.asarray(2)}
    logger.log_stats({"epoch": 1}, figures, {"e": torch.tensor(0.25), "f": np.float32(0.1)})
    assert (tmp_path / "log.txt").read_text() == (
        "epoch: 1 - train a: 293, train b: 5.00e-01, train c: 7, train d: 2"
        " - valid e: 0.25, valid f: 0.10000000149011612\n"
    )


def test_after_a_restart_each_epoch_is_in_the_file_once(tmp_path):
    """An epoch that is trained again is logged once; SpeechBrain 1.1 logged it twice."""
    logger = FileTrainLogger(tmp_path / "log.txt")
    log(logger, 1)
    state = logger.state_dict()
    log(logger, 2)  # the run is killed before its checkpoint
    again = FileTrainLogger(tmp_path / "log.txt")
    again.load_state_dict(state)
    log(again, 2)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" - ")[0] for line in lines] == ["epoch: 1", "epoch: 2"]


def test_after_a_restart_lines_with_test_figures_remain(tmp_path):
    """Restoring the logger removes no results of an evaluation."""
    logger = FileTrainLogger(tmp_path / "log.txt")
    log(logger, 1)
    state = logger.state_dict()
    logger.log_stats({"Epoch loaded": 1}, test_stats={"loss": 0.5})
    logger.load_state_dict(state)
    assert "test loss: 5.00e-01" in (tmp_path / "log.txt").read_text()


def points(folder):
    """Return the (step, value) pairs of each TensorBoard curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(e.step, round(e.value, 3)) for e in accumulator.Scalars(tag)] for tag in tags}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_steps_continue_after_a_restart(tmp_path):
    """Steps continue after the restored step; in SpeechBrain 1.1 they restarted at 0."""
    pytest.importorskip("tensorboard")
    logger = TensorboardLogger(tmp_path)
    log(logger, 1)
    state = logger.state_dict()
    log(logger, 2)
    logger.writer.close()
    again = TensorboardLogger(tmp_path)
    again.load_state_dict(state)
    log(again, 2)
    again.writer.close()
    assert points(tmp_path)["loss/train"] == [(1, 12.345), (2, 12.345)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_logs_a_list_as_one_point_per_batch(tmp_path):
    """A list gives one point for each of its values, as in SpeechBrain."""
    pytest.importorskip("tensorboard")
    logger = TensorboardLogger(tmp_path)
    logger.log_stats({"epoch": 1}, {"loss": [3.0, 2.0, 1.0]})
    logger.writer.close()
    assert points(tmp_path)["loss/train"] == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_a_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    """The error contains the pip command that installs the extra."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'brain-core\[tensorboard\]'"):
        TensorboardLogger(tmp_path)


def test_wandb_logs_figures_under_the_epoch():
    """The step is the epoch, so that a resumed run continues the same axis."""
    calls = []

    class Run:
        def log(self, figures, step):
            calls.append((figures, step))

    logger = WandBLogger(lambda project: Run(), project="p")
    log(logger, 3)
    expected = {"train": {"loss": 12.345}, "valid": {"loss": 0.00123}, "epoch": 3}
    assert calls == [(expected, 3)]


def test_a_wandb_initializer_that_fails_shows_why():
    """The initializer's error is shown; SpeechBrain 1.1 hid it behind a TypeError."""

    def initializer():
        raise OSError("no network")

    with pytest.raises(RuntimeError, match=r"raised OSError\('no network'\)") as caught:
        log(WandBLogger(initializer), 1)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("kind", [JSONLinesLogger, CSVLogger, FileTrainLogger])
def test_a_row_that_a_checkpoint_does_not_know_is_removed_and_tests_stay(tmp_path, kind):
    """Of each kind of file; a row that a kill has cut off is removed, too."""
    path = tmp_path / "log"
    logger = kind(path)
    log(logger, 1)
    state = logger.state_dict()
    log(logger, 2)
    logger.log_stats({"epoch": "best"}, test_stats={"loss": 0.5})
    with path.open("a") as file:
        file.write('{"epoch": 3, "test')
    again = kind(path)
    again.load_state_dict(state)
    log(again, 2)
    lines = path.read_text().splitlines()[kind is CSVLogger :]
    assert len(lines) == 3
    assert "1" in lines[0]
    assert "best" in lines[1]
    assert "2" in lines[2]


def test_a_json_line_has_the_figures_by_stage(tmp_path):
    """Numbers of tensors and NumPy, lists as lists, all digits."""
    logger = JSONLinesLogger(tmp_path / "log.jsonl")
    logger.log_stats(
        {"epoch": 1, "lr": np.float32(0.5)}, {"loss": [torch.tensor(0.1), 2]}, {"loss": 0.1 + 0.2}
    )
    assert (tmp_path / "log.jsonl").read_text() == (
        '{"epoch": 1, "lr": 0.5, "train": {"loss": [0.10000000149011612, 2]}, '
        '"valid": {"loss": 0.30000000000000004}}\n'
    )


def test_a_csv_file_gets_a_column_for_a_figure_that_comes_later(tmp_path):
    """The rows before have nothing in it; commas and quotes are kept."""
    logger = CSVLogger(tmp_path / "log.csv")
    logger.log_stats({"epoch": 1}, {"loss": 0.5})
    logger.log_stats({"epoch": 2}, {"loss": 0.25}, {"word, or not": 'a "b"'})
    logger.log_stats({"epoch": 3}, {"loss": 0.125})
    assert (tmp_path / "log.csv").read_text() == (
        'epoch,train loss,"valid word, or not"\n1,0.5,\n2,0.25,"a ""b"""\n3,0.125,\n'
    )


def test_several_loggers_log_and_resume_as_one(tmp_path, caplog):
    """In their order; the first one writes to Python's logging."""
    caplog.set_level("INFO")

    def make():
        text = FileTrainLogger(tmp_path / "a.txt")
        files = JSONLinesLogger(tmp_path / "a.jsonl"), JSONLinesLogger(tmp_path / "b.jsonl")
        return LoggerList(text, *files)

    logger = make()
    log(logger, 1)
    state = logger.state_dict()
    log(logger, 2)
    again = make()
    again.load_state_dict({**state, "Gone": {}})
    log(again, 2)
    for name in ("a.txt", "a.jsonl", "b.jsonl"):
        assert len((tmp_path / name).read_text().splitlines()) == 2
    assert caplog.text.count("epoch: 2") == 2
    assert '"epoch"' not in caplog.text


def test_what_is_no_logger_is_refused():
    """A list of loggers, for instance."""
    with pytest.raises(TypeError, match=r"which have log_stats, got \[\]. Write LoggerList\(one"):
        LoggerList([])


def test_a_wandb_run_goes_on_under_its_id_after_a_restart():
    """The initializer gets the id that the checkpoint holds, and makes one run only."""
    calls = []

    class Run:
        def __init__(self, **kwargs):
            self.id = kwargs.get("id", "new")
            calls.append(kwargs)

        def log(self, figures, step):
            calls.append((self.id, step))

    state = WandBLogger(Run).state_dict()
    again = WandBLogger(Run)
    again.load_state_dict(state)
    log(again, 2)
    assert calls == [{}, {"id": "new", "resume": "allow"}, ("new", 2)]


def test_a_missing_mlflow_names_the_extra(monkeypatch):
    """The error contains the pip command that installs the extra."""
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(ImportError, match=r"pip install 'brain-core\[mlflow\]'"):
        MLflowLogger()
