"""File formats: those of SpeechBrain 1.1, and those of common objects."""

import shutil

import pytest
import torch
import yaml

from brain_ckpt import Checkpointer, RNGState, mark_as_loader, mark_as_saver
from brain_ckpt.storage.meta import load_meta


class Text:
    """A class with SpeechBrain's marks that reads text."""

    text = None

    def save(self, path):
        path.write_text(self.text)

    def load(self, path, end_of_epoch):
        self.text, self.end_of_epoch = path.read_text(), end_of_epoch

    save._speechbrain_saver = True
    load._speechbrain_loader = True


class Progress:
    """An object with a state, like brain_core's Brain; SpeechBrain's Brain wrote YAML."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        self.state = state


def objects():
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4)
    )
    optimizer = torch.optim.AdamW(model.parameters())
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200),
        "counter": Text(),
        "dataloader-TRAIN": Text(),
        "brain": Progress(),
    }


def test_a_run_of_speechbrain_is_recovered(tmp_path, speechbrain_run):
    """The newest checkpoint is inside an epoch, and the best one at the end of an epoch."""
    save = tmp_path / "save"
    shutil.copytree(speechbrain_run / "stopped", save)
    found = objects()
    checkpointer = Checkpointer(save, found)
    checkpointer.add_recoverable("rng", RNGState(), per_rank=True)
    newest = checkpointer.recover_if_possible()
    assert newest.meta["brain_intra_epoch_ckpt"] is True
    expected = torch.load(newest.paramfiles["model"], weights_only=True)
    assert all(torch.equal(found["model"].state_dict()[key], expected[key]) for key in expected)
    assert found["optimizer"].state[found["model"][0].weight]["step"].item() == 72
    assert found["scheduler"].last_epoch == 72
    assert (found["counter"].text, found["dataloader-TRAIN"].text) == ("2", "21")
    assert found["counter"].end_of_epoch is False
    assert found["brain"].state["optimizer_step"] == 72
    best = checkpointer.recover_if_possible(min_key="loss")
    assert best.meta == {
        "end-of-epoch": True,
        "loss": 0.7964050471782684,
        "unixtime": 1795361300.732555,
    }
    assert found["counter"].end_of_epoch is True


def list_as_the_format_says(save):
    """List checkpoints by the format description: names, meta files, parameter files."""
    found = []
    for path in save.iterdir():
        if path.is_dir() and path.name.startswith("CKPT") and (path / "CKPT.yaml").exists():
            meta = yaml.safe_load((path / "CKPT.yaml").read_text())
            files = {file.stem: file for file in path.iterdir() if file.suffix == ".ckpt"}
            found.append((meta["unixtime"], path, meta, files))
    return sorted(found)


def test_a_reader_written_from_the_format_description_reads_a_checkpoint(tmp_path):
    """No temporary directory is listed, and no other file is taken for a recoverable."""
    found = objects()
    found["counter"].text = found["dataloader-TRAIN"].text = "1"
    found.pop("brain")
    checkpointer = Checkpointer(tmp_path, found)
    checkpointer.add_recoverable("rng", RNGState(), per_rank=True)
    for loss in (0.5, 0.25):
        checkpointer.save_checkpoint(meta={"loss": loss})
    listed = list_as_the_format_says(tmp_path)
    assert [meta["loss"] for _, _, meta, _ in listed] == [0.5, 0.25]
    files = listed[-1][3]
    assert set(files) == set(found)
    state = torch.load(files["model"], weights_only=True)
    fresh = objects()["model"]
    fresh.load_state_dict(state, strict=True)
    assert torch.equal(fresh[0].weight, found["model"][0].weight)
    assert files["counter"].read_text() == "1"


def test_metas_with_numpy_scalars_and_tuples_are_read():
    """They are as PyYAML's unsafe dumper wrote them, with NumPy 1 and 2."""
    import numpy as np

    meta = {
        "unixtime": 5.0,
        "end-of-epoch": True,
        "wer": np.float64(12.5),
        "half": np.float32(0.5),
        "count": np.int64(7),
        "flag": np.bool_(True),  # noqa: FBT003 - a scalar of NumPy's
        "pair": (1, 2.5),
    }
    for text in (yaml.dump(meta), yaml.dump(meta).replace("numpy._core", "numpy.core")):
        assert "!!python" in text
        read = load_meta(text.encode(), "CKPT.yaml")
        assert read == {**meta, "flag": True}
        assert type(read["wer"]) is float
        assert type(read["count"]) is int
        assert read["pair"] == (1, 2.5)


