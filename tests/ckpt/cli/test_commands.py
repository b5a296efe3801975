"""The output and exit codes of the command."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_ckpt.cli.main import main


@pytest.fixture
def save(tmp_path):
    """Save three checkpoints of a model and its optimizer; the second is inside an epoch."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    checkpointer = Checkpointer(tmp_path / "save", {"model": model, "optimizer": optimizer})
    for number, name in enumerate(("one", "two", "three")):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        meta = {"loss": (0.5, 0.75, 0.25)[number], "step": 10 * number}
        checkpointer.save_checkpoint(meta, end_of_epoch=number != 1, name=name)
    checkpointer.close()
    return tmp_path / "save"


@pytest.fixture
def run(capsys):
    """Return a function that runs the command and returns its exit code and output."""

    def runs(*arguments):
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return runs


@pytest.fixture
def run_json(run):
    """Return a function that runs the command with --json and returns its exit code and result."""

    def runs(*arguments):
        code, said, _ = run(*arguments, "--json")
        return code, json.loads(said)

    return runs


def damage(checkpoint, name="model.ckpt"):
    """Flip a bit in the middle of a file."""
    content = bytearray((checkpoint / name).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / name).write_bytes(content)


def test_ls_lists_the_newest_first(save, run):
    """The table has name, place, metrics and whether each checkpoint is intact."""
    code, said, _ = run("ls", save)
    lines = said.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == ["name", "CKPT+three", "CKPT+two", "CKPT+one"]
    assert lines[0].split() == ["name", "age", "at", "metrics", "size", "intact"]
    assert "inside an epoch, step 10" in lines[2]
    assert "loss=0.75" in lines[2]
    assert all(line.endswith(" yes") for line in lines[1:])


def test_ls_reports_damage_and_exits_with_1(save, run, run_json):
    """A flipped bit and a truncated meta file are reported."""
    damage(save / "CKPT+two")
    (save / "CKPT+one" / "CKPT.yaml").write_text("")
    code, said, _ = run("ls", save)
    assert code == 1
    assert "CKPT+two: model.ckpt is damaged" in said
    assert "CKPT.yaml must hold a mapping" in said
    code, found = run_json("ls", save)
    assert {row["name"]: row["intact"] for row in found["checkpoints"]} == {
        "CKPT+three": True,
        "CKPT+two": False,
        "CKPT+one": False,
    }


def test_quick_ls_does_not_verify_files(save, run):
    """With --quick the files are not reported as intact."""
    damage(save / "CKPT+two")
    code, said, _ = run("ls", save, "--quick")
    assert code == 0
    assert said.count("not checked") == 3


def test_ls_names_unfinished_directories(save, run):
    """A directory that is not a checkpoint yet is listed by name."""
    (save / ".tmp-CKPT+four.run.1").mkdir()
    code, said, _ = run("ls", save)
    assert code == 0
    assert "unfinished, removed by the next save: .tmp-CKPT+four.run.1" in said


def test_ls_reads_a_directory_of_speechbrain(speechbrain_run, run_json):
    """The step comes from its Brain, and the files are compared with the checksums of the zip."""
    code, found = run_json("ls", speechbrain_run / "stopped")
    newest, best = found["checkpoints"]
    assert code == 0
    assert (newest["end_of_epoch"], newest["step"], newest["metrics"]) == (False, 72, {})
    assert best["metrics"] == {"loss": 0.7964050471782684}
    assert newest["intact"] is True


def test_an_empty_directory_can_be_listed_but_not_verified(tmp_path, run):
    """A script that verifies the wrong directory must fail."""
    assert run("ls", tmp_path)[:2] == (0, f"no checkpoint in {tmp_path}\n")
    code, _, error = run("verify", tmp_path)
    assert code == 2
    assert "got none in" in error


