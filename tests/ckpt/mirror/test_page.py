"""The page for users: its code runs, and survives the loss of its machine."""

import re
import runpy
import shutil
from pathlib import Path

import torch

PAGE = Path(__file__).parents[3] / "docs" / "my-machine-can-vanish.md"


def test_the_loop_of_the_page_goes_on_from_the_bucket(tmp_path, monkeypatch, s3):
    """Stopped in the middle, with its directory deleted, it ends with the same weights."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setenv("MIRROR", s3)
    for folder in ("undisturbed", "first", "second"):
        (tmp_path / folder).mkdir()
    whole = tmp_path / "whole.py"
    whole.write_text(code.replace('os.environ["MIRROR"]', "None"))
    part, rest = tmp_path / "part.py", tmp_path / "rest.py"
    part.write_text(code.replace("progress.step < 100", "progress.step < 60"))
    rest.write_text(code)

    monkeypatch.chdir(tmp_path / "undisturbed")
    expected = runpy.run_path(str(whole))["model"]
    monkeypatch.chdir(tmp_path / "first")
    runpy.run_path(str(part))
    shutil.rmtree(tmp_path / "first" / "save")
    monkeypatch.chdir(tmp_path / "second")
    found = runpy.run_path(str(rest))
    assert found["checkpointer"].find_checkpoint().meta["step"] == 100
    assert torch.equal(found["model"].weight, expected.weight)
    assert len(list(Path("save").glob("CKPT+*"))) == 2
