"""The command on URLs of object stores."""

import json

import pytest

from brain_ckpt.cli.main import main


@pytest.fixture
def run(capsys):
    """Return a function that runs the command, and returns its exit code and what it wrote."""

    def run_it(*arguments):
        code = main([str(one) for one in arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run_it


@pytest.fixture
def mirrored(make, s3):
    """Return a URL with two checkpoints, ``one`` and ``two``."""
    checkpointer = make(mirror=s3)
    checkpointer.save_checkpoint(meta={"loss": 0.5}, name="one")
    checkpointer.save_checkpoint(meta={"loss": 0.25}, name="two")
    checkpointer.close()
    return s3


def test_ls_lists_a_mirror(run, mirrored):
    """The newest first, with its metrics and size."""
    code, text = run("ls", mirrored)
    assert code == 0
    assert text.index("CKPT+two") < text.index("CKPT+one")
    assert "loss=0.25" in text
    rows = json.loads(run("ls", mirrored, "--json")[1])["checkpoints"]
    assert sorted(row["publication"] for row in rows) == [1, 2]


def test_verify_finds_a_damaged_part(run, mirrored, bucket):
    """Exit code 1, and the file is named."""
    from brain_ckpt.mirror.objects import ObjectStore

    assert run("verify", mirrored) == (0, "CKPT+one: intact\nCKPT+two: intact\n2 of 2 intact\n")
    found = bucket.objects(mirrored, "parts/")
    key = next(key for key in found if "model.ckpt" in key)
    ObjectStore(mirrored).replace(key, bytes(found[key]))
    code, text = run("verify", mirrored)
    assert code == 1
    assert "model.ckpt between byte 0" in text
    assert "1 of 2 intact" in text


def test_push_and_pull_copy_what_is_missing(run, make, s3, tmp_path):
    """Twice copies nothing the second time."""
    checkpointer = make()
    for name in ("one", "two"):
        checkpointer.save_checkpoint(name=name)
    checkpointer.close()
    assert "2 copied, 0 were there" in run("push", checkpointer.checkpoints_dir, s3)[1]
    assert "0 copied, 2 were there" in run("push", checkpointer.checkpoints_dir, s3)[1]
    assert "1 copied, 0 were here" in run("pull", s3, tmp_path / "pulled")[1]
    assert "1 copied, 1 were here" in run("pull", s3, tmp_path / "pulled", "--all")[1]
    assert "0 copied, 1 were here" in run("pull", f"{s3}/CKPT+one", tmp_path / "pulled")[1]
    assert run("verify", tmp_path / "pulled")[0] == 0


def test_diff_show_and_average_download_for_a_while(run, mirrored, tmp_path):
    """And leave nothing behind."""
    one, two = f"{mirrored}/CKPT+one", f"{mirrored}/CKPT+two"
    assert run("diff", one, two)[0] == 0
    assert "weight" in run("show", one)[1]
    assert run("average", one, two, "-o", tmp_path / "mean.pt")[0] == 0


def test_export_downloads_for_a_while(run, mirrored, tmp_path):
    """And writes the file that was asked for."""
    pytest.importorskip("safetensors")
    two = f"{mirrored}/CKPT+two"
    assert run("export", two, tmp_path / "model.safetensors")[0] == 0


def test_prune_deletes_from_a_mirror(run, mirrored, bucket):
    """What its dry run showed, with all parts."""
    assert "would delete CKPT+one" in run("prune", mirrored, "--keep-last", 1, "--dry-run")[1]
    assert "CKPT+one" in run("ls", mirrored)[1]
    assert "deleted CKPT+one" in run("prune", mirrored, "--keep-last", 1)[1]
    assert "CKPT+one" not in run("ls", mirrored)[1]
    commits = {key.split("/")[1] for key in bucket.objects(mirrored, "parts/")}
    assert len(commits) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["diff", "{url}", "{url}"], "CKPT must be one checkpoint"),
        (["pull", "{url}/CKPT+no", "x"], "there must be a checkpoint CKPT+no"),
        (["push", "no-directory", "{url}"], "DIR must be a directory"),
        (["ls", "s3://no-such-bucket/x"], "the bucket must exist"),
    ],
)
def test_a_wrong_place_is_a_usage_error(run, mirrored, tmp_path, monkeypatch, arguments, words):
    """Exit code 2, and what to name instead."""
    monkeypatch.chdir(tmp_path)
    code, text = run(*[one.format(url=mirrored) for one in arguments])
    assert code == 2
    assert words in text