def test_verify_checks_every_file(save, run_json):
    """Files after the first damaged one are compared, too."""
    code, found = run_json("verify", save)
    assert (code, found["damaged"]) == (0, [])
    damage(save / "CKPT+three")
    (save / "CKPT+three" / "optimizer.ckpt").unlink()
    (save / "CKPT+three" / "extra.ckpt").write_text("x")
    (save / "CKPT+three" / "notes.txt").write_text("the good one")
    code, found = run_json("verify", save / "CKPT+three")
    assert (code, found["damaged"]) == (1, ["CKPT+three"])
    problems = {file["name"]: file["problem"] for file in found["checkpoints"]["CKPT+three"]}
    assert problems["CKPT.yaml"] is problems["MANIFEST.json"] is problems["notes.txt"] is None
    assert "crc32 of chunk 1 of 1" in problems["model.ckpt"]
    assert "cannot be read: No such file" in problems["optimizer.ckpt"]
    assert problems["extra.ckpt"] is None
    notes = {file["name"]: file["note"] for file in found["checkpoints"]["CKPT+three"]}
    assert notes["extra.ckpt"] == notes["notes.txt"] == "not part of the checkpoint"
    assert notes["model.ckpt"] is None


def test_verify_finds_damage_without_a_manifest(tmp_path, speechbrain_run, run):
    """The files are compared with the checksums of the zip."""
    save = tmp_path / "save"
    shutil.copytree(speechbrain_run / "stopped", save)
    assert run("verify", save)[0] == 0
    newest = next(save.glob("*+00"))
    file = newest / "optimizer.ckpt"
    moment = torch.load(file, weights_only=True)["state"][0]["exp_avg"].numpy().tobytes()
    content = file.read_bytes()
    assert content.count(moment) == 1
    file.write_bytes(content.replace(moment, moment[::-1]))
    code, said, _ = run("verify", save)
    assert code == 1
    assert "optimizer.ckpt cannot be read: Bad CRC-32 for file 'optimizer/data/1'" in said
    assert "1 of 2 intact" in said


def test_a_checkpoint_of_a_killed_speechbrain_run_is_not_intact(tmp_path, speechbrain_run, run):
    """SpeechBrain writes the meta file first, so files of older checkpoints can be missing."""
    save = tmp_path / "save"
    shutil.copytree(speechbrain_run / "stopped", save)
    (next(save.glob("*+00")) / "optimizer.ckpt").unlink()
    reason = "optimizer.ckpt is missing, which older checkpoints have"
    for command in (["ls"], ["ls", "--quick"], ["verify"]):
        code, said, _ = run(*command, save)
        assert code == 1
        assert reason in said
    assert run("prune", save, "--keep-last", "1")[0] == 0
    assert sorted(path.name[-2:] for path in save.glob("CKPT*")) == ["00", "01"]


def test_verify_refuses_a_link_in_place_of_a_file(save, tmp_path, run):
    """A link that is not in the manifest is not part of the checkpoint, and is not followed."""
    (tmp_path / "elsewhere").mkdir()
    (save / "CKPT+one" / "ranks").symlink_to(tmp_path / "elsewhere")
    model = save / "CKPT+two" / "model.ckpt"
    model.rename(tmp_path / "model.ckpt")
    model.symlink_to(tmp_path / "model.ckpt")
    code, said, _ = run("verify", save / "CKPT+one")
    assert code == 0
    assert re.search("ranks .* not part of the checkpoint", said)
    assert run("verify", save / "CKPT+two")[0] == 1


def test_a_long_verification_shows_a_progress_bar_on_a_terminal_only(save, run, monkeypatch):
    """The bar is written to the standard error and cleared at the end."""
    from brain_ckpt.cli import output

    monkeypatch.setattr(output, "_BAR_MIN_BYTES", 0)
    assert run("verify", save)[2] == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = run("verify", save)[2]
    assert bar.startswith("\r[")
    assert bar.endswith("\r\033[K")


def test_show_lists_tensors_and_values(save, run, run_json):
    """All files are shown, or the named one."""
    code, said, _ = run("show", save / "CKPT+two")
    lines = [line.split() for line in said.splitlines()]
    assert code == 0
    assert ["loss:", "0.75"] in lines
    assert ["weight", "float32", "2x4"] in lines
    assert ["param_groups.0.momentum", "float", "0.9"] in lines
    code, found = run_json("show", save / "CKPT+two", "model")
    assert list(found["files"]) == ["model.ckpt"]
    assert found["files"]["model.ckpt"][1] == {
        "key": "bias",
        "dtype": "float32",
        "shape": [2],
        "size_bytes": 8,
        "value": None,
    }


