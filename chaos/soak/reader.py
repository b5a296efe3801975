"""A process beside the training: ``python -m chaos.soak.reader FOLDER INTERVAL_S``.

It finds and recovers checkpoints until it is killed.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import sys
import time
from pathlib import Path

import torch

from brain_ckpt import Checkpointer, CheckpointGoneError
from chaos.soak.status import READER_STATUS_FILE, SAVE_FOLDER, StatusFile
from chaos.soak.training import make_model

_PAUSE_S = 0.2


def _read(folder: Path, interval_s: float) -> None:
    status = StatusFile(folder / READER_STATUS_FILE, interval_s)
    model = make_model()
    lasting = Checkpointer(folder / SAVE_FOLDER, {"model": model})
    gc.collect()
    gc.freeze()
    for number in itertools.count():
        new = Checkpointer(folder / SAVE_FOLDER, {"model": model})
        checkpointer = lasting if number % 2 else new
        if checkpointer.recover_if_possible() is not None:
            status.count("recoveries")
        for one in checkpointer.find_checkpoints():
            with contextlib.suppress(CheckpointGoneError):  # deleted since it was listed
                checkpointer.load_checkpoint(one)
        time.sleep(_PAUSE_S)


def main(arguments: list[str]) -> None:
    """Read until this process is killed."""
    folder, interval_s = arguments
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    _read(Path(folder), float(interval_s))


if __name__ == "__main__":
    main(sys.argv[1:])
