"""The command ``python -m release``: what it does, step by step, and its exit code."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from release.build import build, build_from_sdists, bump, clean_clone, differing_files
from release.index import Index, upload
from release.installs import rehearse_installs
from release.metadata import check_long_descriptions, check_metadata, check_with_twine
from release.steps import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str]) -> int:
    """Build what is published, check it, and install it as users would.

    Returns
    -------
    int
        0 if all went well, otherwise 1.
    """
    parser = argparse.ArgumentParser(prog="python -m release", description=main.__doc__)
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="upload to an index on this machine, and install from it in every way",
    )
    parser.add_argument(
        "--torch",
        type=Path,
        help="a folder with torch and numpy, which the environments use instead of installing them",
    )
    options = parser.parse_args(arguments)
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="brain-release-"))
    try:
        files = built_and_checked(scratch)
        if options.rehearse:
            rehearse(files, scratch, options.torch)
        else:
            for file in files:
                shutil.copy(file, ROOT / "dist")
    except ReleaseError as error:
        print(f"FAILED: {error}")
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"All steps passed in {time.monotonic() - began:.0f} s.")
    return 0


def built_and_checked(scratch: Path) -> list[Path]:
    """Return wheels and sdists of the last commit, in a folder below ``scratch``."""
    clones = [clean_clone(ROOT, scratch / name) for name in ("first", "second")]
    first, second = (build(clone, clone / "dist") for clone in clones)
    if found := differing_files(first, second):
        raise ReleaseError(f"two builds of one commit differ in {', '.join(found)}")
    print(f"two builds in two clones: all {len(first)} files are equal to the byte")
    again = build_from_sdists(first, scratch / "from-sdist")
    wheels = [file for file in first if file.suffix == ".whl"]
    if found := differing_files(wheels, again):
        raise ReleaseError(f"wheels built from the sdists differ: {', '.join(found)}")
    print(f"{len(again)} wheels built from the sdists: equal to the byte")
    check_with_twine(first)
    check_metadata(clones[0], first)
    check_long_descriptions(first)
    return first


def rehearse(files: list[Path], scratch: Path, torch: Path | None) -> None:
    """Upload the files and a later version to an index, and install from there."""
    clone = clean_clone(ROOT, scratch / "later")
    later = bump(clone)
    with Index(scratch / "index") as index:
        upload(files, index.url)
        rehearse_installs(
            index=index,
            publish_later=lambda: upload(build(clone, clone / "dist"), index.url),
            versions=(files[0].name.split("-")[1], later),
            scratch=scratch / "installs",
            torch=torch,
        )
