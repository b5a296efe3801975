"""What each logger has written of a run that was killed equals that of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_run.py")
PLACES = ("logged", "saved", "inside")


def run(kind, folder, place=""):
    """Train in a process of its own."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "WANDB_SILENT": "true"}
    command = [sys.executable, str(SCRIPT), kind, str(folder), place]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (-signal.SIGKILL if place else 0), done.stderr


def file_rows(folder):
    """Return the lines of all files of a log."""
    return {p.name: p.read_text().splitlines() for p in folder.glob("log.*")}


def tensorboard_rows(folder):
    """Return the points of each curve that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tb"))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags}


def mlflow_rows(folder):
    """Return the points of each metric of the only run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient((folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("an experiment")
    (found,) = client.search_runs([experiment.experiment_id])
    return {
        key: [(p.step, p.value) for p in client.get_metric_history(found.info.run_id, key)]
        for key in found.data.metrics
    }


def wandb_rows(folder):
    """Return the figures of each step in all offline files, which must be of one run."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, ids = {}, set()
    for path in sorted(folder.rglob("*.wandb")):
        for data in log_records(path.read_bytes()[7:], begins_at=7):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                rows[items["_step"]] = {k: v for k, v in items.items() if not k.startswith("_")}
    assert len(ids) == 1
    return rows


def log_records(content, begins_at):
    """Return the records of a file in LevelDB's log format, up to where a kill cut it off.

    A block has 32 kB. A fragment has a checksum (4 bytes), its size (2) and its kind (1): a whole
    record, or the first, a middle or the last part of one.
    """
    parts, place = [], 0
    while place + 7 <= len(content):
        left = 32768 - (begins_at + place) % 32768
        if left < 7:  # too little for a header
            place += left
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part = content[place + 7 : place + 7 + size]
        if kind == 0 or len(part) < size:
            return
        parts.append(part)
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []
        place += 7 + size


def report_rows(folder):
    """Return the rows of the history without times, and without starts and checkpoints."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    measured = {"time", "samples_per_s", "data_wait"}
    return [
        {key: value for key, value in row.items() if key not in measured}
        for row in rows
        if row["kind"] in ("steps", "stage")
    ]


ROWS = {
    "text": file_rows,
    "csv": file_rows,
    "json": file_rows,
    "list": file_rows,
    "report": report_rows,
    "tensorboard": tensorboard_rows,
    "mlflow": mlflow_rows,
}


@pytest.fixture(autouse=True)
def mlflow_in_files(monkeypatch):
    """Let MLflow write into a folder, which it does on demand only."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def test_a_list_of_loggers_has_each_row_once_after_a_kill(tmp_path):
    """Killed when a row was written and not saved."""
    undisturbed, killed = rows_of_both("list", tmp_path, ["logged"])
    assert undisturbed
    assert killed == undisturbed


@pytest.mark.long
@pytest.mark.parametrize("kind", ROWS)
def test_each_logger_has_each_row_once_after_three_kills(tmp_path, kind):
    """Killed when a row was written and not saved, when it was saved, and inside an epoch."""
    undisturbed, killed = rows_of_both(kind, tmp_path, PLACES)
    assert undisturbed
    assert killed == undisturbed


@pytest.mark.long
def test_wandb_goes_on_in_its_run_after_three_kills(tmp_path):
    """No step has other figures; what W&B's own process had not written yet may be missing."""
    pytest.importorskip("wandb")
    run("wandb", tmp_path / "undisturbed")
    for place in (*PLACES, ""):
        run("wandb", tmp_path / "killed", place)
    expected, found = wandb_rows(tmp_path / "undisturbed"), wandb_rows(tmp_path / "killed")
    assert len(expected) == 4
    assert found.items() >= {step: expected[step] for step in (3, 4)}.items()
    assert all(expected[step] == row for step, row in found.items())


def rows_of_both(kind, folder, places):
    """Return what was logged by an undisturbed run, and by one that was killed at each place."""
    if kind in ("tensorboard", "mlflow"):
        pytest.importorskip(kind)
    run(kind, folder / "undisturbed")
    for place in places:
        run(kind, folder / "killed", place)
    run(kind, folder / "killed")
    return ROWS[kind](folder / "undisturbed"), ROWS[kind](folder / "killed")