def test_files_in_the_format_before_torch_1_6_are_read(tmp_path):
    """The old format is not a zip file."""
    model = torch.nn.Linear(2, 2)
    path = tmp_path / "CKPT+old"
    path.mkdir()
    (path / "CKPT.yaml").write_text("end-of-epoch: true\nunixtime: 1.0\n")
    torch.save(model.state_dict(), path / "model.ckpt", _use_new_zipfile_serialization=False)
    fresh = torch.nn.Linear(2, 2)
    Checkpointer(tmp_path, {"model": fresh}).recover_if_possible()
    assert torch.equal(fresh.weight, model.weight)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_stripped_when_loading(prefix, tmp_path):
    """A checkpoint of a wrapped model fits the bare model."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    path = tmp_path / "CKPT+wrapped"
    path.mkdir()
    (path / "CKPT.yaml").write_text("end-of-epoch: true\nunixtime: 1.0\n")
    state = {prefix + key: value + 1 for key, value in model.state_dict().items()}
    torch.save(state, path / "model.ckpt")
    expected = model[0].weight + 1
    Checkpointer(tmp_path, {"model": model}).recover_if_possible()
    assert torch.equal(model[0].weight, expected)


def test_a_submodule_named_module_keeps_its_name(tmp_path):
    """A prefix is removed only if the keys fit without it."""
    model = torch.nn.ModuleDict({"module": torch.nn.Linear(1, 1), "head": torch.nn.Linear(1, 1)})
    before = model["module"].weight.detach().clone()
    checkpointer = Checkpointer(tmp_path, {"model": model})
    saved = checkpointer.save_checkpoint()
    assert "module.weight" in torch.load(saved.paramfiles["model"], weights_only=True)
    torch.nn.init.zeros_(model["module"].weight)
    checkpointer.recover_if_possible()
    assert torch.equal(model["module"].weight, before)


def test_a_compiled_module_is_saved_under_the_keys_of_the_bare_module(tmp_path):
    """This holds for a whole module and for a submodule."""
    compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager")
    models = {"whole": compiled, "part": torch.nn.ModuleDict({"a": compiled})}
    saved = Checkpointer(tmp_path, models).save_checkpoint()
    keys = {
        name: set(torch.load(path, weights_only=True)) for name, path in saved.paramfiles.items()
    }
    assert keys == {"whole": {"weight", "bias"}, "part": {"a.weight", "a.bias"}}
    Checkpointer(tmp_path, models).recover_if_possible()


def test_the_state_of_an_optimizer_keeps_its_dtypes(tmp_path):
    """torch casts float32 moments to the bfloat16 of the parameters (pytorch#43706)."""
    model = torch.nn.Linear(3, 3, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    moment = torch.randn(3, 3)
    optimizer.state[model.weight]["exp_avg"] = moment.clone()
    checkpointer = Checkpointer(tmp_path, {"optimizer": optimizer})
    checkpointer.save_checkpoint()
    optimizer.state[model.weight]["exp_avg"].zero_()
    checkpointer.recover_if_possible()
    assert optimizer.state[model.weight]["exp_avg"].dtype == torch.float32
    assert torch.equal(optimizer.state[model.weight]["exp_avg"], moment)


def test_schedulers_and_scalers_are_recovered(tmp_path):
    """Each type is recovered, and a CyclicLR from a file of SpeechBrain."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    cyclic = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 0.2, mode="exp_range")
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    plateau.step(3.0)
    checkpointer = Checkpointer(tmp_path, {"plateau": plateau, "cyclic": cyclic, "scaler": scaler})
    saved = checkpointer.save_checkpoint()
    plateau.step(1.0)
    checkpointer.recover_if_possible()
    assert plateau.best == 3.0
    state = torch.load(saved.paramfiles["cyclic"], weights_only=True)
    torch.save({**state, "_scale_fn_ref": "WEAKREF"}, tmp_path / "cyclic.ckpt")
    from brain_ckpt import torch_recovery

    torch_recovery(cyclic, tmp_path / "cyclic.ckpt", end_of_epoch=True)
    optimizer.step()
    cyclic.step()


def test_a_dataclass_is_saved_by_its_fields(tmp_path):
    """A dataclass needs no methods."""
    from dataclasses import dataclass

    @dataclass
    class Counter:
        steps: int = 0
        loss: float = 0.0

    counter = Counter(5, 0.1)
    checkpointer = Checkpointer(tmp_path, {"counter": counter})
    checkpointer.save_checkpoint()
    counter.steps, counter.loss = 9, 9.0
    checkpointer.recover_if_possible()
    assert counter == Counter(5, 0.1)


def test_a_hook_can_write_additional_files(tmp_path):
    """They are in the manifest, so damage is found."""

    class Loader:
        @mark_as_saver
        def save(self, path):
            path.write_text("3")
            path.with_suffix(".json").write_text("{}")

        @mark_as_loader
        def load(self, path, end_of_epoch):
            assert path.with_suffix(".json").read_text() == "{}"

    checkpointer = Checkpointer(tmp_path, {"loader": Loader()})
    saved = checkpointer.save_checkpoint()
    checkpointer.recover_if_possible()
    (saved.path / "loader.json").write_text("[]")
    with pytest.raises(RuntimeError, match=r"loader\.json"):
        checkpointer.recover_if_possible()


def test_custom_hooks_come_first_and_may_omit_the_flag(tmp_path):
    """A hook is called with or without end_of_epoch."""
    model, told = torch.nn.Linear(1, 1), []
    checkpointer = Checkpointer(
        tmp_path,
        {"model": model, "other": model},
        custom_load_hooks={
            "model": lambda obj, path: told.append(path.read_text()),
            "other": lambda obj, path, end_of_epoch: told.append(end_of_epoch),
        },
        custom_save_hooks={"model": lambda obj, path: path.write_text("mine")},
    )
    checkpointer.save_checkpoint(end_of_epoch=False)
    checkpointer.recover_if_possible()
    assert told == ["mine", False]
