"""Random modules do after moving what they did before."""

from __future__ import annotations

import ast
import builtins
import types

from hypothesis import given, settings
from hypothesis import strategies as st

from brain_core.move import table
from brain_core.move.python_text import move_python

THEIRS = ("nnet.losses.nll_loss", "dataio.dataio.read_audio", "utils.logger.get_logger", "lobes.X")
OURS = {
    f"{module}.{name}".lstrip("."): package
    for package, module, names in table._ROWS
    for name in names
}


def tree():
    """Return stand-ins for SpeechBrain and the packages here; a name of both is equal in both."""
    root = types.SimpleNamespace(speechbrain=types.SimpleNamespace())

    def put(path, value):
        *parents, last = path.split(".")
        node = root
        for part in parents:
            node.__dict__.setdefault(part, types.SimpleNamespace())
            node = getattr(node, part)
        setattr(node, last, value)

    for name, package in OURS.items():
        value = types.SimpleNamespace(token=name.rpartition(".")[2])
        put(f"speechbrain.{name}", value)
        put(f"{package}.{value.token}", value)
    for name in THEIRS:
        put(f"speechbrain.{name}", types.SimpleNamespace(token=name))
    return root


def run(text):
    """Return what a module appends to ``out``."""
    modules = tree()

    def import_(name, _globals=None, _locals=None, fromlist=(), _level=0):
        node = modules
        for part in name.split(".") if fromlist else name.split(".")[:1]:
            node = getattr(node, part)
        return node

    out = []
    exec(text, {"__builtins__": {**vars(builtins), "__import__": import_}, "out": out})
    return out


NAMES = st.sampled_from([*OURS, *THEIRS])
ALIASES = st.sampled_from(["sb", "speechbrain", "m", "core"])


@st.composite
def snippets(draw):
    """Draw an import, and lines that use what it gives."""
    chosen = draw(st.lists(NAMES, min_size=1, max_size=3))
    kind = draw(st.sampled_from(["package", "module", "alias", "names", "module from", "star"]))
    module, _, last = chosen[0].rpartition(".")
    whole = f"speechbrain.{module}".rstrip(".")
    alias = draw(ALIASES)
    if kind == "package":
        return f"import speechbrain as {alias}", [f"{alias}.{name}" for name in chosen]
    if kind == "module":
        return f"import {whole}", [f"speechbrain.{name}" for name in chosen]
    if kind == "alias":
        return f"import {whole} as {alias}", [f"{alias}.{last}"]
    if kind == "module from" and "." in module:
        parent, _, name = module.rpartition(".")
        return f"from speechbrain.{parent} import {name} as {alias}", [f"{alias}.{last}"]
    beside = [name.rpartition(".")[2] for name in [*OURS, *THEIRS] if name.startswith(f"{module}.")]
    names = draw(st.lists(st.sampled_from(beside), max_size=2)) if module and beside else []
    names = list(dict.fromkeys([last, *(n for n in names if f"{module}.{n}" in {*OURS, *THEIRS})]))
    if kind == "star":
        return f"from {whole} import *", names
    layout = draw(st.sampled_from(["{}", "({})", "(\n        {},  # several\n    )"]))
    listed = layout.format(", ".join(f"{name} as {name}_" for name in names))
    return f"from {whole} import {listed}", [f"{name}_" for name in names]


PLACES = (
    "{imported}\n{uses}\n",
    "def f():\n    {imported}\n    {uses}\nf()\n",
    "try:\n    {imported}\n    {uses}\nexcept ImportError:\n    raise\n",
    "class C:\n    {imported}\n    {uses}\n",
    "if out is not None: {imported}; {uses}\n",
)
DECOYS = (
    "# import speechbrain as sb, sb.core.Brain",
    "text = 'speechbrain.core.Brain', 'sb.Stage'  # sb.Brain",
    '"""\nimport speechbrain as sb\n"""',
    "def other(sb, speechbrain=1): return sb, speechbrain",
)


@st.composite
def modules(draw):
    """Draw a module of several snippets, with decoys between them."""
    lines = []
    for imported, uses in draw(st.lists(snippets(), min_size=1, max_size=4)):
        places = PLACES[:1] if imported.endswith("*") else PLACES
        if "\n" in imported:
            places = PLACES[:4]
        form = draw(st.sampled_from(places))
        shown = "; ".join(
            draw(st.sampled_from(["out.append({})", "out.append(f'{{ {} }}')"])).format(use)
            for use in uses
        )
        lines += [form.format(imported=imported, uses=shown), draw(st.sampled_from(DECOYS))]
    return "\n".join(lines) + "\n"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(modules())
def test_a_moved_module_does_what_it_did(text):
    """It parses, gives the same objects, keeps its other lines, and is moved only once."""
    moved = move_python(text).text
    ast.parse(moved)
    assert run(moved) == run(text)
    assert move_python(moved).text == moved
    kept = iter(moved.split("\n"))
    others = [line for line in text.split("\n") if line in DECOYS or "speechbrain" not in line]
    assert [line for line in others if "out.append" not in line and line not in kept] == []
