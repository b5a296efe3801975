"""What each part of the command ``brain-ckpt`` does, but for ``prune``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_ckpt.cli.diff import Difference, compare
from brain_ckpt.cli.inspect import (
    FileCheck,
    WrongUseError,
    check_files,
    find,
    metrics,
    not_whole,
    open_checkpoint,
    problems,
    step_of,
    total_bytes,
)
from brain_ckpt.cli.output import (
    ProgressBar,
    age,
    moment,
    number,
    printable,
    short,
    size,
    write_json,
    write_line,
    write_table,
)
from brain_ckpt.errors import CheckpointDamagedError
from brain_ckpt.loading.contents import Entry, choose_file, entries, plain, read_file, state_files
from brain_ckpt.retention.policies import Checkpoint, ckpt_recency
from brain_ckpt.transfer.average import average_checkpoints
from brain_ckpt.transfer.export import export_safetensors, write_torch

if TYPE_CHECKING:
    import argparse

FINE, FOUND = 0, 1


def ls(options: argparse.Namespace) -> int:
    """List a directory, the newest first."""
    found = find(options.directory)
    rows = []
    lacking = not_whole(found.checkpoints)
    with ProgressBar(sum(map(total_bytes, found.checkpoints))) as progress:
        for one in found.checkpoints:
            wrong = [lacking[one.path]] if one.path in lacking else []
            wrong += [] if options.quick else problems(one, progress)
            intact = None if options.quick and not wrong else not wrong
            rows.append(_row(one, intact, wrong))
    rows += [
        {"name": path.name, "intact": False, "problems": [reason]}
        for path, reason in found.unreadable.items()
    ]
    if options.json:
        write_json({"checkpoints": rows, "unfinished": found.unfinished})
    elif rows:
        _write_rows(rows)
    else:
        write_line(f"no checkpoint in {options.directory}")
    if found.unfinished and not options.json:
        write_line(f"unfinished, swept by the next save: {', '.join(found.unfinished)}")
    return FOUND if any(row["intact"] is False for row in rows) else FINE


def verify(options: argparse.Namespace) -> int:
    """Compare every file with what was written."""
    found = find(options.path)
    if not found.checkpoints and not found.unreadable:
        raise WrongUseError(
            f"there has to be a checkpoint to verify, got none in {options.path!r}; name a "
            f"directory that holds CKPT+... directories"
        )
    checks: dict[str, list[FileCheck]] = {}
    with ProgressBar(sum(map(total_bytes, found.checkpoints))) as progress:
        for one in found.checkpoints:
            checks[one.path.name] = list(check_files(one, progress))
    for path, reason in not_whole(found.checkpoints).items():
        checks[path.name].append(FileCheck(reason.partition(" is missing")[0], 0, "", reason))
    for path, reason in found.unreadable.items():
        checks[path.name] = [FileCheck("CKPT.yaml", 0, "nothing", reason)]
    damaged = [name for name, files in checks.items() if any(file.problem for file in files)]
    if options.json:
        content = {name: [asdict(file) for file in files] for name, files in checks.items()}
        write_json({"checkpoints": content, "damaged": damaged})
        return FOUND if damaged else FINE
    for name, files in checks.items():
        write_line(name)
        rows = [
            (f"  {file.name}", size(file.size_bytes), file.checked_by, file.problem or "ok")
            for file in files
        ]
        write_table(("  file", "size", "checked by", ""), rows, "lr")
    write_line(f"{len(checks) - len(damaged)} of {len(checks)} intact")
    return FOUND if damaged else FINE


def show(options: argparse.Namespace) -> int:
    """Show what is inside, without reading more of the tensors than is shown."""
    path = Path(options.checkpoint)
    if path.is_file() and options.file is None:
        files = {path.name: path}
    else:
        checkpoint = open_checkpoint(path)
        files = state_files(checkpoint)
        if options.file is not None:
            files = dict([choose_file(checkpoint, options.file)])
    contents = {name: entries(read_file(file, file.stem)) for name, file in files.items()}
    if options.json:
        content: dict[str, Any] = {
            name: [_described(entry) for entry in held] for name, held in contents.items()
        }
        write_json({"meta": {} if path.is_file() else checkpoint.meta, "files": content})
        return FINE
    if not path.is_file():
        for key, value in sorted(checkpoint.meta.items()):
            write_line(printable(f"{key}: {moment(key, value)}"))
    for name, held in contents.items():
        _write_contents(name, held)
    return FINE


def diff(options: argparse.Namespace) -> int:
    """Say what differs between two checkpoints, and by how much."""
    first, second = (_intact(path) for path in (options.first, options.second))
    comparison = compare(first, second)
    metas = {
        key: [first.meta.get(key), second.meta.get(key)]
        for key in sorted({*first.meta, *second.meta})
        if first.meta.get(key) != second.meta.get(key)
    }
    if options.json:
        write_json(
            {
                "meta": metas,
                "differences": [asdict(one) for one in comparison.differences],
                "equal": comparison.equal,
            }
        )
    else:
        for key, (before, after) in metas.items():
            write_line(printable(f"meta {key}: {moment(key, before)} -> {moment(key, after)}"))
        rows = [
            (one.file, one.key, one.change, _cell(one.max_abs), _cell(one.relative), _change(one))
            for one in comparison.differences
        ]
        if rows:
            header = ("file", "key", "", "max abs", "relative", "")
            write_table(header, rows, "lllrr")
        write_line(f"{len(rows)} differ, {comparison.equal} equal")
    return FOUND if comparison.differences else FINE


def average(options: argparse.Namespace) -> int:
    """Average one recoverable over checkpoints, into a file for torch.load."""
    checkpoints = [open_checkpoint(path) for path in options.checkpoints]
    state = average_checkpoints(checkpoints, options.recoverable)  # which looks at the checksums
    if not any(Entry(str(key), value).shape is not None for key, value in state.items()):
        raise WrongUseError(
            f"what is averaged are parameters by name, got no tensor in {options.recoverable!r}; "
            f"say --recoverable with the name of a module"
        )
    write_torch(state, options.output)
    names = [one.path.name for one in checkpoints]
    if options.json:
        write_json({"output": options.output, "checkpoints": names, "keys": len(state)})
    else:
        write_line(f"{options.output}: {len(state)} values, the average of {len(names)}")
    return FINE


def export(options: argparse.Namespace) -> int:
    """Write the tensors of one recoverable as a safetensors file."""
    checkpoint = _intact(options.checkpoint)
    left_out = export_safetensors(checkpoint, options.recoverable, options.output)
    if options.json:
        write_json({"output": options.output, "left_out": left_out})
    else:
        written = size(Path(options.output).stat().st_size)
        write_line(f"{options.output}: {written} from {checkpoint.path.name}")
        for key in left_out:
            write_line(f"left out, since it is no tensor: {key}")
    return FINE


def _intact(path: str) -> Checkpoint:
    checkpoint = open_checkpoint(path)
    with ProgressBar(total_bytes(checkpoint)) as progress:
        wrong = problems(checkpoint, progress)
    if wrong:
        raise CheckpointDamagedError(
            f"{path} has to be intact, got damage: {wrong[0]}; take another checkpoint"
        )
    return checkpoint


def _row(one: Checkpoint, intact: bool | None, wrong: list[str]) -> dict[str, Any]:
    return {
        "name": one.path.name,
        "unixtime": ckpt_recency(one),
        "age_s": time.time() - ckpt_recency(one),
        "end_of_epoch": bool(one.meta.get("end-of-epoch", True)),
        "step": step_of(one),
        "metrics": metrics(one),
        "size_bytes": total_bytes(one),
        "intact": intact,
        "problems": wrong,
    }


def _write_rows(rows: list[dict[str, Any]]) -> None:
    table = []
    for row in rows:
        intact = {True: "yes", False: "NO", None: "not checked"}[row["intact"]]
        if "unixtime" not in row:
            table.append((row["name"], "", "", "", "", intact))
            continue
        at = "end of epoch" if row["end_of_epoch"] else "inside an epoch"
        if row["step"] is not None:
            at += f", step {row['step']}"
        values = " ".join(f"{key}={number(value)}" for key, value in row["metrics"].items())
        table.append((row["name"], age(row["age_s"]), at, values, size(row["size_bytes"]), intact))
    write_table(("name", "age", "at", "metrics", "size", "intact"), table, "lrllrl")
    for row in rows:
        for problem in row["problems"]:
            write_line(f"{row['name']}: {problem}")


def _write_contents(name: str, held: list[Entry]) -> None:
    tensors = [entry for entry in held if entry.shape is not None]
    total = sum(entry.size_bytes for entry in tensors)
    write_line()
    write_line(f"{name}: {len(tensors)} tensors, {size(total)}" if tensors else f"{name}:")
    if len(held) == 1 and not held[0].key and isinstance(held[0].value, str):
        for line in held[0].value.splitlines():
            write_line("  " + printable(line))
        return
    rows = [("  " + entry.key, entry.dtype, _shape(entry), _value(entry)) for entry in held]
    if rows:
        write_table(("  key", "dtype", "shape", "value"), rows)


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "dtype": entry.dtype,
        "shape": None if entry.shape is None else list(entry.shape),
        "size_bytes": entry.size_bytes,
        "value": plain(entry.shown),
    }


def _shape(entry: Entry) -> str:
    return "" if entry.shape is None else "x".join(map(str, entry.shape)) or "scalar"


def _value(entry: Entry) -> str:
    return "" if entry.shape is not None and entry.shown is None else short(number(entry.shown))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _change(one: Difference) -> str:
    if not one.before or not one.after:
        return short(one.before or one.after)
    if one.before == one.after:
        return short(one.before)
    return f"{short(one.before)} -> {short(one.after)}"
