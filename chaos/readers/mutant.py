"""Readers without the protection that is tested: they must see mixed saves."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING
from unittest import mock

from brain_ckpt.storage import filesystem
from brain_ckpt.storage.opened import OpenedCheckpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from brain_ckpt import Checkpoint

__all__ = ["remove_protection"]


def remove_protection() -> None:
    """Read by path, and do not compare commit ids."""

    @contextlib.contextmanager
    def by_path(path: Path) -> Iterator[Path]:
        path.stat()
        yield path

    def is_current(opened: OpenedCheckpoint) -> bool:
        return bool(opened.checkpoint)

    def check_same(opened: OpenedCheckpoint, listed: Checkpoint) -> None:
        del opened, listed

    mock.patch.object(filesystem, "opened_directory", by_path).start()
    mock.patch.object(OpenedCheckpoint, "is_current", is_current).start()
    mock.patch.object(OpenedCheckpoint, "check_same", check_same).start()
