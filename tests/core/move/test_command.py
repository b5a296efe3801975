"""The command ``brain-move``."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys

import pytest

from brain_core.move import table
from brain_core.move.main import main

PYTHON = "import speechbrain as sb\nclass B(sb.Brain): x = sb.nnet\n"
MOVED = "import brain_core\nimport speechbrain as sb\nclass B(brain_core.Brain): x = sb.nnet\n"
YAML = "c: !new:speechbrain.utils.epoch_loop.EpochCounter\n"


@pytest.fixture
def recipe(tmp_path):
    """Return a folder with a recipe, and files that are not to be touched."""
    (tmp_path / "hparams").mkdir()
    (tmp_path / "train.py").write_text(PYTHON)
    (tmp_path / "hparams/train.yaml").write_text(YAML)
    for hidden in (".git", "__pycache__", "venv"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "x.py").write_text(PYTHON)
    (tmp_path / "venv/pyvenv.cfg").touch()
    (tmp_path / "README.md").write_text(PYTHON)
    return tmp_path


def texts(folder):
    """Return the content of all files."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_write_only_a_diff_is_shown(recipe, capsys):
    """Of Python and YAML files; what stays is on standard error, with file and line."""
    before = texts(recipe)
    assert main([str(recipe)]) == 0
    assert texts(recipe) == before
    out, err = capsys.readouterr()
    assert "+import brain_core\n" in out
    assert "-c: !new:speechbrain.utils.epoch_loop.EpochCounter\n+c: !new:brain_core.Epoch" in out
    assert f"{recipe / 'train.py'}:2: speechbrain.nnet stays: not part of Brain" in err
    assert "2 files: 2 would change (--write writes them), 1 still need speechbrain" in err


def test_write_writes_those_files_and_no_other(recipe, capsys):
    """A second call finds nothing to do."""
    before = texts(recipe)
    assert main([str(recipe), "--write"]) == 0
    after = texts(recipe)
    assert {path.name for path in after if after[path] != before[path]} == {
        "train.py",
        "train.yaml",
    }
    assert (recipe / "train.py").read_text() == MOVED
    capsys.readouterr()
    assert main([str(recipe), "--write"]) == 0
    assert capsys.readouterr().out == ""
    assert texts(recipe) == after


@pytest.mark.skipif(shutil.which("git") is None, reason="git applies the patch")
def test_the_diff_is_a_patch(recipe, capsys, monkeypatch):
    """Also of a file with carriage returns and without a last line end."""
    (recipe / "train.py").write_bytes(PYTHON.replace("\n", "\r\n").encode() + b"x = sb.Stage")
    monkeypatch.chdir(recipe)
    main(["."])
    patch = capsys.readouterr().out
    expected = recipe.parent / "expected.py"
    expected.write_bytes((recipe / "train.py").read_bytes())
    main([str(expected), "--write"])
    command = ["git", "apply", "--whitespace=nowarn", "-"]
    subprocess.run(command, input=patch.encode(), check=True, cwd=recipe)
    assert (recipe / "train.py").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("head", "encoding"), [("# coding: latin-1\n", "latin-1"), ("\ufeff", "utf-8"), ("", "utf-8")]
)
def test_encoding_and_mode_of_a_file_stay(tmp_path, head, encoding):
    """The encoding that its first line declares, or a mark at its beginning."""
    path = tmp_path / "train.py"
    path.write_bytes(f"{head}{PYTHON}y = 'größe'\n".encode(encoding))
    path.chmod(0o751)
    assert main([str(path), "--write"]) == 0
    assert path.read_bytes() == f"{head}{MOVED}y = 'größe'\n".encode(encoding)
    assert path.stat().st_mode & 0o777 == 0o751
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_is_named_stays_a_link(tmp_path):
    """The file that it leads to is written; in a folder links are left alone."""
    (tmp_path / "real.py").write_text(PYTHON)
    folder = tmp_path / "recipe"
    folder.mkdir()
    link = folder / "train.py"
    link.symlink_to(tmp_path / "real.py")
    main([str(folder), "--write"])
    assert (tmp_path / "real.py").read_text() == PYTHON
    main([str(link), "--write"])
    assert link.is_symlink()
    assert (tmp_path / "real.py").read_text() == MOVED


@pytest.mark.parametrize("content", [b"print 'x'", b"# coding: nothing\n", b"\xff", b"x = 1\0"])
def test_a_file_that_cannot_be_moved_is_told_and_the_others_are_moved(recipe, capsys, content):
    """The exit code is 1."""
    (recipe / "broken.py").write_bytes(content)
    assert main([str(recipe), "--write"]) == 1
    err = capsys.readouterr().err
    assert "broken.py: not moved: this is not" in err
    assert (recipe / "broken.py").read_bytes() == content
    assert (recipe / "train.py").read_text() == MOVED


def test_a_file_is_not_half_written(recipe, monkeypatch, capsys):
    """If the new text cannot be made durable, the old one stays, and nothing beside it."""

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    before = texts(recipe)
    assert main([str(recipe), "--write"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert texts(recipe) == before


@pytest.mark.parametrize(
    ("path", "said"), [("nowhere", "no file or folder"), ("a.txt", "must end")]
)
def test_a_path_that_makes_no_sense_is_a_usage_error(tmp_path, capsys, path, said):
    """Exit code 2."""
    (tmp_path / "a.txt").touch()
    assert main([str(tmp_path / path)]) == 2
    assert said in capsys.readouterr().err


def test_the_help_shows_the_whole_table(capsys):
    """Each module and each name."""
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert table.as_text() in out
    assert "from speechbrain.utils.parameter_transfer: Pretrainer" in out


@pytest.mark.parametrize(("package", "module", "names"), table._ROWS)
def test_each_name_of_the_table_is_public_in_its_package(package, module, names):
    """And leads there from SpeechBrain's module."""
    exported = importlib.import_module(package).__all__
    assert set(names) <= set(exported)
    for name in names:
        path = (*filter(None, module.split(".")), name)
        assert table.find(path) == (package, name, len(path))


def test_the_command_loads_neither_torch_nor_speechbrain(recipe):
    """It starts at once, and runs where the recipe cannot."""
    code = (
        "import sys; from brain_core.move.main import main; code = main(sys.argv[1:]); "
        "print({'torch', 'speechbrain'} & set(sys.modules)); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert re.search(r"^set\(\)$", done.stdout, re.MULTILINE)
