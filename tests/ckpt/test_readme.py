"""The README: its loop, the output of the command, the promises and the list of modules."""

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

import brain_ckpt
from brain_ckpt.cli.main import main
from brain_ckpt.storage import filesystem

ROOT = Path(__file__).parents[2]
README = ROOT / "packages" / "brain-ckpt" / "README.md"


@pytest.fixture(scope="module")
def readme():
    """Return the text."""
    return README.read_text(encoding="utf-8")


@pytest.fixture
def loop(readme):
    """Return a function that runs the loop in a directory and returns its variables."""
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)

    def runs(directory):
        names = {}
        with _inside(directory):
            exec(compile(code, "README.md", "exec"), names)
        return names

    return runs


@contextlib.contextmanager
def _inside(directory):
    # contextlib.chdir is not in Python 3.10.
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def weights(names):
    """Return the parameters of the loop as numbers."""
    return [parameter.tolist() for parameter in names["model"].parameters()]


def test_the_loop_of_the_readme_survives_kills(loop, processes, tmp_path):
    """It is killed at file operations of its saves, and ends with bit-equal parameters."""
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    expected = weights(loop(tmp_path / "undisturbed"))
    state = torch.get_rng_state()
    for operation in (3, 20, 50, 70):
        torch.manual_seed(operation)  # a new process has other random numbers

        def killed(report, operation=operation):
            filesystem.failpoint = processes.KillAt(operation)
            loop(tmp_path / "killed")

        assert processes.Child(killed).wait() == processes.KILLED
    assert weights(loop(tmp_path / "killed")) == expected
    assert torch.equal(torch.get_rng_state(), state)
    again = loop(tmp_path / "killed")  # training is already complete
    assert weights(again) == expected
    assert len(list((tmp_path / "killed" / "save").glob("CKPT*"))) >= 2


def test_the_loop_of_the_readme_is_short(readme):
    """It has at most twenty lines."""
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 20
    assert max(map(len, code.splitlines())) <= 100


def test_the_command_prints_what_the_readme_shows(readme, loop, tmp_path):
    """Times, sizes and numbers may differ, and the directory is not changed."""
    (console,) = re.findall(r"```console\n(.*?)```", readme, re.DOTALL)
    loop(tmp_path)
    there = sorted((tmp_path / "save").rglob("*"))
    with _inside(tmp_path):
        said = _run("ls save")
        shown = [part for part in re.split(r"^\$ brain-ckpt ", console, flags=re.MULTILINE) if part]
        names = [re.findall(r"^CKPT\S+", text, re.MULTILINE) for text in (shown[0], said)]
        assert len(names[0]) == len(names[1])
        for example in shown:
            command, _, expected = example.partition("\n")
            for old, new in zip(*names, strict=True):
                command = command.replace(old, f"<{new}>")
            command = re.sub("[<>]", "", command)
            assert _numberless(_run(command)) == _numberless(expected), command
    assert sorted((tmp_path / "save").rglob("*")) == there


def _run(command):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main(shlex.split(command))
    return said.getvalue()


def _numberless(text):
    numberless = re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", text.replace("now", "1 s"))
    return [line.split() for line in numberless.splitlines()]


def test_each_promise_of_the_readme_names_existing_tests(readme):
    """Each test exists in its file; a link would lead nowhere on the page of an index."""
    promises = readme.partition("## What is promised")[2].partition("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 15
    for row in rows:
        tests = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", row)
        assert tests, row
        for file, name in tests:
            assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_the_readme_describes_each_public_name(readme):
    """It describes no other name."""
    table = readme.partition("## Names")[2].partition("\n## ")[0]
    cells = re.findall(r"^\|(.*?)\|", table, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(brain_ckpt.__all__)


def test_the_readme_names_every_module_once(readme):
    """It names no other module."""
    table = readme.partition("## Modules")[2]
    named = [
        folder + name
        for folder, cell in re.findall(r"^\| (?:`(\w+/)`|\(\w+\)) \|(.*)\|$", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    ]
    source = Path(brain_ckpt.__file__).parent
    modules = [
        file.relative_to(source).with_suffix("").as_posix()
        for file in source.rglob("*.py")
        if not file.stem.startswith("__")
    ]
    assert sorted(named) == sorted(modules)


def test_the_session_of_the_long_run_exists(readme):
    """The sessions are `nox -s chaos -- ckpt` and `nox -s bench -- ckpt`."""
    sessions = set(re.findall(r"nox -s (\w+) -- ckpt", readme))
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    assert sessions == {"chaos", "bench"}
    assert all(f"def {name}(session" in noxfile for name in sessions)
