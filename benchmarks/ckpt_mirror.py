"""Copy a checkpoint to an object store and back, beside obstore's and boto3's plain put and get.

    python benchmarks/ckpt_mirror.py [--megabytes 200] [--rounds 3] [--training-rounds 15]

The store is moto's server on loopback, in a process of its own. Prints seconds, memory that is
added, and the speed of a training beside an upload, relative to that right before and after it. For
that the server has the lowest priority, as a store is another machine; the speed beside a thread
that sleeps for as long shows how far such figures scatter. Run it on a machine that does nothing
else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import obstore
import torch
from _verdict import report
from obstore.store import from_url

from brain_ckpt import Checkpointer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVER = """
import logging, os, sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.port, flush=True)
os.nice(int(sys.argv[1]))
server.serve_forever()
"""
BUCKET = "bucket"


@contextlib.contextmanager
def s3(niceness: int = 0) -> Iterator[None]:
    """Run moto's server, with its credentials in the environment."""
    command = [sys.executable, "-c", SERVER, str(niceness)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    os.environ.update(
        AWS_ACCESS_KEY_ID="id",
        AWS_SECRET_ACCESS_KEY="key",
        AWS_REGION="us-east-1",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{int(server.stdout.readline())}",
    )
    try:
        client().create_bucket(Bucket=BUCKET)
        yield
    finally:
        server.kill()
        server.wait()


def client() -> Any:
    """Return a client of boto3."""
    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def empty_bucket() -> None:
    """Delete everything, as the server keeps it in memory."""
    resource = boto3.resource("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    resource.Bucket(BUCKET).objects.all().delete()


class Place:
    """A checkpoint of a size in a directory, and the ways to copy it."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        width = 1024
        layers = max(1, megabytes * 2**20 // (4 * width * width))
        self.model = torch.nn.Sequential(
            *(torch.nn.Linear(width, width, bias=False) for _ in range(layers))
        )
        checkpointer = Checkpointer(folder / "save", {"model": self.model})
        checkpointer.save_checkpoint(name="one")
        checkpointer.close()
        self.path = folder / "save" / "CKPT+one"
        self.files = [path for path in self.path.rglob("*") if path.is_file()]
        # The server needs minutes to join the parts of 2 GB; obstore would ask again meanwhile.
        patient = {"allow_http": True, "timeout": "600s"}
        self.store = from_url(f"s3://{BUCKET}/plain", client_options=patient)

    def open(self, directory: str = "save") -> Checkpointer:
        """Return a checkpointer with a mirror."""
        url = f"s3://{BUCKET}/mirror"
        return Checkpointer(
            self.folder / directory,
            {"model": self.model},
            mirror=url,
            mirror_grace_seconds=3600,
        )

    def upload(self) -> None:
        """Copy it as a mirror does."""
        self.open().close()

    def upload_beside(self) -> None:
        """Copy it as a mirror does beside training, which does not wait for it."""
        small = {"model": torch.nn.Linear(1, 1)}
        checkpointer = Checkpointer(self.folder / "save", small, mirror=f"s3://{BUCKET}/mirror")
        checkpointer.save_checkpoint(name="small")  # the first save starts the uploads
        mirror = from_url(f"s3://{BUCKET}/mirror", client_options={"allow_http": True})
        while len(obstore.list(mirror, "commits").collect()) < 2:
            time.sleep(0.1)
        checkpointer.close()

    def download(self) -> None:
        """Fill an empty directory, verified; without loading it."""
        checkpointer = self.open("copy")
        assert checkpointer.find_checkpoint() is not None
        shutil.rmtree(self.folder / "copy")

    def recover(self) -> None:
        """Fill an empty directory, and load it."""
        assert self.open("copy").recover_if_possible() is not None
        shutil.rmtree(self.folder / "copy")

    def obstore_put(self) -> None:
        """Put each file, as obstore does it by default."""
        for file in self.files:
            obstore.put(self.store, file.name, file)

    def obstore_get(self) -> None:
        """Get each file as a stream, and flush it to the disk."""
        for file in self.files:
            with (self.folder / "got").open("wb") as target:
                for part in obstore.get(self.store, file.name).stream(min_chunk_size=2**24):
                    target.write(part)
                target.flush()
                os.fsync(target.fileno())

    def boto3_put(self) -> None:
        """Upload each file, as boto3 does it by default."""
        for file in self.files:
            client().upload_file(str(file), BUCKET, f"boto/{file.name}")

    def boto3_get(self) -> None:
        """Download each file, and flush it to the disk."""
        for file in self.files:
            client().download_file(BUCKET, f"boto/{file.name}", str(self.folder / "got"))
            with (self.folder / "got").open("rb+") as target:
                os.fsync(target.fileno())


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def added_megabytes(call: Callable[[], object]) -> float:
    """Return how much the memory of this process grows at most during a call."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    done, before, peak = threading.Event(), resident(), [0]

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return max(0, peak[0] - before) / 2**20


def steps_per_second(beside: Callable[[], object] | None, least_s: float = 5.0) -> float:
    """Train a small model until a call in a thread is over, or for a time; return its speed."""
    model = torch.nn.Linear(512, 512)
    optimizer = torch.optim.Adam(model.parameters())
    rows = torch.randn(256, 512)
    thread = threading.Thread(target=beside or (lambda: None))
    thread.start()
    start, steps = time.perf_counter(), 0
    while thread.is_alive() or (beside is None and time.perf_counter() - start < least_s):
        optimizer.zero_grad()
        model(rows).square().mean().backward()
        optimizer.step()
        steps += 1
    return steps / (time.perf_counter() - start)


def measure_times(megabytes: int, rounds: int) -> None:
    """Print seconds and memory for one size."""
    with s3(), tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), megabytes)
        print(f"\n{megabytes} MB, {rounds} rounds: seconds, median (minimum to maximum)")
        taken: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name in ("boto3_put", "boto3_get", "obstore_put", "obstore_get"):
                taken.setdefault(name, []).append(seconds(getattr(place, name)))
            empty_bucket()
            for name in ("upload", "download", "recover"):
                taken.setdefault(name, []).append(seconds(getattr(place, name)))
            empty_bucket()
        for name, values in taken.items():
            base = "obstore_put" if name in ("upload", "boto3_put") else "obstore_get"
            ratio = statistics.median(values) / statistics.median(taken[base])
            shown = f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            print(f"  {name:12} {shown}  x {ratio:.2f} {base}")
        for name, what, base in (
            ("upload", f"uploading {megabytes} MB", "obstore_put"),
            ("download", f"downloading {megabytes} MB, verified", "obstore_get"),
        ):
            ours, theirs = (statistics.median(taken[each]) for each in (name, base))
            report(what, ours, "s", 1.1, base.replace("_", "'s "), theirs)
            report("… memory that it adds", added_megabytes(getattr(place, name)), "MB", 64)


