"""Measurements of another process and of a folder, from Linux's /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["measure_folder", "measure_process"]

_PROCESSES = Path("/proc")
_KB_PER_MB = 1024
# Not Pss_File: a page of a library counts for more when another program that maps it ends.
_OWN = ("Pss_Anon", "Pss_Shmem")
_TRIES = 5
_LINE = re.compile(r"^(\w+):\s+(\d+)", re.MULTILINE)


def measure_process(pid: int) -> dict[str, float]:
    """Return memory in MB and numbers of threads, open files and child processes.

    The memory of a process without its files includes that of the child processes, where a page
    that they share with their parent counts once.  It is left out where the kernel does not show
    it, or where child processes start or end too fast.

    Raises
    ------
    FileNotFoundError, ProcessLookupError
        If the process has ended.
    """
    process = _PROCESSES / str(pid)
    status = _numbers(process / "status")
    if "VmRSS" not in status:
        raise ProcessLookupError(f"process {pid} must be alive, got one that has ended")
    found = {
        "rss": status["VmRSS"] / _KB_PER_MB,
        "threads": float(status["Threads"]),
        "open_files": float(len(os.listdir(process / "fd"))),
        "children": float(len(_children(process))),
    }
    for _ in range(_TRIES):
        children = _children(process)
        try:
            maps = [_numbers(_PROCESSES / one / "smaps_rollup") for one in (str(pid), *children)]
            own = sum(each[name] for each in maps for name in _OWN) / _KB_PER_MB
        except (FileNotFoundError, PermissionError, ProcessLookupError, KeyError):
            continue
        if children == _children(process):  # else a page of one was counted in part, or not at all
            return {**found, "own": own}
    return found


def measure_folder(folder: Path) -> dict[str, float]:
    """Return the number of files below a folder and their size in MB."""
    count, size = 0, 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # deleted meanwhile
                continue
            count += 1
    return {"saved_files": float(count), "saved_mb": size / (_KB_PER_MB * 1024)}


def _numbers(path: Path) -> dict[str, int]:
    return {name: int(number) for name, number in _LINE.findall(path.read_text(encoding="utf-8"))}


def _children(process: Path) -> list[str]:
    tasks = process.joinpath("task").iterdir()
    return [child for task in tasks for child in _text(task / "children").split()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):  # a thread that has ended
        return ""
