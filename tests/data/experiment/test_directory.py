"""The directory of an experiment, in one process."""

import logging
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tqdm import tqdm

import brain_data.experiment.directory
from brain_data import (
    TqdmCompatibleStreamHandler,
    create_experiment_directory,
    get_environment_description,
)

YAML = "dir: /data\nsub: !ref <dir>/a\nlr: 0.1\nopt: !name:torch.optim.SGD\n  lr: !ref <lr>\n"


@pytest.fixture
def hyperparams(tmp_path):
    """A HyperPyYAML file."""
    path = tmp_path / "train.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture(autouse=True)
def _put_back():
    root, hook = logging.getLogger(), sys.excepthook
    handlers, level = list(root.handlers), root.level
    yield
    if brain_data.experiment.directory._Active.experiment is not None:
        brain_data.experiment.directory._Active.experiment.restore()
    assert sys.excepthook is hook, "the excepthook is not what it was"
    assert (root.handlers, root.level) == (handlers, level), "logging is not what it was"


def test_the_directory_holds_what_is_needed_to_reproduce_the_run(tmp_path, hyperparams):
    """It has hyperparameters, the calling script, the log and the environment."""
    made = create_experiment_directory(tmp_path / "a" / "b", hyperparams)
    folder = tmp_path / "a" / "b"
    assert made.path == folder
    names = {path.name for path in folder.iterdir()}
    assert names == {"hyperparams.yaml", "log.txt", "env.log", "test_directory.py"}
    assert (folder / "test_directory.py").read_text() == Path(__file__).read_text()
    assert "Beginning experiment!" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("overrides", [{"lr": 0.5}, "lr: 0.5\n"])
def test_hyperparameters_are_written_with_references_and_overrides(
    tmp_path, hyperparams, overrides
):
    """The overrides may be YAML, as from a command line."""
    create_experiment_directory(tmp_path / "x", str(hyperparams), overrides, save_env_desc=False)
    text = (tmp_path / "x" / "hyperparams.yaml").read_text()
    for line in ("sub: /data/a", "lr: 0.5", "  lr: 0.5", f"# {hyperparams}"):
        assert line in text.splitlines()
    assert not (tmp_path / "x" / "env.log").exists()


def test_a_second_run_appends_to_the_log_and_replaces_the_rest(tmp_path, hyperparams):
    """The log of the first run gets no further lines."""
    create_experiment_directory(tmp_path / "x", hyperparams)
    logging.getLogger("user").info("first run")
    create_experiment_directory(tmp_path / "x", hyperparams, {"lr": 7})
    logging.getLogger("user").info("second run")
    create_experiment_directory(tmp_path / "y")
    logging.getLogger("user").info("elsewhere")
    log = (tmp_path / "x" / "log.txt").read_text()
    assert [log.count(part) for part in ("first run", "second run", "elsewhere")] == [1, 1, 0]
    assert "lr: 7" in (tmp_path / "x" / "hyperparams.yaml").read_text()
    assert "elsewhere" in (tmp_path / "y" / "log.txt").read_text()


def test_an_exception_is_logged_and_passed_on(tmp_path, monkeypatch):
    """The former hook is called as well."""
    shown = []
    former = sys.excepthook
    monkeypatch.setattr(sys, "excepthook", lambda *args: shown.append(args))
    made = create_experiment_directory(tmp_path)
    error = ValueError("bad luck")
    sys.excepthook(ValueError, error, None)
    made.restore()
    monkeypatch.setattr(sys, "excepthook", former)
    assert shown == [(ValueError, error, None)]
    assert "ERROR - Exception:\nValueError: bad luck" in (tmp_path / "log.txt").read_text()


def test_the_returned_object_restores_everything(tmp_path):
    """A with or restore() does it, and restore() may be called twice."""
    hook, root = sys.excepthook, logging.getLogger()
    before = (list(root.handlers), root.level)
    with create_experiment_directory(tmp_path) as made:
        assert sys.excepthook is not hook
        assert root.level == logging.INFO
    made.restore()
    assert sys.excepthook is hook
    assert (root.handlers, root.level) == before


def test_a_hook_that_was_set_later_is_kept(tmp_path, monkeypatch):
    """An exception still reaches the former hook."""
    shown = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: shown.append(args))
    made = create_experiment_directory(tmp_path)
    ours = sys.excepthook

    def later(*args):
        ours(*args)

    monkeypatch.setattr(sys, "excepthook", later)
    made.restore()
    sys.excepthook(ValueError, ValueError("too late"), None)
    assert len(shown) == 1
    assert "too late" not in (tmp_path / "log.txt").read_text()
    monkeypatch.undo()


