"""The known name that is nearest to an unknown one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for the end of an error message, empty if no known name is near.

    Examples
    --------
    >>> nearest("precison", ["precision", "device"])
    " Did you mean 'precision'?"
    """
    import difflib  # only an error needs it

    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""
