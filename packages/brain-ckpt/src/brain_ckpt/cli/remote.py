"""``push`` and ``pull``, and the other subcommands with the URL of a mirror."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_ckpt.cli.inspect import read_directory
from brain_ckpt.cli.output import (
    ProgressBar,
    format_age,
    format_number,
    format_size,
    write_json,
    write_line,
    write_table,
)
from brain_ckpt.errors import UsageError
from brain_ckpt.mirror.deletion import SWEEP_AGE_S, delete_entry, sweep
from brain_ckpt.mirror.download import download, is_here, verify_in_mirror
from brain_ckpt.mirror.listing import MirrorLister, MirrorListing
from brain_ckpt.mirror.objects import ObjectStore
from brain_ckpt.mirror.publish import (
    Publisher,
    check_writable,
    missing_parts,
    read_local,
    upload_parts,
)
from brain_ckpt.mirror.retries import retry
from brain_ckpt.mirror.url import is_mirror_url, shown_url, split_url
from brain_ckpt.mirror.workers import workers
from brain_ckpt.ranks.shared_directory import SharedDirectory
from brain_ckpt.retention.checkpoint import ckpt_recency, metrics
from brain_ckpt.retention.policies import any_of
from brain_ckpt.storage.filesystem import make_directories
from brain_ckpt.storage.layout import check_directory
from brain_ckpt.storage.store import Store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from brain_ckpt.mirror.entry import Entry
    from brain_ckpt.retention.checkpoint import Checkpoint
    from brain_ckpt.retention.policies import Policy

    Command = Callable[[argparse.Namespace], int]

OK, DAMAGE = 0, 1


def here_or_there(option: str, here: Command, there: Command) -> Command:
    """Return a command that calls one function for a path and another for a URL."""

    def run(options: argparse.Namespace) -> int:
        return (there if is_mirror_url(getattr(options, option)) else here)(options)

    return run


def downloaded(option: str, command: Command) -> Command:
    """Return a command for which the checkpoints that a URL names are downloaded for a while."""

    def run(options: argparse.Namespace) -> int:
        given = getattr(options, option)
        with tempfile.TemporaryDirectory(prefix="brain-ckpt-") as folder:
            places = [
                _download_one(place, Path(folder)) if is_mirror_url(place) else place
                for place in (given if isinstance(given, list) else [given])
            ]
            setattr(options, option, places if isinstance(given, list) else places[0])
            return command(options)

    return run


def ls(options: argparse.Namespace) -> int:
    """List a mirror, the newest checkpoint first; the files are not read."""
    store, listing, _ = _open(options.directory)
    rows: list[dict[str, Any]] = [
        {
            "name": one.name,
            "unixtime": ckpt_recency(checkpoint),
            "age_s": time.time() - ckpt_recency(checkpoint),
            "end_of_epoch": bool(checkpoint.meta.get("end-of-epoch", True)),
            "step": one.manifest.step,
            "metrics": metrics(checkpoint),
            "size_bytes": one.size_bytes,
            "publication": one.number,
        }
        for one, checkpoint in _newest_first(listing)
    ]
    if options.json:
        write_json({"checkpoints": rows, "unreadable": listing.unreadable})
    elif rows:
        table = [
            (
                row["name"],
                format_age(row["age_s"]),
                "end of epoch" if row["end_of_epoch"] else "inside an epoch",
                " ".join(f"{key}={format_number(value)}" for key, value in row["metrics"].items()),
                format_size(row["size_bytes"]),
            )
            for row in rows
        ]
        write_table(("name", "age", "at", "metrics", "size"), table, "lrllr")
    else:
        write_line(f"no checkpoint in {store.shown}")
    for reason in () if options.json else listing.unreadable.values():
        write_line(f"damaged: {reason}")
    return DAMAGE if listing.unreadable else OK


def verify(options: argparse.Namespace) -> int:
    """Download every part and compare it with what was written; nothing is stored."""
    store, listing, entries = _open(options.path)
    problems = {key: [reason] for key, reason in listing.unreadable.items()}
    with ProgressBar(sum(one.size_bytes for one in entries)) as progress:
        for one in entries:
            problems[one.name] = list(verify_in_mirror(store, one, progress).values())
    damaged = [name for name, found in problems.items() if found]
    if options.json:
        write_json({"checkpoints": problems, "damaged": damaged})
    else:
        for name, found in problems.items():
            write_line(f"{name}: {'; '.join(found) or 'intact'}")
        write_line(f"{len(problems) - len(damaged)} of {len(problems)} intact")
    return DAMAGE if damaged else OK


def prune(options: argparse.Namespace, policies: Sequence[Policy]) -> int:
    """Delete the checkpoints of a mirror that no policy keeps, or show them."""
    store, listing, entries = _open(options.directory)
    checkpoints = [one.checkpoint(Path()) for one in entries]
    flags = any_of(*policies)(checkpoints)
    deleted = [one for one, keep in zip(entries, flags, strict=True) if not keep]
    swept: list[str] = []
    if not options.dry_run:
        for one in deleted:
            retry(lambda one=one: delete_entry(store, one))  # type: ignore[misc]  # default arguments of a lambda
        swept = retry(lambda: sweep(store, listing, SWEEP_AGE_S))
    kept = [one.name for one in entries if one not in deleted]
    if options.json:
        names = [one.name for one in deleted]
        write_json({"dry_run": options.dry_run, "kept": kept, "deleted": names, "swept": swept})
        return OK
    for one in deleted:
        write_line(f"{'would delete' if options.dry_run else 'deleted'} {one.name}")
    count = f"{len(deleted)} of {len(entries)}"
    write_line(f"{count} {'would be deleted' if options.dry_run else 'deleted'}")
    if swept:
        write_line(f"deleted the parts of {len(swept)} unfinished uploads")
    return OK


def push(options: argparse.Namespace) -> int:
    """Copy checkpoints to a mirror; what is there is not copied again."""
    if split_url(options.url).name:
        raise UsageError(
            f"push needs the URL of a mirror, got {shown_url(options.url)}; leave out the name"
        )
    checkpoints = read_directory(options.path).checkpoints[::-1]
    if not checkpoints:
        raise UsageError(f"push needs a checkpoint, got none in {options.path!r}; name another")
    store, listing, _ = _open(options.url)
    retry(lambda: check_writable(store))
    known = listing.by_commit()
    publisher = Publisher(store, listing.last_number)
    new = [one for one in checkpoints if one.commit_id is None or one.commit_id not in known]
    with ProgressBar(sum(_size_of(one.path) for one in new)) as progress:
        for one in new:
            _push_one(store, publisher, one, progress)
    names = [one.path.name for one in new]
    _report(names, "pushed", len(checkpoints) - len(new), "there", as_json=options.json)
    return OK


def pull(options: argparse.Namespace) -> int:
    """Copy the newest checkpoint of a mirror, one by name or all into a directory."""
    store, _, entries = _open(options.url)
    if not split_url(options.url).name and not options.all:
        entries = entries[-1:]
    if not entries:
        raise UsageError(f"pull needs a checkpoint, got none in {store.shown}; name another mirror")
    root = check_directory(options.directory)
    make_directories(root)
    directory = SharedDirectory(root)
    new = [one for one in entries if not is_here(one, root)]
    directory.lock()
    try:
        with ProgressBar(sum(one.size_bytes for one in new)) as progress:
            for one in new:
                download(store, one, directory.store, progress)
                directory.store.clean_up()
    finally:
        directory.unlock()
    names = [one.name for one in new]
    _report(names, "pulled", len(entries) - len(new), "here", as_json=options.json)
    return OK


def _report(copied: list[str], verb: str, present: int, place: str, *, as_json: bool) -> None:
    """Write which checkpoints were copied, and how many were at the other place already."""
    if as_json:
        write_json({verb: copied, place: present})
        return
    for name in copied:
        write_line(f"copied {name}")
    write_line(f"{len(copied)} copied, {present} were {place}")


def _open(url: str) -> tuple[ObjectStore, MirrorListing, list[Entry]]:
    """Return a mirror, what it holds, and the checkpoints that a URL names, the oldest first."""
    place = split_url(url)
    store = ObjectStore(place.mirror)
    listing = MirrorLister(store).list()
    entries = [one for one, _ in _newest_first(listing)][::-1]
    if place.name:
        entries = [one for one in entries if one.name == place.name]
        if not entries:
            raise UsageError(
                f"there must be a checkpoint {place.name} in {store.shown}, got "
                f"{', '.join(one.name for one in listing.entries) or 'none'}; name one of them"
            )
    return store, listing, entries


def _newest_first(listing: MirrorListing) -> list[tuple[Entry, Checkpoint]]:
    by_commit = listing.by_commit()
    checkpoints = listing.checkpoints(Path())[::-1]
    return [(by_commit[one.commit_id or ""], one) for one in checkpoints]


def _download_one(url: str, folder: Path) -> str:
    place = split_url(url)
    store, _, entries = _open(url)
    if not place.name:
        raise UsageError(
            f"CKPT must be one checkpoint, got the mirror {store.shown} of {len(entries)}; name "
            f"one, such as {store.shown}/{entries[-1].name if entries else 'CKPT+...'}"
        )
    (entry,) = entries
    target = folder / entry.commit_id
    target.mkdir(exist_ok=True)
    if not is_here(entry, target):
        with ProgressBar(entry.size_bytes) as progress:
            download(store, entry, Store(target, "download"), progress)
    return str(target / entry.name / place.file if place.file else target / entry.name)


def _push_one(
    store: ObjectStore,
    publisher: Publisher,
    checkpoint: Checkpoint,
    progress: Callable[[int], object],
) -> None:
    manifest_text, meta_text, manifest = read_local(checkpoint.path)

    def upload() -> None:
        with workers() as made:
            upload_parts(store, checkpoint.path, manifest, lambda _: True, progress, made)
        assert not missing_parts(store, manifest)
        publisher.publish(checkpoint.path.name, manifest_text, meta_text, manifest)

    retry(upload)


def _size_of(path: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return 0
