"""The public surface as text, a line for each name.

Names with their parameters and defaults, options of the command lines, exit codes, and what is
written to disk. `test_surface.py` compares it with ``surface.txt``, which this command rewrites::

    python tests/packaging/surface.py
"""

from __future__ import annotations

import argparse
import enum
import importlib
import inspect
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SURFACE = Path(__file__).with_name("surface.txt")
MODULES = ("brain_dist", "brain_ckpt", "brain_data", "brain_core", "brain_core.testing")


def surface() -> str:
    """Return the whole surface."""
    lines = [line for name in MODULES for line in names_of(importlib.import_module(name))]
    return "\n".join([*lines, *command_lines(), *exit_codes(), *on_disk()]) + "\n"


def changelog() -> str:
    """Return what CHANGELOG.md says of the version to come."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return text.split("## Unreleased\n")[1].split("\n## ")[0]


def names_of(module: Any) -> Iterator[str]:
    """Give a line for each public name of a module, and for what each public class has."""
    for name in sorted(module.__all__):
        value, path = getattr(module, name), f"{module.__name__}.{name}"
        if inspect.isclass(value):
            bases = [each.__name__ for each in value.__mro__[1:] if is_public(each)]
            yield f"class {path}{signature(value)}: {', '.join(bases)}".rstrip(": ")
            yield from (f"{path}.{line}" for line in sorted(members(value)))
        elif callable(value):
            yield f"{path}{signature(value)}"
        else:
            yield f"{path} = {value!r}"


def is_public(base: type) -> bool:
    """Return whether a base class is Python's own, or a public one of this repository."""
    if base.__module__ == "builtins":
        return base is not object
    package = importlib.import_module(base.__module__.partition(".")[0])
    return is_own(base) and base.__name__ in package.__all__


def is_own(thing: Any) -> bool:
    """Return whether something is defined in this repository."""
    return str(getattr(thing, "__module__", "")).startswith("brain_")


def members(cls: type) -> Iterator[str]:
    """Give the public attributes that a class has from this repository, not from torch."""
    seen = set()
    own = [each for each in cls.__mro__ if is_own(each)]
    for name, value in [pair for each in own for pair in vars(each).items()]:
        if name.startswith("_") or name in seen:
            continue
        seen.add(name)
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if inspect.isfunction(function):
            yield f"{name}{signature(function)}"
        elif isinstance(value, enum.Enum):
            yield f"{name} = {value.value!r}"
        else:
            yield name


def signature(function: Any) -> str:
    """Return the parameters with their defaults, without annotations."""
    if inspect.isclass(function):
        makers = [
            vars(each)["__init__"]
            for each in function.__mro__
            if is_own(vars(each).get("__init__"))
        ]
        if not makers:
            return ""
        function = makers[0]
    parameters = [
        parameter.replace(
            annotation=parameter.empty,
            default=parameter.default if parameter.default is parameter.empty else shown(parameter),
        )
        for parameter in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(parameters))


class shown:  # noqa: N801 - a function but for its repr
    """A default as it is written in the file, the same for every Python and torch."""

    def __init__(self, parameter: inspect.Parameter) -> None:
        default = parameter.default
        if isinstance(default, enum.Enum):
            self.text = f"{type(default).__name__}.{default.name}"
        elif callable(default):
            self.text = getattr(default, "__name__", type(default).__name__)
        else:
            self.text = re.sub(r" at 0x\w+", "", repr(default))

    def __repr__(self) -> str:
        return self.text


def command_lines() -> Iterator[str]:
    """Give the options of ``brain-ckpt``, ``brain-move``, ``brain-report`` and of a script."""
    from brain_ckpt.cli import main
    from brain_core import RunOptions
    from brain_core.charts import main as report
    from brain_core.move import main as move
    from brain_core.options import command_line

    for name, command in (("brain-move", move), ("brain-report", report)):
        options = [" or ".join(a.option_strings) or a.dest for a in command._parser()._actions]
        yield f"{name} {' '.join(sorted(options))}"
    parser = main._parser()
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for name, command in sorted(commands.choices.items()):
        options = [" or ".join(a.option_strings) or a.dest for a in command._actions]
        yield f"brain-ckpt {name} {' '.join(sorted(options))}"
    script = command_line._make_parser(RunOptions)
    named = {" or ".join(action.option_strings) or action.dest for action in script._actions}
    yield from (f"script.py {option}" for option in sorted(named))


def exit_codes() -> Iterator[str]:
    """Give the exit codes."""
    import brain_dist
    from brain_ckpt.cli import commands, main
    from brain_core.stopping import step_boundary

    yield f"exit_code of a run that should be started again: {brain_dist.EXIT_REQUEUE}"
    yield f"exit_code of a run after Ctrl-C: {step_boundary.EXIT_INTERRUPTED}"
    yield f"exit_code of brain-ckpt, damage or difference: {commands.DAMAGE_OR_DIFFERENCE}"
    yield f"exit_code of brain-ckpt, usage error: {main.USAGE_ERROR}"


def on_disk() -> Iterator[str]:
    """Give the files of a checkpoint, and the keys of what they hold."""
    import torch

    from brain_ckpt import Checkpointer
    from brain_data import ReproducibleRandomSampler, ResumableLoader, SaveableDataLoader

    with tempfile.TemporaryDirectory() as folder:
        model = torch.nn.Linear(1, 1)
        loader = SaveableDataLoader(range(4), sampler=ReproducibleRandomSampler(range(4)))
        checkpointer = Checkpointer(folder, {"model": model, "loader": loader})
        path = checkpointer.save_checkpoint(meta={"loss": 1.0}, name="x").path
        checkpointer.close()
        yield f"Checkpointer writes {' '.join(sorted(p.name for p in path.iterdir()))}"
        manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
        yield f"MANIFEST.json: format {manifest['format']}, {', '.join(sorted(manifest))}"
        first = next(iter(manifest["files"].values()))
        yield f"MANIFEST.json, a file: {', '.join(sorted(first))}"
    for name, state in {
        "SaveableDataLoader": loader.state_dict(),
        "ResumableLoader": ResumableLoader(torch.utils.data.DataLoader(range(4))).state_dict(),
    }.items():
        yield f"{name}.state_dict gives format {state['format']}, {', '.join(sorted(state))}"


if __name__ == "__main__":
    SURFACE.write_text(surface(), encoding="utf-8")
    sys.stdout.write(f"{SURFACE.relative_to(ROOT)}: rewritten\n")