def test_a_notebook_has_no_script_to_copy(tmp_path):
    """Its globals have no __file__."""
    cell = compile("create(folder)", "/tmp/ipykernel_1/123.py", "exec")
    exec(cell, {"__name__": "__main__", "create": create_experiment_directory, "folder": tmp_path})
    assert {path.name for path in tmp_path.iterdir()} == {"log.txt", "env.log"}


def test_the_user_s_script_is_copied_through_another_of_these_packages(tmp_path):
    """The file of brain_core, which forwards the call, is not the script."""
    space = {"__name__": "brain_core._run", "__file__": "/nowhere/_run.py", "sys": sys}
    exec("def passed_on(create, *args):\n    return create(*args)", space)
    space["passed_on"](create_experiment_directory, tmp_path)
    assert (tmp_path / "test_directory.py").exists()


def test_a_script_in_the_directory_is_not_copied_onto_itself(tmp_path):
    """The experiment may run in the script's directory."""
    script = tmp_path / "train.py"
    script.write_text("create(folder)")
    space = {"create": create_experiment_directory, "folder": tmp_path, "__file__": str(script)}
    exec(compile(script.read_text(), str(script), "exec"), {**space, "__name__": "__main__"})
    assert script.read_text() == "create(folder)"


@pytest.mark.parametrize("as_file", [True, False])
def test_a_log_configuration_of_the_user_is_used(tmp_path, as_file):
    """The handler named file_handler gets the log file, as in SpeechBrain."""
    text = (
        "version: 1\nformatters: {f: {format: 'mine %(message)s'}}\n"
        "handlers: {file_handler: {class: logging.FileHandler, formatter: f, filename: log.txt}}\n"
        "root: {level: DEBUG, handlers: [file_handler]}\n"
    )
    config = tmp_path / "log.yaml"
    config.write_text(text)
    if not as_file:
        config = yaml.safe_load(text)
    create_experiment_directory(tmp_path / "x", log_config=config)
    logging.getLogger("user").debug("fine")
    assert "mine fine\n" in (tmp_path / "x" / "log.txt").read_text()


def test_a_log_configuration_without_a_file_gets_one(tmp_path):
    """The log is part of the experiment."""
    create_experiment_directory(tmp_path / "x", log_config={"version": 1})
    logging.getLogger("user").error("written")
    assert "written" in (tmp_path / "x" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("- a\n", ValueError, "dictionary for logging.config"),
        ("handlers: {h: {class: no.Such}}\n", ValueError, "handler 'h'"),
        (None, FileNotFoundError, r"log\.yaml"),
    ],
)
def test_an_invalid_log_configuration_changes_nothing(tmp_path, text, error, says):
    """The fixture checks that logging is as before."""
    config = tmp_path / "log.yaml"
    if text is not None:
        config.write_text(text)
    with pytest.raises(error, match=says):
        create_experiment_directory(tmp_path / "x", log_config=config)


def test_a_directory_that_cannot_be_written_raises_immediately(tmp_path, monkeypatch):
    """A file is in its place, or permission is denied."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"can write to; .*file/x is not one \("):
        create_experiment_directory(tmp_path / "file" / "x")

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied.*choose another folder"):
        create_experiment_directory(tmp_path / "x")


def test_hyperparameters_that_do_not_resolve_are_refused_before_anything_is_written(tmp_path):
    """The error names the file."""
    (tmp_path / "bad.yaml").write_text("a: !ref <b>\n")
    with pytest.raises(
        ValueError, match=r"bad\.yaml with the overrides None is not.*\"b\" is not valid"
    ):
        create_experiment_directory(tmp_path / "x", tmp_path / "bad.yaml")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        create_experiment_directory(tmp_path / "x", tmp_path / "none.yaml")
    assert not (tmp_path / "x").exists()


def test_the_environment_is_described():
    """Python, torch, devices, packages and the commit are listed; environment variables are not."""
    text = get_environment_description(Path(__file__).parent)
    for part in (sys.version, torch.__version__, "cpu: ", "pytest==", "Git:\n"):
        assert part in text
    assert "PATH=" not in text


def test_the_description_reports_a_missing_commit(tmp_path, monkeypatch):
    """There is no repository, or no git."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert f"no commit could be read in {tmp_path}" in get_environment_description(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert "no commit could be read" in get_environment_description()


def test_console_lines_do_not_break_a_progress_bar(capsys):
    """The bar is cleared, the line written, and the bar drawn again."""
    handler = TqdmCompatibleStreamHandler(sys.stderr)
    with tqdm(total=1, file=sys.stderr, ascii=True) as bar:
        handler.emit(logging.makeLogRecord({"msg": "hello"}))
        bar.update()
    lines = [line.split("\r")[-1].rstrip() for line in capsys.readouterr().err.split("\n") if line]
    assert lines[0] == "hello"
    assert lines[-1].startswith("100%")
