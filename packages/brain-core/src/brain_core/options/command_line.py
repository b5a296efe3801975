"""The command line: run options, and overrides of hyperparameters."""

from __future__ import annotations

import inspect
import json
import logging
import re
import sys
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from brain_core.options.suggestion import nearest
from brain_core.options.value_types import type_hints

if TYPE_CHECKING:
    import argparse

__all__ = ["read_command_line"]

logger = logging.getLogger(__name__)

Options = TypeVar("Options")

_NOT_ON_THE_COMMAND_LINE = {
    "data_parallel_count",
    "distributed_launch",
    "overridden_args",
    "param_file",
    "tqdm_barcolor",
}
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_command_line(
    cls: type[Options], arg_list: list[str] | None = None
) -> tuple[str, Options, str]:
    """Parse a command line into options of a class; see `brain_core.parse_arguments`.

    Parameters
    ----------
    cls : type
        A dataclass with a field for each option, each described in its docstring.
    arg_list : list of str, optional
        As in `brain_core.parse_arguments`, as is the return value.
    """
    parser = _make_parser(cls)
    words = sys.argv[1:] if arg_list is None else list(arg_list)
    flags = {f"--{f.name}" for f in _fields(cls) if f.default in (True, False) and f.type == "bool"}
    parsed, rest = parser.parse_known_args([_spell_flag(word, flags) for word in words])
    given = vars(parsed)
    overrides = _overrides_as_yaml(rest, parser, [f.name for f in _fields(cls)])
    try:
        return given["param_file"], cls(**given), overrides
    except ValueError as error:
        parser.error(str(error))


def _fields(cls: type) -> tuple[Field[Any], ...]:
    return fields(cls)


def _make_parser(cls: type) -> argparse.ArgumentParser:
    import argparse  # only a command line needs it

    parser = argparse.ArgumentParser(
        description="Run an experiment.",
        epilog="Any other --name=value overrides a hyperparameter of the file.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("param_file", help="the hyperparameters, a HyperPyYAML file")
    hints = type_hints(cls)
    texts = _help_texts(cls)
    for option in _fields(cls):
        if option.name not in _NOT_ON_THE_COMMAND_LINE:
            parser.add_argument(
                f"--{option.name}", **_kind(option, hints[option.name]), help=texts.get(option.name)
            )
    return parser


def _kind(option: Field[Any], hint: Any) -> dict[str, Any]:
    """Return the arguments of argparse's ``add_argument`` for an option."""
    import argparse  # as above

    choices = [a for a in get_args(hint) if a is not type(None)]
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if bool in choices:
        return {"type": _flag_or_names, "metavar": "true|false|NAME,..."}
    if choices and isinstance(choices[0], str):
        return {"choices": choices}
    if choices and choices[0] not in (int, str):
        return {"nargs": "*", "metavar": "KEY"}
    kind = choices[0] if choices else hint
    default = option.default
    shown = "" if default in (None, MISSING) else f"={default}"
    return {"type": kind, "metavar": f"{kind.__name__.upper()}{shown}"}


def _flag_or_names(value: str) -> bool | list[str]:
    """Return ``true`` and ``false`` as a flag, anything else as names between commas."""
    return _WORDS.get(value.lower(), value.split(","))


def _help_texts(cls: type) -> dict[str, str]:
    """Return each option's description, from the docstring of its class."""
    texts = {}
    # cleandoc: Python 3.13 strips the common indentation of docstrings, earlier versions do not.
    section = inspect.cleandoc(cls.__doc__ or "").split("Attributes\n----------\n")[-1] + "\n"
    for names, text in re.findall(r"^(\w[^\n]*)\n((?:    [^\n]+\n)+)", section, re.MULTILINE):
        for name in names.split(" : ")[0].split(", "):
            texts[name] = " ".join(text.split()).replace("%", "%%")
    return texts


def _spell_flag(word: str, flags: set[str]) -> str:
    """Rewrite ``--debug=false`` as ``--no-debug``, which argparse understands."""
    name, _, value = word.partition("=")
    if name in flags and value.lower() in _WORDS:
        return name if _WORDS[value.lower()] else f"--no-{name[2:]}"
    return word


def _overrides_as_yaml(rest: list[str], parser: argparse.ArgumentParser, known: list[str]) -> str:
    """Return overrides as YAML, one a line; of several for one name the last counts."""
    lines = {}
    words = _with_lists_joined(rest)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--") or len(name) == len("--"):
            parser.error(f"an override is written --name=value, got {word!r}.")
        key = name.removeprefix("--")
        hint = nearest(key.replace("-", "_"), known)
        if not equals:
            if not words or words[0].startswith("--"):
                parser.error(f"{word!r} is no run option, so it needs a value: {word}=value.{hint}")
            value = words.pop(0)
        if hint:
            logger.warning("--%s is no run option and overrides a hyperparameter.%s", key, hint)
        lines[key] = f"{key}: {_as_yaml(value)}"
    return "\n".join(lines.values())


def _with_lists_joined(words: list[str]) -> list[str]:
    """Join the words of a list that the shell has split at its blanks, as SpeechBrain does."""
    joined: list[str] = []
    for word in words:
        last = joined[-1] if joined else ""
        value = last.partition("=")[2] if last.startswith("--") else last
        is_open = value.startswith(("[", "{")) and not value.rstrip().endswith(("]", "}"))
        if is_open and not word.startswith("--"):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def _as_yaml(value: str) -> str:
    """Return a value as YAML that means what was typed: quoted where it would mean another."""
    import yaml  # only a command line needs it

    text = f"key: {value}"
    try:
        node = yaml.compose(text)
    except yaml.YAMLError:
        return json.dumps(value)
    is_one_value = isinstance(node, yaml.MappingNode) and len(node.value) == 1
    if not is_one_value or not value:
        return json.dumps(value)
    read = node.value[0][1]  # type: ignore[union-attr]  # a mapping, as checked
    is_whole = text[read.start_mark.index : read.end_mark.index] == value.strip()
    return value if is_whole else json.dumps(value)  # a comment would be dropped
