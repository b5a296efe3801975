"""Measurements of another process and of a folder, from Linux's /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["measure_folder", "measure_process"]

_PROCESSES = Path("/proc")
_KB_PER_MB = 1024
_PRIVATE = ("Private_Clean", "Private_Dirty", "Private_Hugetlb")
_LINE = re.compile(r"^(\w+):\s+(\d+)", re.MULTILINE)


def measure_process(pid: int) -> dict[str, float]:
    """Return memory in MB and numbers of threads, open files and child processes.

    Proportional memory includes the child processes, which share pages with their parent.  It and
    private memory are left out where the kernel does not show them.

    Raises
    ------
    FileNotFoundError, ProcessLookupError
        If the process has ended.
    """
    process = _PROCESSES / str(pid)
    status = _numbers(process / "status")
    if "VmRSS" not in status:
        raise ProcessLookupError(f"process {pid} must be alive, got one that has ended")
    tasks = process.joinpath("task").iterdir()
    children = [child for task in tasks for child in _text(task / "children").split()]
    found = {
        "rss": status["VmRSS"] / _KB_PER_MB,
        "threads": float(status["Threads"]),
        "open_files": float(len(os.listdir(process / "fd"))),
        "children": float(len(children)),
    }
    try:
        memory = _numbers(process / "smaps_rollup")
        parts_kb = [_numbers(_PROCESSES / child / "smaps_rollup")["Pss"] for child in children]
    except (FileNotFoundError, PermissionError, ProcessLookupError, KeyError):
        return found
    found["pss"] = (memory["Pss"] + sum(parts_kb)) / _KB_PER_MB
    found["uss"] = sum(memory.get(name, 0) for name in _PRIVATE) / _KB_PER_MB
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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):  # a thread that has ended
        return ""
