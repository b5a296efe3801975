"""Every example trains, with tiny settings; the longer ones also resume after SIGKILL."""

from __future__ import annotations

import contextlib
import runpy
import sys

import pytest
import torch
from pages import ROOT

from brain_data.experiment import directory

EXAMPLES = ROOT / "examples"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that gives the names of an example; the current directory is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    loaded = set(sys.modules)

    def names_of(path):
        script = EXAMPLES / path
        sys.path.insert(0, str(script.parent))
        return runpy.run_path(str(script), run_name="example")

    with torch.random.fork_rng(devices=[]):
        yield names_of
    for name in set(sys.modules) - loaded:  # such as `model`, which two examples may have
        if getattr(sys.modules[name], "__file__", None) and str(EXAMPLES) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


@contextlib.contextmanager
def stopped_after(batches, monkeypatch):
    """Have the loss of the batch behind so many raise; it must be reached."""
    losses = iter([torch.nn.functional.mse_loss] * batches)

    def fails(*args):
        return next(losses)(*args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "mse_loss", fails)
        with pytest.raises(StopIteration):
            yield


def test_the_loop_without_a_brain_resumes(load, capsys, monkeypatch):
    """A run that an error ends in an epoch, and another one at an epoch's end, has equal bits."""
    main = load("own_loop.py")["main"]
    expected = main(epochs=3, folder="whole")
    whole = capsys.readouterr().out
    with stopped_after(200, monkeypatch):  # 128 batches to an epoch
        main(epochs=3, folder="parts")
    main(epochs=2, folder="parts")
    assert all(map(torch.equal, main(epochs=3, folder="parts"), expected))
    assert capsys.readouterr().out == whole


def test_the_gan_trains_both_networks(load):
    """Its points are nearer to the ring than those of an untrained generator."""
    assert 0 < load("gan.py")["main"](epochs=1, points=256, folder="gan") < 1


@pytest.mark.long
def test_the_gan_learns_the_ring(load):
    """With its own settings its points are near the ring."""
    assert load("gan.py")["main"](folder="gan") < 0.2


def test_fine_tuning_loads_freezes_and_unfreezes(load):
    """The encoder keeps its pretrained parameters while it is frozen, and changes afterwards."""
    pytest.importorskip("sklearn")
    path = load("finetune/pretrain.py")["main"](epochs=1, folder="finetune")
    pretrained = torch.load(path, weights_only=True)
    names = load("finetune/train.py")

    def encoder_changes(epochs):
        names["main"](epochs=epochs, frozen_epochs=1, labelled=64, folder="finetune")
        encoder = names["encoder"]()
        reader = names["Checkpointer"]("finetune/save", {"encoder": encoder})
        reader.recover_if_possible(only=lambda name, _: name == "encoder")
        return [not torch.equal(encoder.state_dict()[key], pretrained[key]) for key in pretrained]

    assert not any(encoder_changes(epochs=1))
    assert all(encoder_changes(epochs=2))


@pytest.mark.long
def test_fine_tuning_learns(load):
    """With its own settings most digits are right."""
    pytest.importorskip("sklearn")
    load("finetune/pretrain.py")["main"]()
    assert load("finetune/train.py")["main"]() > 0.7


SPEECH = str(EXAMPLES / "speech/hparams.yaml")


@pytest.fixture
def logging_restored():
    """Take back what an experiment directory sets up."""
    yield
    current = directory._Active.experiment
    if current is not None:
        current.restore()


def test_the_recognizer_of_digits_trains_and_counts_its_errors(load, capsys, logging_restored):
    """The clips are made, the best checkpoint is tested, and its error rate is printed."""
    small = "--train_clips=24 --held_out_clips=6 --hidden_size=8 --number_of_epochs=1"
    brain = load("speech/train.py")["main"]([SPEECH, "--output_folder=digits", *small.split()])
    assert brain.optimizer_step > 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"Word error rate on 6 unseen clips: {brain.error_rate():.2f} %"


def test_the_features_of_a_clip_do_not_depend_on_its_batch(load):
    """Padding leaves them as they are."""
    bank = load("speech/features.py")["FilterBank"](rate=8000, bands=8)
    clip, samples = torch.rand(1, 1000), torch.tensor([1000])
    alone, frames = bank(clip, samples)
    padded, same = bank(torch.nn.functional.pad(clip, (0, 500)), samples)
    assert frames.equal(same)
    assert alone.shape == (1, 11, 8)
    torch.testing.assert_close(padded[:, :11], alone)
    assert not padded[:, 11:].any()


@pytest.mark.long
def test_the_recognizer_of_digits_learns(load, logging_restored):
    """With its own settings few digits are wrong."""
    assert load("speech/train.py")["main"]([SPEECH]).error_rate() < 5


def test_the_sharded_model_trains_in_one_process(load):
    """The same script runs without torchrun."""
    brain = load("fsdp/train.py")["main"](epochs=1, rows=64, width=8, device="cpu", folder="fsdp")
    assert brain.optimizer_step == 2


def test_the_language_model_trains_with_tied_weights(load, capsys):
    """In bf16 and with accumulation; the embedding is the output layer."""
    main = load("language_model/train.py")["main"]
    brain = main(epochs=1, width=16, layers=1, length=32, modules=("bisect",), folder="lm")
    model = brain.modules.model
    assert model.output.weight is model.embedding.weight
    assert "bits a character" in capsys.readouterr().out


@pytest.mark.long
def test_the_language_model_learns(load):
    """With its own settings it needs fewer bits than the text has without a model."""
    brain = load("language_model/train.py")["main"]()
    assert brain.checkpointer.find_checkpoint(min_key="bits").meta["bits"] < 4.5


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.long)])
def test_a_run_that_is_killed_draws_one_line(load, tmp_path, kills):
    """SIGKILL ends it, and no loss differs."""
    pytest.importorskip("matplotlib")
    main = load("killed_five_times.py")["main"]
    assert main(epochs=1 if kills == 1 else 4, kills=kills, picture="killed.png") == 0
    assert (tmp_path / "killed.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_example_trains(load, capsys):
    """It prints a line for each epoch."""
    load("first.py")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == [f"epoch {n}" for n in range(1, 13)] + [
        "weights"
    ]


@pytest.mark.long
def test_the_first_example_ends_the_same_after_an_error_in_the_middle_of_an_epoch(
    load, capsys, monkeypatch, tmp_path
):
    """The second start prints the losses that were left, and the weights of an undisturbed run."""
    folder = tmp_path / "whole"
    folder.mkdir()
    monkeypatch.chdir(folder)
    load("first.py")
    whole = capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    with stopped_after(700, monkeypatch):  # 128 batches to an epoch
        load("first.py")
    load("first.py")
    assert capsys.readouterr().out == whole
