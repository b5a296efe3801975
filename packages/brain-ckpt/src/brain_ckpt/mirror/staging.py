"""The temporary directory of a checkpointer that is given a URL alone."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from brain_ckpt.mirror.url import check_url, shown_url


def stage_url(url: str, mirror: str | None) -> tuple[Path, str]:
    """Return the temporary directory for a mirror, and its URL.

    All processes of a user on this machine get the same directory for the same URL, so that the
    ranks of a run share it, and a run that is started again need not download what is still there.

    Raises
    ------
    ValueError
        If the URL is not that of an object store, or a second one is given.
    PermissionError
        If the directory belongs to another user.
    """
    if mirror is not None:
        raise ValueError(
            f"checkpoints_dir must be a directory if a mirror is given, got {shown_url(url)}; pass "
            f"one URL, or a directory and a mirror"
        )
    digest = hashlib.sha256(check_url(url).encode()).hexdigest()[:16]
    owner = os.getuid() if hasattr(os, "getuid") else 0
    parent = Path(tempfile.gettempdir()) / f"brain-ckpt-{owner}"
    for path in (parent, parent / digest):
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if status.st_uid != owner or path.is_symlink():
            raise PermissionError(
                f"{path} must be a directory of this user, got one of user {status.st_uid}; remove "
                f"it, or set TMPDIR"
            )
    return parent / digest, url
