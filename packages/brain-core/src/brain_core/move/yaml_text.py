"""Moves the tags of a HyperPyYAML text, such as ``!new:speechbrain.core.Brain``."""

from __future__ import annotations

import re

from brain_core.move.edits import NOT_HERE, Edit, Left, MoveError, Result, apply_edits
from brain_core.move.table import OLD, find

__all__ = ["move_yaml"]

_TAG = re.compile(rf"(!\w+:){OLD}\.([\w.]+)")


def move_yaml(text: str) -> Result:
    """Return a YAML text with its tags moved.

    Tags are found by PyYAML's scanner, so that values, keys and comments stay.

    Raises
    ------
    MoveError
        If the text is not YAML.

    Examples
    --------
    >>> move_yaml("counter: !new:speechbrain.utils.epoch_loop.EpochCounter").text
    'counter: !new:brain_core.EpochCounter'
    """
    import yaml

    edits, left = [], []
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if not isinstance(token, yaml.TagToken):
                continue
            start, end = token.start_mark.index, token.end_mark.index
            tag = _TAG.fullmatch(text, start, end)
            if tag is None:
                continue
            path = tuple(tag[2].split("."))
            moved = find(path)
            if moved is None:
                name = f"{OLD}.{tag[2]}"
                left.append(Left(token.start_mark.line + 1, name, NOT_HERE))
            else:
                new = ".".join((moved.package, moved.name, *path[moved.length :]))
                edits.append(Edit(start, end, tag[1] + new))
    except yaml.YAMLError as error:
        raise MoveError(f"this is not YAML: {error}") from error
    return Result(apply_edits(text, edits), left)
