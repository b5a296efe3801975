"""URLs of object stores: recognized, and shown without credentials."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from brain_ckpt.errors import UsageError
from brain_ckpt.storage.layout import PREFIX

if TYPE_CHECKING:
    from pathlib import Path

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "azure", "file")
EXAMPLE = "s3://bucket/runs/7"


class CheckpointUrl(NamedTuple):
    """The URL of a mirror, the name of a checkpoint in it, and the name of one of its files."""

    mirror: str
    name: str = ""
    file: str = ""


def is_mirror_url(place: str | Path) -> bool:
    """Return whether a place is the URL of an object store, and not a path."""
    return os.fspath(place).partition("://")[0] in SCHEMES and "://" in os.fspath(place)


def check_url(url: object) -> str:
    """Return the URL of a mirror without a slash at its end.

    Raises
    ------
    ValueError
        If it is not the URL of an object store.
    """
    if isinstance(url, str) and is_mirror_url(url):
        parts = urlsplit(url)
        if (parts.netloc or parts.scheme == "file") and not parts.username:
            return url.rstrip("/") if parts.path.strip("/") else url
    shown = shown_url(url) if isinstance(url, str) else repr(url)
    raise ValueError(
        f"a mirror must be the URL of an object store with a bucket, got {shown}; write for "
        f"example {EXAMPLE!r}, and pass credentials as the environment variables of that store"
    )


def shown_url(url: str) -> str:
    """Return a URL for messages: without user, password and query, which can be credentials."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else "a text without a scheme"


def split_url(url: str) -> CheckpointUrl:
    """Split a URL at the name of a checkpoint, ``CKPT+...``, if it has one.

    Raises
    ------
    UsageError
        If it is not the URL of an object store.
    """
    try:
        mirror, separator, rest = check_url(url).partition(f"/{PREFIX}+")
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not separator:
        return CheckpointUrl(mirror)
    name, _, file = rest.partition("/")
    return CheckpointUrl(mirror, f"{PREFIX}+{name}", file)