def test_show_prints_the_text_files_of_speechbrain(speechbrain_run, run):
    """The file of its Brain is YAML, and that of its counter a number."""
    newest = next((speechbrain_run / "stopped").glob("*+00"))
    assert "  optimizer_step: 72\n" in run("show", newest, "brain")[1]
    assert run("show", newest, "counter.ckpt")[1].endswith("counter.ckpt:\n  2\n")


def test_show_reads_a_single_file(save, run):
    """A file outside a checkpoint, such as an average, can be shown."""
    code, said, _ = run("show", save / "CKPT+two" / "model.ckpt")
    assert (code, said.splitlines()[1]) == (0, "model.ckpt: 2 tensors, 40 B")


def test_show_runs_no_code_and_prints_no_control_characters(tmp_path, run):
    """A pickle that names code is damage, and a control character is shown as a space."""
    path = tmp_path / "CKPT+bad"
    path.mkdir()
    (path / "CKPT.yaml").write_text('unixtime: 1.0\nnote: "a\\e[31mb"\n')
    torch.save({"k\033[31m": torch.ones(1)}, path / "model.ckpt")
    code, said, _ = run("show", path)
    assert (code, "\033" in said) == (0, False)
    torch.save({"x": subprocess.Popen}, path / "model.ckpt")
    code, _, error = run("show", path)
    assert code == 1
    assert "tensors and plain values only" in error


def test_an_average_can_be_loaded_by_torch(save, tmp_path, run):
    """The average is written to a new file and lies between its inputs."""
    target = tmp_path / "average.ckpt"
    code, said, _ = run("average", save / "CKPT+one", save / "CKPT+two", "-o", target)
    assert (code, said) == (0, f"{target}: 2 values, the average of 2\n")
    found = torch.load(target, weights_only=True)
    parts = [
        torch.load(save / name / "model.ckpt", weights_only=True)["weight"]
        for name in ("CKPT+one", "CKPT+two")
    ]
    assert torch.equal(found["weight"], (parts[0] + parts[1]) / 2)
    torch.nn.Linear(4, 2).load_state_dict(found)


def test_average_refuses_existing_outputs_and_damaged_inputs(save, tmp_path, run):
    """An existing file is a usage error, and a damaged checkpoint is damage."""
    target = tmp_path / "average.ckpt"
    target.write_text("mine")
    code, _, error = run("average", save / "CKPT+one", "-o", target)
    assert code == 2
    assert "name another, or delete it" in error
    assert target.read_text() == "mine"
    damage(save / "CKPT+one")
    code, _, error = run("average", save / "CKPT+one", "-o", tmp_path / "new.ckpt")
    assert code == 1
    assert "model.ckpt is damaged between byte 0 and" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["average.ckpt", "save"]


def test_average_names_a_missing_recoverable(save, tmp_path, run):
    """The error also names the recoverables that exist."""
    target = tmp_path / "average.ckpt"
    code, _, error = run("average", save / "CKPT+one", "-o", target, "--recoverable", "generator")
    assert code == 2
    assert "'generator'" in error
    assert "'optimizer'" in error


def test_average_needs_parameters_by_name(save, tmp_path, run):
    """The state of an optimizer is not accepted."""
    arguments = ["average", save / "CKPT+one", "-o", tmp_path / "x", "--recoverable", "optimizer"]
    code, _, error = run(*arguments)
    assert (code, (tmp_path / "x").exists()) == (2, False)
    assert "got no tensor in 'optimizer'" in error


def test_diff_shows_what_changed_and_by_how_much(save, run, run_json):
    """The largest change of an element and the relative norm of the change are shown."""
    code, found = run_json("diff", save / "CKPT+one", save / "CKPT+two")
    assert code == 1
    one = {entry["key"]: entry for entry in found["differences"]}["weight"]
    states = [
        torch.load(save / name / "model.ckpt", weights_only=True)["weight"].double()
        for name in ("CKPT+one", "CKPT+two")
    ]
    change = states[1] - states[0]
    assert one["max_abs"] == change.abs().max().item()
    assert one["relative"] == pytest.approx((change.norm() / states[0].norm()).item())
    assert found["meta"]["loss"] == [0.5, 0.75]
    said = run("diff", save / "CKPT+one", save / "CKPT+two")[1]
    assert "meta loss: 0.5 -> 0.75" in said
    assert "model.ckpt" in said