def measure_training(megabytes: int, rounds: int) -> None:
    """Print how fast a training is beside the upload of one size."""
    with s3(niceness=19), tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), megabytes)
        upload_s = 0.0

        def upload() -> None:
            nonlocal upload_s
            upload_s = seconds(place.upload_beside)

        calls: dict[str, Callable[[], object]] = {
            "an upload": upload,
            "obstore's put": place.obstore_put,
            "a sleep": lambda: time.sleep(upload_s),
        }
        kept: dict[str, list[float]] = {name: [] for name in calls}
        before = steps_per_second(None)
        for _ in range(rounds):
            for name, call in calls.items():
                empty_bucket()
                beside = steps_per_second(call)
                after = steps_per_second(None)
                kept[name].append(2 * beside / (before + after))
                before = after
        for name, ratios in kept.items():
            print(
                f"  training beside {name:13} {statistics.median(ratios):.0%} of its speed alone "
                f"(mean {statistics.mean(ratios):.0%}, {min(ratios):.0%} to {max(ratios):.0%})"
            )
        kept_speed = 100 * statistics.mean(kept["an upload"])
        what = f"speed of training beside an upload of {megabytes} MB"
        report(what, kept_speed, "%", 95, at_least=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[200])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--training-rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for megabytes in options.megabytes:
        measure_times(megabytes, options.rounds)
        measure_training(megabytes, options.training_rounds)


if __name__ == "__main__":
    main()
