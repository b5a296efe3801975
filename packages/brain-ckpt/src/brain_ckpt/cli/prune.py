"""``brain-ckpt prune``: choose the checkpoints to delete, and delete them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from brain_ckpt.cli.file_checks import problems
from brain_ckpt.cli.inspect import DirectoryContents, find_incomplete, read_directory
from brain_ckpt.cli.output import write_json, write_line
from brain_ckpt.errors import UsageError
from brain_ckpt.loading.state_file import retry_if_gone
from brain_ckpt.ranks.shared_directory import SharedDirectory
from brain_ckpt.retention.checkpoint import metrics
from brain_ckpt.retention.policies import (
    DAY_S,
    HOUR_S,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepPinned,
    KeepWithinBytes,
    Policy,
    any_of,
)
from brain_ckpt.storage.listing import looks_like_checkpoint
from brain_ckpt.storage.opened import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brain_ckpt.retention.checkpoint import Checkpoint

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class _Choice(NamedTuple):
    """What `prune` keeps, what it deletes, and the damage of what it skips, by name."""

    kept: list[Checkpoint]
    deleted: list[Checkpoint]
    damaged: dict[str, str]


def parse_keep_best(text: str) -> KeepBest:
    """Parse ``metric:min`` or ``metric:max:K``."""
    key, _, rest = text.partition(":")
    mode, _, count = rest.partition(":")
    if not key or mode not in ("min", "max") or (count and not count.isdecimal()):
        raise argparse.ArgumentTypeError(
            f"--keep-best must be METRIC:min or METRIC:max, with :K for the best K, got {text!r}; "
            f"write for example loss:min:3"
        )
    return KeepBest(key, "min" if mode == "min" else "max", int(count or 1))


def parse_budget(text: str) -> KeepWithinBytes:
    """Parse a size such as ``500M`` or ``2G``."""
    digits, unit = (text[:-1], text[-1:]) if text[-1:] in "kMGT" else (text, "")
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(
            f"--budget must be a number of bytes, or one with k, M, G or T, got {text!r}; write "
            f"for example 20G"
        )
    return KeepWithinBytes(int(digits) * _UNITS[unit])


def parse_keep_last(text: str) -> KeepLast:
    """Parse a number of checkpoints."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(
            f"--keep-last must be 1 or more, got {text!r}; write for example 3"
        )
    return KeepLast(int(text))


def prune(options: argparse.Namespace) -> int:
    """Delete the checkpoints that no policy keeps, or show them."""
    policies = policies_of(options)
    path = Path(options.directory)
    read_directory(path)
    if looks_like_checkpoint(path):
        raise UsageError(
            f"DIR must be a directory of checkpoints, got {options.directory!r}, which is a "
            f"checkpoint; name {str(path.parent)!r}"
        )
    if options.dry_run:
        chosen = retry_if_gone(lambda: _choose(read_directory(path), policies), path)
    else:
        directory = SharedDirectory(path, renames=not options.no_atomic_rename)
        directory.lock()
        try:
            directory.store.clean_up()
            chosen = _choose(read_directory(path), policies)
            directory.store.delete([one.path for one in chosen.deleted])
        finally:
            directory.unlock()
    _report(chosen, dry_run=options.dry_run, as_json=options.json)
    return 0


def policies_of(options: argparse.Namespace) -> list[Policy]:
    """Return the policies that the options name."""
    policies: list[Policy] = [
        *(options.keep_last or []),
        *(options.keep_best or []),
        *([KeepEvery(HOUR_S)] if options.hourly else []),
        *([KeepEvery(DAY_S)] if options.daily else []),
        *([KeepPinned(options.pin)] if options.pin else []),
        *(options.budget or []),
    ]
    if not policies:
        raise UsageError(
            "prune must be told what to keep, got no policy, which would delete everything; pass "
            "for example --keep-last 3"
        )
    return policies


def _choose(contents: DirectoryContents, policies: Sequence[Policy]) -> _Choice:
    """Apply the policies to intact checkpoints only, so that no damaged one displaces them."""
    _check_metrics(contents.checkpoints, policies)
    incomplete = find_incomplete(contents.checkpoints)
    damaged = {path.name: reason for path, reason in contents.unreadable.items()}
    damaged |= {path.name: reason for path, reason in incomplete.items()}
    candidates = [one for one in contents.checkpoints if one.path not in incomplete]
    intact: set[Path] = set()
    while True:
        flags = any_of(*policies)(candidates)
        kept = [one for one, keep in zip(candidates, flags, strict=True) if keep]
        newly_damaged = {}
        for one in kept:
            if one.path not in intact and (found := _problems(one)):
                newly_damaged[one.path] = found[0]
            intact.add(one.path)
        if not newly_damaged:
            deleted = [one for one, keep in zip(candidates, flags, strict=True) if not keep]
            return _Choice(kept, deleted, damaged)
        damaged |= {path.name: reason for path, reason in newly_damaged.items()}
        candidates = [one for one in candidates if one.path not in newly_damaged]


def _problems(checkpoint: Checkpoint) -> list[str]:
    with open_checkpoint(checkpoint.path, hold=True) as opened:
        opened.check_same(checkpoint)
        return problems(opened)


def _check_metrics(checkpoints: Sequence[Checkpoint], policies: Sequence[Policy]) -> None:
    known = {key for one in checkpoints for key in metrics(one)}
    for policy in policies:
        if isinstance(policy, KeepBest) and checkpoints and policy.key not in known:
            raise UsageError(
                f"--keep-best must name a metric of a checkpoint, got {policy.key!r}; they "
                f"have {', '.join(sorted(known)) or 'none'}"
            )


def _report(choice: _Choice, *, dry_run: bool, as_json: bool) -> None:
    kept, deleted, damaged = choice
    if as_json:
        content: dict[str, Any] = {
            "dry_run": dry_run,
            "kept": [one.path.name for one in kept],
            "deleted": [one.path.name for one in deleted],
            "damaged": damaged,
        }
        write_json(content)
        return
    for one in kept:
        write_line(f"{'would keep' if dry_run else 'kept'} {one.path.name}")
    for one in deleted:
        write_line(f"{'would delete' if dry_run else 'deleted'} {one.path.name}")
    for name, reason in damaged.items():
        write_line(f"skipped {name}, which is damaged: {reason}")
    total = len(kept) + len(deleted) + len(damaged)
    write_line(f"{len(deleted)} of {total} {'would be deleted' if dry_run else 'deleted'}")
