"""Moving the imports and names of Python files."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from brain_core.move.edits import MoveError
from brain_core.move.python_text import move_python


def moved(text):
    """Return what becomes of a text that is indented as the test is."""
    return move_python(textwrap.dedent(text)).text


def stays(text):
    """Return the names that stay."""
    return [each.name for each in move_python(textwrap.dedent(text)).left]


TEXT = Path(__file__).with_name("shapes.txt").read_text(encoding="utf-8")
SHAPES = {
    name: tuple(rest.split("--- becomes\n"))
    for name, _, rest in (part.partition("\n") for part in TEXT.split("=== ")[1:])
}


@pytest.mark.parametrize(("before", "after"), SHAPES.values(), ids=SHAPES)
def test_an_import_of_this_shape_is_moved(before, after):
    """With the names that it gives; what is moved parses, and moving it again changes nothing."""
    assert moved(before) == after
    ast.parse(after)
    assert moved(after) == after


@pytest.mark.parametrize(("before", "after"), SHAPES.values(), ids=SHAPES)
def test_line_ends_are_kept(before, after):
    """A file with carriage returns has them on its new lines, too."""
    assert moved(before.replace("\n", "\r\n")) == after.replace("\n", "\r\n")


@pytest.mark.parametrize(
    "text",
    [
        "# import speechbrain as sb\nx = 'speechbrain.core.Brain'\n",
        "import os\nspeechbrain = os\nx = speechbrain.core.Brain\n",
        "def f(speechbrain):\n    return speechbrain.core.Brain\n",
        "from . import speechbrain\nx = speechbrain.core.Brain\n",
        "from .speechbrain.core import Brain\n",
        "import speechbrain_extra.core as sb\nx = sb.Brain\n",
        "import speechbrain.nnet.schedulers as s\nx = s.NoamScheduler\n",
        "from speechbrain.nnet.schedulers import NoamScheduler\n",
        "import speechbrain as sb\nsb.core.Brain = None\n",
        "import speechbrain as sb\n",
        "",
    ],
)
def test_what_is_not_here_stays(text):
    """Strings, comments, other modules, and other things of the same name."""
    assert moved(text) == text


@pytest.mark.parametrize(
    "other",
    ["sb = None", "for sb in (): pass", "del sb", "def sb(): pass", "import os as sb"],
)
def test_a_name_that_is_bound_to_something_else_too_stays_and_is_named(other):
    """Which of both a use means is not known before the program runs."""
    text = f"import speechbrain as sb\n{other}\nx = sb.Stage\n"
    assert moved(text) == text
    assert stays(text) == ["sb.Stage"]


def test_a_parameter_of_the_same_name_is_not_the_module():
    """Nor is a variable of a comprehension, or a local one."""
    text = """
        import speechbrain as sb
        a = [sb.Stage for sb in sb.Stage]
        def f(sb): return sb.Stage
        def g(): sb = 1; return sb.Stage
        class C:
            sb = 2
            def h(self): return sb.Stage
    """
    assert moved(text) == textwrap.dedent("""
        import brain_core
        a = [sb.Stage for sb in brain_core.Stage]
        def f(sb): return sb.Stage
        def g(): sb = 1; return sb.Stage
        class C:
            sb = 2
            def h(self): return brain_core.Stage
    """)


def test_a_global_statement_leads_to_the_module():
    """An assignment behind it rebinds the import."""
    text = "import speechbrain as sb\ndef f():\n    try: x()\n    except E: global sb\n    sb = 1\n"
    assert moved(text + "y = sb.Stage\n") == text + "y = sb.Stage\n"


def test_what_stays_is_told_with_its_line_and_reason():
    """Each name as SpeechBrain has it."""
    text = """\
        import speechbrain as sb
        import speechbrain.dataio.dataio as io
        from speechbrain import nnet
        x = sb.nnet.losses.nll_loss, io.read_audio
        f(sb)
    """
    left = move_python(textwrap.dedent(text)).left
    assert [(each.line, each.name) for each in left] == [
        (3, "speechbrain.nnet"),
        (4, "speechbrain.dataio.dataio.read_audio"),
        (4, "speechbrain.nnet.losses.nll_loss"),
        (5, "speechbrain"),
    ]
    assert {each.why for each in left} == {"not part of Brain"}


def test_an_import_that_is_not_used_is_told():
    """Another file may import it from here."""
    (left,) = move_python("import speechbrain as sb").left
    assert left.why == "imported, and not used in this file"


def test_a_module_whose_name_is_patched_stays_imported():
    """An assignment into SpeechBrain's module does not reach the package here."""
    text = "import speechbrain as sb\nsb.core.Brain = X\ny = sb.Stage\n"
    assert moved(text) == (
        "import brain_core\nimport speechbrain as sb\nsb.core.Brain = X\ny = brain_core.Stage\n"
    )
    assert stays(text) == ["speechbrain.core.Brain"]


@pytest.mark.parametrize("binding", ["brain_core = 1", "def f(brain_core): pass"])
def test_a_package_name_that_is_taken_is_an_error(binding):
    """The import would take it away from what has it."""
    with pytest.raises(MoveError, match="line 2 gives the name brain_core to something else"):
        move_python(f"import speechbrain as sb\n{binding}\nx = sb.Stage\n")


def test_a_text_that_is_not_python_is_an_error():
    """A file of Python 2, say."""
    with pytest.raises(MoveError, match="not Python"):
        move_python("print 'x'")
