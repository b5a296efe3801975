"""A manifest of 1,000,000 rows: seconds to load, megabytes of the process and of two workers.

    python benchmarks/data_rows.py

Each contender has its own process. A worker's growth is the increase of its private pages during a
pass over half of the rows in random order. SpeechBrain is measured, too, if it is installed.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _verdict import report

ROWS = 1_000_000
WORKERS = 2
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "it")


def write_manifest(path: Path) -> None:
    """Write rows like those of a recipe."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        data = {
            f"spk{i % 997:04d}-{i:07d}": {
                "wav": f"{{data_root}}/spk{i % 997:04d}/{i:07d}.wav",
                "duration": round(draw.uniform(1, 20), 2),
                "words": " ".join(draw.choices(WORDS, k=5)),
            }
            for i in range(ROWS)
        }
        json.dump(data, file, indent=1)


def load_brain_data(path: str) -> Any:
    """Load with brain_data."""
    from brain_data import DynamicItemDataset

    return DynamicItemDataset.from_json(path, {"data_root": "/data"}, [], ["id", "wav", "words"])


def load_speechbrain(path: str) -> Any:
    """Load with SpeechBrain."""
    from speechbrain.dataio.dataset import DynamicItemDataset

    return DynamicItemDataset.from_json(path, {"data_root": "/data"}, [], ["id", "wav", "words"])


class BytesAndOffsets:
    """The bytes of the file, parsed when a row is read, without any checks."""

    def __init__(self, path: str) -> None:
        import numpy as np

        self.bytes = np.fromfile(path, np.uint8)
        # A row begins after the line with the closing brace of the preceding one.
        self.ends = np.flatnonzero(self.bytes == ord("}"))[1::2]

    def __getitem__(self, index: int) -> Any:
        """Parse one row."""
        start = int(self.ends[index - 1]) + 2 if index else 1
        text = self.bytes[start : self.ends[index] + 1].tobytes().decode()
        return json.loads("{" + text + "}")


def private_megabytes() -> float:
    """Return the memory that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def resident_megabytes() -> float:
    """Return the resident memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def walk(dataset: Any, worker: int, out: int) -> None:
    """Read this worker's half of the rows, and write its growth to a pipe."""
    for i in range(1000):
        dataset[i]
    before = private_megabytes()
    start = time.perf_counter()
    for i in range(worker, ROWS, WORKERS):
        dataset[i * 7919 % ROWS]
    taken = time.perf_counter() - start
    growth = private_megabytes() - before
    os.write(out, f"{growth:.1f} MB ({taken / ROWS * WORKERS * 1e6:.1f} us per row)\n".encode())


def child(name: str, path: str) -> None:
    """Measure one contender in this process."""
    import torch

    torch.set_num_threads(1)
    # Import outside of what is measured.
    load: Any = {
        "brain": load_brain_data,
        "speechbrain": load_speechbrain,
        "bytes": BytesAndOffsets,
    }[name]
    if name == "brain":
        import brain_data  # noqa: F401
    if name == "speechbrain":
        import speechbrain.dataio.dataset  # noqa: F401
    base = resident_megabytes()
    wall, cpu = time.perf_counter(), time.process_time()
    dataset = load(path)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    main = resident_megabytes()
    read, write = os.pipe()
    children = []
    for worker in range(WORKERS):
        children.append(os.fork())
        if children[-1] == 0:
            walk(dataset, worker, write)
            os._exit(0)
    for pid in children:
        os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as file:
        grown = ", ".join(line.strip() for line in file)
    print(
        f"  {name:12} load {wall:.2f} s ({cpu:.2f} s of CPU)  main {main:.0f} MB "
        f"({base:.0f} MB before)  each worker grows by {grown}"
    )
    if name == "brain":
        report("1,000,000 manifest rows: loading", wall, "s", 1)
        report("… memory that it adds", main - base, "MB", 150)
        report(
            "… most growth of a worker", max(map(float, re.findall(r"([\d.]+) MB", grown))), "MB", 5
        )


def main() -> None:
    """Measure each contender, and print."""
    if len(sys.argv) > 1:
        child(sys.argv[1], sys.argv[2])
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        write_manifest(path)
        print(f"{ROWS:,} rows, {path.stat().st_size / 2**20:.0f} MiB of JSON", flush=True)
        for name in ("bytes", "brain", "speechbrain"):
            command = [sys.executable, __file__, name, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            missing = "No module named 'speechbrain'" in done.stderr
            message = f"  {name:12} is not installed: skipped\n" if missing else done.stderr[-400:]
            print(done.stdout or message, end="", flush=True)


if __name__ == "__main__":
    main()
