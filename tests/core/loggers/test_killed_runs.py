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
    environment = {**os.environ, "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
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
    from wandb.sdk.internal.datastore import DataStore

    rows, ids = {}, set()
    for path in sorted(folder.rglob("*.wandb")):
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := _next(store)) is not None:
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


def _next(store):
    try:
        return store.scan_data()
    except AssertionError:  # the end of a file that was not finished
        return None


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
    "wandb": wandb_rows,
}


def test_a_list_of_loggers_has_each_row_once_after_a_kill(tmp_path):
    """Killed when a row was written and not saved."""
    check("list", tmp_path, ["logged"])


@pytest.mark.long
@pytest.mark.parametrize("kind", ROWS)
def test_each_logger_has_each_row_once_after_three_kills(tmp_path, kind):
    """Killed when a row was written and not saved, when it was saved, and inside an epoch."""
    check(kind, tmp_path, PLACES)


def check(kind, folder, places):
    """Compare a run that is killed at each place with an undisturbed one."""
    if kind in ("tensorboard", "mlflow", "wandb"):
        pytest.importorskip(kind)
    run(kind, folder / "undisturbed")
    for place in places:
        run(kind, folder / "killed", place)
    run(kind, folder / "killed")
    expected, found = ROWS[kind](folder / "undisturbed"), ROWS[kind](folder / "killed")
    assert expected
    assert found == expected
