"""The program of each rank of a test; the `ranks` fixture starts it with JOB in its globals."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
import warnings
from datetime import timedelta

import torch
from torch import distributed


def _main(sender, function, group, environ):
    os.environ.update(environ)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    try:
        _join(*group)
        test_file, name, args = function
        spec = importlib.util.spec_from_file_location("_rank_functions", test_file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        outcome = ("returned", getattr(module, name)(group[1], *args))
    except BaseException:  # noqa: BLE001 - sent to the test
        outcome = ("raised", traceback.format_exc())
    sender.send(outcome)
    # Wait until the test has all outcomes: a rank that exits early looks like one that was killed.
    sender.poll(60)


def _join(store, rank, world_size):
    if store is None:
        return
    files = distributed.FileStore(str(store), world_size)
    distributed.init_process_group(
        "gloo", store=files, rank=rank, world_size=world_size, timeout=timedelta(seconds=40)
    )
    # A test may kill a rank at once: only when all have joined.
    files.set(f"joined/{rank}", "")
    files.wait([f"joined/{other}" for other in range(world_size)])


if __name__ == "rank":
    _main(**globals()["JOB"])
