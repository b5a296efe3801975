"""Fork three ranks that form a group, and kill or stop one of them meanwhile.

    python forming_script.py --seed 0 --runs 5 --timeout_s 2 [--agent_store]

prints one line of JSON for each run: the victim, the signal, after how many seconds the last of
the others had ended, and what they said.  With --agent_store the store is that of a fourth
process, as torchrun's is; else rank 0 holds it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from datetime import timedelta

import numpy as np  # noqa: F401 - what ranks use is imported before they are forked
import torch
from torch import distributed

import brain_dist

for name in brain_dist.__all__:
    getattr(brain_dist, name)

WORLD_SIZE = 3
# Forming takes about 20 ms.
WITHIN_S = 0.02


def rank_main(rank, port, pipe, timeout_s, agent_store):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD_SIZE, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    if agent_store:
        os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    try:
        brain_dist.ddp_init_group({"device": "cpu"}, timeout_s=timeout_s)
        outcome = "formed"
    except brain_dist.RanksLostError as error:
        outcome = str(error)
    os.write(pipe, f"{json.dumps([rank, outcome])}\n".encode())
    os._exit(0)


def run(number, source, timeout_s, agent_store):
    store = distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    port = store.port
    if not agent_store:
        del store  # rank 0 takes its port
    victim, number_of_signal = number % WORLD_SIZE, (signal.SIGKILL, signal.SIGSTOP)[number % 2]
    reader, writer = os.pipe()
    forks = []
    for rank in range(WORLD_SIZE):
        fork = os.fork()
        if not fork:
            rank_main(rank, port, writer, timeout_s, agent_store)
        forks.append(fork)
    os.close(writer)
    time.sleep(source.random() * WITHIN_S)
    os.kill(forks[victim], number_of_signal)
    started = time.monotonic()
    for rank, fork in enumerate(forks):
        if rank != victim:
            os.waitpid(fork, 0)
    took_s = time.monotonic() - started
    os.kill(forks[victim], signal.SIGKILL)
    os.waitpid(forks[victim], 0)
    with os.fdopen(reader) as file:
        outcomes = dict(json.loads(line) for line in file)
    outcomes.pop(victim, None)
    return [victim, number_of_signal.name, took_s, outcomes]


parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--runs", type=int, required=True)
parser.add_argument("--timeout_s", type=float, required=True)
parser.add_argument("--agent_store", action="store_true")
options = parser.parse_args()
torch.set_num_threads(1)
source = random.Random(options.seed)
for number in range(options.runs):
    line = json.dumps(run(number, source, options.timeout_s, options.agent_store))
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
