"""Download one file of a checkpoint in a mirror, for a `Pretrainer`."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from brain_ckpt.mirror.download import download_file
from brain_ckpt.mirror.listing import MirrorLister
from brain_ckpt.mirror.objects import ObjectStore
from brain_ckpt.mirror.url import is_mirror_url, split_url

if TYPE_CHECKING:
    from pathlib import Path


def download_one(url: str, target: Path) -> bool:
    """Download a file of a checkpoint, and verify each part of it.

    Parameters
    ----------
    url : str
        Such as "s3://bucket/runs/7/CKPT+.../model.ckpt".
    target : Path
        The file to write.

    Returns
    -------
    bool
        Whether the URL is in a mirror.  If not, it can be that of a directory that was copied to
        the store as it is.

    Raises
    ------
    FileNotFoundError
        If the mirror has no such checkpoint, or the checkpoint no such file.
    CheckpointDamagedError
        If a part differs from what was written.
    """
    if not is_mirror_url(url) or importlib.util.find_spec("obstore") is None:
        return False
    place = split_url(url)
    store = ObjectStore(place.mirror)
    listing = MirrorLister(store).list()
    if not listing.last_number:
        return False
    entries = [one for one in listing.entries if one.name == place.name]
    if not entries or place.file not in entries[0].manifest.files:
        held = ", ".join(sorted(entries[0].manifest.files)) if entries else "no such checkpoint"
        raise FileNotFoundError(
            f"{place.name} in {store.shown} must hold {place.file!r}, got {held}; correct the path"
        )
    download_file(store, entries[0], place.file, target)
    return True
