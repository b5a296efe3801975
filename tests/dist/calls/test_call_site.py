"""Names and places of calls."""

import inspect

from brain_dist.calls.call_site import describe_call, open_call, place_of, user_frame

LIBRARY = """
from brain_dist.calls.call_site import describe_call, open_call

def evaluate(call_back=lambda: describe_call("evaluate")):
    with open_call("evaluate"):
        return call_back()
"""


def _library(name):
    names = {"__name__": name}
    exec(compile(LIBRARY, "brain.py", "exec"), names)
    return names["evaluate"]


def test_the_place_of_a_call_is_the_line_of_the_users_code():
    """Not of the library that the user calls."""
    evaluate = _library("brain_core.brain")
    line = inspect.currentframe().f_lineno + 1
    description = evaluate()
    assert description.startswith("evaluate() at ")
    assert description.endswith(f"test_call_site.py:{line}")


def test_calls_are_named_from_the_inside():
    """Of the calls that are open."""
    with open_call("fit"), open_call("save_checkpoint"):
        description = describe_call("ddp_barrier")
    assert description.startswith("ddp_barrier() in save_checkpoint() in fit() at ")
    assert describe_call("ddp_barrier").startswith("ddp_barrier() at ")


def test_a_library_without_a_user_has_its_own_place():
    """The outermost frame then."""
    code = compile("import inspect\nframe = inspect.currentframe()", "main.py", "exec")
    names = {"__name__": "torch.main"}
    exec(code, names)
    frame = names["frame"]
    frame_above = frame.f_back
    assert user_frame(frame) is frame_above, "this test is the user"


def test_a_path_below_the_working_directory_is_relative(tmp_path, monkeypatch):
    """As the user wrote it; others are absolute."""
    names = {}
    for path in (tmp_path / "work" / "train.py", tmp_path / "other.py"):
        exec(compile("import inspect\nframe = inspect.currentframe()", str(path), "exec"), names)
        names[path.name] = names["frame"]
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert place_of(names["train.py"]) == "train.py:2"
    assert place_of(names["other.py"]) == f"{tmp_path / 'other.py'}:2"
