"""The command line: run options are taken, everything else overrides a hyperparameter."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_type_hints

from ._options import RunOptions, nearest

__all__ = ["parse_arguments"]

_NOT_ON_THE_COMMAND_LINE = {
    "data_parallel_count",
    "distributed_launch",
    "overridden_args",
    "param_file",
    "tqdm_barcolor",
}
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_arguments(arg_list: list[str] | None = None) -> tuple[str, RunOptions, str]:
    """Split a command line into the hyperparameter file, the run options and the overrides.

    An option's name is never completed: ``--test=x`` is a hyperparameter called ``test``. A flag
    is turned off by ``--no-flag`` or ``--flag=false``. A value keeps every ``=`` after the first.

    Parameters
    ----------
    arg_list : list of str, optional
        The words after the script's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    param_file : str
        The hyperparameter file.
    run_opts : RunOptions
        The options that were given, over the defaults.
    overrides : str
        The rest as YAML, one ``name: value`` a line, for ``load_hyperpyyaml``.

    Examples
    --------
    >>> parse_arguments(["train.yaml", "--debug", "--name=a=b"])[2]
    'name: a=b'
    """
    parser = _make_parser()
    words = sys.argv[1:] if arg_list is None else list(arg_list)
    parsed, rest = parser.parse_known_args([_spell_flag(word) for word in words])
    given = vars(parsed)
    overrides = _overrides_as_yaml(rest, parser)
    try:
        return given["param_file"], RunOptions(**given), overrides
    except ValueError as error:
        parser.error(str(error))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run an experiment.",
        epilog="Any other --name=value overrides a hyperparameter of the file.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("param_file", help="the hyperparameters, a HyperPyYAML file")
    hints = get_type_hints(RunOptions)
    texts = _help_texts()
    for option in fields(RunOptions):
        if option.name not in _NOT_ON_THE_COMMAND_LINE:
            parser.add_argument(
                f"--{option.name}", **_kind(option, hints[option.name]), help=texts.get(option.name)
            )
    return parser


def _kind(option: Field[Any], hint: Any) -> dict[str, Any]:
    """Say to argparse what an option takes."""
    choices = [a for a in get_args(hint) if a is not type(None)]
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if choices and isinstance(choices[0], str):
        return {"choices": choices}
    if choices and choices[0] not in (int, str):
        return {"nargs": "*", "metavar": "KEY"}
    kind = choices[0] if choices else hint
    default = option.default
    shown = "" if default in (None, MISSING) else f"={default}"
    return {"type": kind, "metavar": f"{kind.__name__.upper()}{shown}"}


def _help_texts() -> dict[str, str]:
    """Read what each option does from the one place where it is written: the docstring."""
    texts = {}
    section = (RunOptions.__doc__ or "").split("Attributes\n    ----------\n")[-1]
    for names, text in re.findall(
        r"^    (\w[^\n]*)\n((?:        [^\n]+\n)+)", section, re.MULTILINE
    ):
        for name in names.split(" : ")[0].split(", "):
            texts[name] = " ".join(text.split()).replace("%", "%%")
    return texts


def _spell_flag(word: str) -> str:
    """Write ``--debug=false`` as ``--no-debug``, which is how argparse has it."""
    name, _, value = word.partition("=")
    flags = {
        f"--{f.name}" for f in fields(RunOptions) if f.default in (True, False) and f.type == "bool"
    }
    if name in flags and value.lower() in _WORDS:
        return name if _WORDS[value.lower()] else f"--no-{name[2:]}"
    return word


def _overrides_as_yaml(rest: list[str], parser: argparse.ArgumentParser) -> str:
    lines = []
    words = iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or len(name) == len("--"):
            parser.error(f"an override is written --name=value, got {word!r}.")
        key = name.removeprefix("--")
        if not equals:
            value = next(words, None)  # type: ignore[assignment]  # None is dealt with at once
            if value is None or value.startswith("--"):
                known = [f.name for f in fields(RunOptions)]
                hint = nearest(key.replace("-", "_"), known)
                parser.error(f"{word!r} is no run option, so it needs a value: {word}=value.{hint}")
        lines.append(f"{key}: {_as_yaml(value)}")
    return "\n".join(lines)


def _as_yaml(value: str) -> str:
    """Quote a value that would not be YAML where it stands; leave any other as it was written."""
    import yaml  # only a command line needs it

    try:
        node = yaml.compose(f"key: {value}")
    except yaml.YAMLError:
        return json.dumps(value)
    is_one_value = isinstance(node, yaml.MappingNode) and len(node.value) == 1
    return value if is_one_value and value else json.dumps(value)
