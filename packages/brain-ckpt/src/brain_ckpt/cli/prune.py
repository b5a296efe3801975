"""``brain-ckpt prune``: which checkpoints go, and their safe deletion."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_ckpt.cli.inspect import Found, WrongUseError, find, metrics, not_whole, problems
from brain_ckpt.cli.output import write_json, write_line
from brain_ckpt.retention.policies import (
    DAY_S,
    HOUR_S,
    Checkpoint,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepPinned,
    KeepWithinBytes,
    Policy,
    any_of,
)
from brain_ckpt.saving.writer import Writer
from brain_ckpt.storage.listing import looks_like_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def best(text: str) -> KeepBest:
    """Read ``metric:min`` or ``metric:max:K`` from a command line."""
    key, _, rest = text.partition(":")
    mode, _, count = rest.partition(":")
    if not key or mode not in ("min", "max") or (count and not count.isdecimal()):
        raise argparse.ArgumentTypeError(
            f"what to keep is METRIC:min or METRIC:max, with :K for the best K, got {text!r}; "
            f"write for example loss:min:3"
        )
    return KeepBest(key, "min" if mode == "min" else "max", int(count or 1))


def budget(text: str) -> KeepWithinBytes:
    """Read a size such as ``500M`` or ``2G`` from a command line."""
    digits, unit = (text[:-1], text[-1:]) if text[-1:] in "kMGT" else (text, "")
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(
            f"a budget is a number of bytes, or one with k, M, G or T, got {text!r}; write for "
            f"example 20G"
        )
    return KeepWithinBytes(int(digits) * _UNITS[unit])


def count(text: str) -> KeepLast:
    """Read a number of checkpoints from a command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(
            f"the number of checkpoints to keep is 1 or more, got {text!r}; write for example 3"
        )
    return KeepLast(int(text))


def prune(options: argparse.Namespace) -> int:
    """Delete the checkpoints that no policy keeps, or say which they are."""
    policies = _policies(options)
    path = Path(options.directory)
    found = find(path)
    if looks_like_checkpoint(path):
        raise WrongUseError(
            f"DIR is a directory of checkpoints, got {options.directory!r}, which is one; name "
            f"{str(path.parent)!r}"
        )
    if options.dry_run:
        kept, doomed, damaged = _choose(found, policies)
    else:
        writer = Writer(path, "crc32", renames=not options.no_atomic_rename)
        writer.lock()
        try:
            writer.store.tidy()
            kept, doomed, damaged = _choose(find(path), policies)
            writer.store.delete([one.path for one in doomed])
        finally:
            writer.close()
    _report(kept, doomed, damaged, dry_run=options.dry_run, as_json=options.json)
    return 0


def _policies(options: argparse.Namespace) -> list[Policy]:
    policies: list[Policy] = [
        *(options.keep_last or []),
        *(options.keep_best or []),
        *([KeepEvery(HOUR_S)] if options.hourly else []),
        *([KeepEvery(DAY_S)] if options.daily else []),
        *([KeepPinned(options.pin)] if options.pin else []),
        *(options.budget or []),
    ]
    if not policies:
        raise WrongUseError(
            "prune needs to know what to keep, got no policy, which would delete everything; say "
            "for example --keep-last 3"
        )
    return policies


def _choose(
    found: Found, policies: Sequence[Policy]
) -> tuple[list[Checkpoint], list[Checkpoint], dict[str, str]]:
    """Apply the policies to what is intact: a damaged one must not push an intact one out."""
    _check_metrics(found.checkpoints, policies)
    lacking = not_whole(found.checkpoints)
    damaged = {path.name: why for path, why in (*found.unreadable.items(), *lacking.items())}
    candidates = [one for one in found.checkpoints if one.path not in lacking]
    intact: set[Path] = set()
    while True:
        stays = any_of(*policies)(candidates)
        kept = [one for one, stay in zip(candidates, stays, strict=True) if stay]
        bad = {}
        for one in kept:
            if one.path not in intact and (wrong := problems(one)):
                bad[one.path] = wrong[0]
            intact.add(one.path)
        if not bad:
            doomed = [one for one, stay in zip(candidates, stays, strict=True) if not stay]
            return kept, doomed, damaged
        damaged |= {path.name: reason for path, reason in bad.items()}
        candidates = [one for one in candidates if one.path not in bad]


def _check_metrics(checkpoints: Sequence[Checkpoint], policies: Sequence[Policy]) -> None:
    known = {key for one in checkpoints for key in metrics(one)}
    for policy in policies:
        if isinstance(policy, KeepBest) and checkpoints and policy.key not in known:
            raise WrongUseError(
                f"--keep-best names a metric that some checkpoint has, got {policy.key!r}; they "
                f"have {', '.join(sorted(known)) or 'none'}"
            )


def _report(
    kept: list[Checkpoint],
    doomed: list[Checkpoint],
    damaged: dict[str, str],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    if as_json:
        content: dict[str, Any] = {
            "dry_run": dry_run,
            "kept": [one.path.name for one in kept],
            "deleted": [one.path.name for one in doomed],
            "damaged": damaged,
        }
        write_json(content)
        return
    for one in kept:
        write_line(f"{'would keep' if dry_run else 'kept'} {one.path.name}")
    for one in doomed:
        write_line(f"{'would delete' if dry_run else 'deleted'} {one.path.name}")
    for name, reason in damaged.items():
        write_line(f"left alone {name}, which is damaged: {reason}")
    what = "would go" if dry_run else "went"
    write_line(f"{len(doomed)} of {len(kept) + len(doomed) + len(damaged)} {what}")