def test_diff_of_equal_states_exits_with_0(save, tmp_path, run_json):
    """A difference between metas does not count."""
    shutil.copytree(save / "CKPT+one", tmp_path / "copy")
    meta = (tmp_path / "copy" / "CKPT.yaml").read_text()
    (tmp_path / "copy" / "MANIFEST.json").unlink()
    (tmp_path / "copy" / "CKPT.yaml").write_text(meta.replace("loss: 0.5", "loss: 0.4"))
    for file in (tmp_path / "copy").glob("*.ckpt"):
        torch.save(torch.load(file, weights_only=True), file)
    code, found = run_json("diff", save / "CKPT+one", tmp_path / "copy")
    assert (code, found["differences"], found["meta"]) == (0, [], {"loss": [0.5, 0.4]})
    assert found["equal"] > 2


def test_export_writes_a_file_that_safetensors_reads(save, tmp_path, run):
    """The tensors are bit-equal."""
    safetensors = pytest.importorskip("safetensors.torch")
    target = tmp_path / "model.safetensors"
    code, said, _ = run("export", save / "CKPT+two", target)
    assert code == 0
    assert said.endswith("from CKPT+two\n")
    found = safetensors.load_file(target)
    expected = torch.load(save / "CKPT+two" / "model.ckpt", weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_export_copies_tied_tensors_and_names_skipped_values(tmp_path, run):
    """The format does not support tensors that share memory."""
    safetensors = pytest.importorskip("safetensors.torch")

    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(2, 2, bias=False)
            self.b = torch.nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

        def get_extra_state(self):
            return "text"

        def set_extra_state(self, state):
            raise AssertionError

    saved = Checkpointer(tmp_path / "save", {"model": Tied()}).save_checkpoint()
    target = tmp_path / "model.safetensors"
    code, said, _ = run("export", saved.path, target)
    assert code == 0
    assert said.endswith("skipped, because it is not a tensor: _extra_state\n")
    found = safetensors.load_file(target)
    assert torch.equal(found["a.weight"], found["b.weight"])


def test_export_without_the_extra_names_it(save, tmp_path, run, monkeypatch):
    """A missing extra is a usage error."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    code, _, error = run("export", save / "CKPT+two", tmp_path / "model.safetensors")
    assert code == 2
    assert "pip install 'brain-ckpt[safetensors]'" in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ls", "nowhere"], "DIR must be a directory of checkpoints, got 'nowhere'"),
        (["show", "nowhere"], "CKPT must be one checkpoint, got 'nowhere'"),
        (["show", "{save}"], "directory of 3 checkpoints; name one, such as {save}/CKPT+three"),
        (["show", "{save}/CKPT+one", "lm"], "got 'lm'; it holds model.ckpt, optimizer.ckpt"),
        (["export", "{save}/CKPT+one", "{save}/no/x.safetensors"], "make '{save}/no' first"),
    ],
)
def test_usage_errors_have_three_parts(arguments, expected, save, run):
    """An error says what is required, what was given and what to do."""
    code, said, error = run(*(argument.format(save=save) for argument in arguments))
    assert (code, said) == (2, "")
    assert expected.format(save=save) in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "COMMAND"),
        (["ls", "--quic", "x"], "unrecognized arguments: --quic"),
        (["prune", "x", "--keep-last", "0"], "1 or more, got '0'"),
        (["prune", "x", "--keep-best", "loss"], "METRIC:min or METRIC:max"),
        (["prune", "x", "--budget", "lots"], "write for example 20G"),
    ],
)
def test_an_invalid_option_exits_with_2(arguments, expected, capsys):
    """Invalid options are found before anything is read."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_the_command_is_installed_and_runs_as_a_module(save):
    """It runs as brain-ckpt and as python -m brain_ckpt, and a closed pipe is not an error."""
    scripts = importlib.metadata.distribution("brain-ckpt").entry_points
    assert [(one.name, one.value) for one in scripts] == [
        ("brain-ckpt", "brain_ckpt.cli.main:main")
    ]
    command = [sys.executable, "-m", "brain_ckpt", "show", str(save / "CKPT+two")]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
