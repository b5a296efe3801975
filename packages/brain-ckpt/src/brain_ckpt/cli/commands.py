"""The subcommands of ``brain-ckpt``, except ``prune``."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_ckpt.cli.diff import Difference, compare, is_equal
from brain_ckpt.cli.file_checks import FileCheck, check_files, problems
from brain_ckpt.cli.inspect import (
    DirectoryContents,
    checkpoint_path,
    find_incomplete,
    read_directory,
    step_of,
    total_bytes,
)
from brain_ckpt.cli.output import (
    ProgressBar,
    format_age,
    format_meta_value,
    format_number,
    format_size,
    printable,
    shorten,
    to_json_value,
    write_json,
    write_line,
    write_table,
)
from brain_ckpt.errors import CheckpointDamagedError, UsageError
from brain_ckpt.loading.contents import (
    Entry,
    choose_file,
    entries,
    read_file,
    read_state_of,
    state_files,
)
from brain_ckpt.loading.state_file import retry_if_gone
from brain_ckpt.retention.checkpoint import ckpt_recency, metrics
from brain_ckpt.storage.listing import read_checkpoint
from brain_ckpt.storage.opened import gone_error, open_checkpoint
from brain_ckpt.transfer.average import average_checkpoints
from brain_ckpt.transfer.export import export_safetensors, write_torch

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from brain_ckpt.storage.opened import OpenedCheckpoint

OK, DAMAGE_OR_DIFFERENCE = 0, 1


def ls(options: argparse.Namespace) -> int:
    """List a directory, the newest checkpoint first."""
    contents, rows = retry_if_gone(
        lambda: _list(options.directory, quick=options.quick), Path(options.directory)
    )
    if options.json:
        write_json({"checkpoints": rows, "unfinished": contents.unfinished})
    elif rows:
        _write_rows(rows)
    else:
        write_line(f"no checkpoint in {options.directory}")
    if contents.unfinished and not options.json:
        write_line(f"unfinished, removed by the next save: {', '.join(contents.unfinished)}")
    return DAMAGE_OR_DIFFERENCE if any(row["intact"] is False for row in rows) else OK


def verify(options: argparse.Namespace) -> int:
    """Compare every file with what was written."""
    checks = retry_if_gone(lambda: _check(options.path), Path(options.path))
    damaged = [name for name, files in checks.items() if any(file.problem for file in files)]
    if options.json:
        content = {name: [asdict(file) for file in files] for name, files in checks.items()}
        write_json({"checkpoints": content, "damaged": damaged})
        return DAMAGE_OR_DIFFERENCE if damaged else OK
    for name, files in checks.items():
        write_line(name)
        rows = [
            (f"  {file.name}", format_size(file.size_bytes), file.checked_by, _verdict(file))
            for file in files
        ]
        write_table(("  file", "size", "checked by", ""), rows, "lr")
    write_line(f"{len(checks) - len(damaged)} of {len(checks)} intact")
    return DAMAGE_OR_DIFFERENCE if damaged else OK


def show(options: argparse.Namespace) -> int:
    """Show the values in a checkpoint; only tensors that are shown are read."""
    path = Path(options.checkpoint)
    if path.is_file() and options.file is None:
        _show({}, {path.name: entries(read_file(path, path.stem))}, as_json=options.json)
        return OK
    with open_checkpoint(checkpoint_path(path), hold=True) as opened, opened.reading():
        names = state_files(opened)
        if options.file is not None:
            names = [choose_file(opened, options.file)]
        contents = {name: entries(read_state_of(opened, name)) for name in names}
        _show(opened.checkpoint.meta, contents, as_json=options.json)
    return OK


def diff(options: argparse.Namespace) -> int:
    """Show what differs between two checkpoints, and by how much."""
    with _intact(options.first) as left, _intact(options.second) as right:
        first, second = left.checkpoint, right.checkpoint
        comparison = compare(left, right)
    metas = {
        key: [first.meta.get(key), second.meta.get(key)]
        for key in sorted({*first.meta, *second.meta})
        if not is_equal(first.meta.get(key), second.meta.get(key))
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
            write_line(
                printable(
                    f"meta {key}: {format_meta_value(key, before)} -> "
                    f"{format_meta_value(key, after)}"
                )
            )
        rows = [
            (one.file, one.key, one.change, _cell(one.max_abs), _cell(one.relative), _change(one))
            for one in comparison.differences
        ]
        if rows:
            header = ("file", "key", "", "max abs", "relative", "")
            write_table(header, rows, "lllrr")
        write_line(f"{len(rows)} differ, {comparison.equal} equal")
    return DAMAGE_OR_DIFFERENCE if comparison.differences else OK


def average(options: argparse.Namespace) -> int:
    """Average one recoverable over checkpoints, into a file for torch.load."""
    checkpoints = [read_checkpoint(checkpoint_path(path)) for path in options.checkpoints]
    state = average_checkpoints(checkpoints, options.recoverable)  # verifies the files
    if not any(Entry(str(key), value).shape is not None for key, value in state.items()):
        raise UsageError(
            f"average needs parameters by name, got no tensor in {options.recoverable!r}; "
            f"pass --recoverable with the name of a module"
        )
    write_torch(state, options.output)
    names = [one.path.name for one in checkpoints]
    if options.json:
        write_json({"output": options.output, "checkpoints": names, "keys": len(state)})
    else:
        write_line(f"{options.output}: {len(state)} values, the average of {len(names)}")
    return OK


def export(options: argparse.Namespace) -> int:
    """Write the tensors of one recoverable as a safetensors file."""
    with _intact(options.checkpoint) as opened:
        checkpoint = opened.checkpoint
        skipped = export_safetensors(opened, options.recoverable, options.output)
    if options.json:
        write_json({"output": options.output, "skipped": skipped})
    else:
        written = format_size(Path(options.output).stat().st_size)
        write_line(f"{options.output}: {written} from {checkpoint.path.name}")
        for key in skipped:
            write_line(f"skipped, because it is not a tensor: {key}")
    return OK


@contextlib.contextmanager
def _intact(path: str) -> Iterator[OpenedCheckpoint]:
    """Open a checkpoint and verify it."""
    with open_checkpoint(checkpoint_path(path), hold=True) as opened, opened.reading():
        with ProgressBar(total_bytes(opened.directory)) as progress:
            damage = problems(opened, progress)
        if damage:
            raise CheckpointDamagedError(
                f"{path} must be intact, got damage: {damage[0]}; use another checkpoint"
            )
        yield opened


def _list(directory: str, *, quick: bool) -> tuple[DirectoryContents, list[dict[str, Any]]]:
    contents = read_directory(directory)
    incomplete = find_incomplete(contents.checkpoints)
    rows = []
    with ProgressBar(sum(total_bytes(one.path) for one in contents.checkpoints)) as progress:
        for one in contents.checkpoints:
            with open_checkpoint(one.path, hold=True) as opened:
                opened.check_same(one)
                damage = [incomplete[one.path]] if one.path in incomplete else []
                damage += [] if quick else problems(opened, progress)
                rows.append(_row(opened, None if quick and not damage else not damage, damage))
    rows += [
        {"name": path.name, "intact": False, "problems": [reason]}
        for path, reason in contents.unreadable.items()
    ]
    return contents, rows


def _row(opened: OpenedCheckpoint, intact: bool | None, damage: list[str]) -> dict[str, Any]:
    one = opened.checkpoint
    return {
        "name": one.path.name,
        "unixtime": ckpt_recency(one),
        "age_s": time.time() - ckpt_recency(one),
        "end_of_epoch": bool(one.meta.get("end-of-epoch", True)),
        "step": step_of(opened),
        "metrics": metrics(one),
        "size_bytes": total_bytes(opened.directory),
        "intact": intact,
        "problems": damage,
    }


def _check(path: str) -> dict[str, list[FileCheck]]:
    """Return what was found in each file, by the names of the checkpoints."""
    contents = read_directory(path)
    if not contents.checkpoints and not contents.unreadable:
        raise UsageError(
            f"verify needs a checkpoint, got none in {path!r}; name a directory that holds "
            f"CKPT+... directories"
        )
    checks: dict[str, list[FileCheck]] = {}
    with ProgressBar(sum(total_bytes(one.path) for one in contents.checkpoints)) as progress:
        for one in contents.checkpoints:
            with open_checkpoint(one.path, hold=True) as opened:
                opened.check_same(one)
                checks[one.path.name] = list(check_files(opened, progress))
                if any(file.problem for file in checks[one.path.name]) and not opened.is_current():
                    raise gone_error(one.path)
    for incomplete, reason in find_incomplete(contents.checkpoints).items():
        file = reason.partition(" is missing")[0]
        checks[incomplete.name].append(FileCheck(file, 0, "", reason))
    for unreadable, reason in contents.unreadable.items():
        checks[unreadable.name] = [FileCheck("CKPT.yaml", 0, "nothing", reason)]
    return checks


def _verdict(file: FileCheck) -> str:
    return file.problem or file.note or "ok"


def _show(meta: dict[str, Any], contents: dict[str, list[Entry]], *, as_json: bool) -> None:
    if as_json:
        files = {name: [_to_json(entry) for entry in values] for name, values in contents.items()}
        write_json({"meta": meta, "files": files})
        return
    for key, value in sorted(meta.items()):
        write_line(printable(f"{key}: {format_meta_value(key, value)}"))
    for name, values in contents.items():
        _write_values(name, values)


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
        values = " ".join(f"{key}={format_number(value)}" for key, value in row["metrics"].items())
        table.append(
            (
                row["name"],
                format_age(row["age_s"]),
                at,
                values,
                format_size(row["size_bytes"]),
                intact,
            )
        )
    write_table(("name", "age", "at", "metrics", "size", "intact"), table, "lrllrl")
    for row in rows:
        for problem in row["problems"]:
            write_line(f"{row['name']}: {problem}")


def _write_values(name: str, values: list[Entry]) -> None:
    tensors = [entry for entry in values if entry.shape is not None]
    total = sum(entry.size_bytes for entry in tensors)
    write_line()
    write_line(f"{name}: {len(tensors)} tensors, {format_size(total)}" if tensors else f"{name}:")
    if len(values) == 1 and not values[0].key and isinstance(values[0].value, str):
        for line in values[0].value.splitlines():
            write_line("  " + printable(line))
        return
    rows = [("  " + entry.key, entry.dtype, _shape(entry), _value(entry)) for entry in values]
    if rows:
        write_table(("  key", "dtype", "shape", "value"), rows)


def _to_json(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "dtype": entry.dtype,
        "shape": None if entry.shape is None else list(entry.shape),
        "size_bytes": entry.size_bytes,
        "value": to_json_value(entry.single_value),
    }


def _shape(entry: Entry) -> str:
    return "" if entry.shape is None else "x".join(map(str, entry.shape)) or "scalar"


def _value(entry: Entry) -> str:
    return (
        ""
        if entry.shape is not None and entry.single_value is None
        else shorten(format_number(entry.single_value))
    )


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _change(one: Difference) -> str:
    if not one.before or not one.after:
        return shorten(one.before or one.after)
    if one.before == one.after:
        return shorten(one.before)
    return f"{shorten(one.before)} -> {shorten(one.after)}"
