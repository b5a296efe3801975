"""What ranks that wait for each other report about their calls, through the store."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch.distributed.distributed_c10d import Store

# With more ranks only two that differ are named: reading all reports would burden the store.
_RANKS_READ = 32
_POLL_EVERY_S = 0.5
_ACKNOWLEDGE_S = 3.0


class CallReports:
    """The reports of all ranks about one operation, in which they wait for each other.

    Parameters
    ----------
    store : Store
        A store that all ranks can read and write.
    prefix : str
        Of the keys in the store; another one for each operation.
    rank, world_size : int
        Rank and size of the run.
    """

    def __init__(self, store: Store, prefix: str, rank: int, world_size: int) -> None:
        self._store = store
        self._prefix = prefix
        self._rank = rank
        self._world_size = world_size
        self.disagreement: dict[int, tuple[str, str]] = {}

    def report(self, name: str, description: str) -> None:
        """Publish the call of this rank."""
        record = json.dumps([self._rank, name, description])
        self._store.set(self._key(self._rank), record)
        first = self._store.compare_set(self._key("first"), "", record)
        if json.loads(first)[1] != name:
            self._store.compare_set(self._key("different"), "", record)

    def withdraw(self) -> None:
        """Delete what this rank has published about an operation that all ranks have joined."""
        for key in (self._rank, "first"):
            self._store.delete_key(self._key(key))

    def differ(self) -> bool:
        """Return whether two ranks have reported different calls."""
        return self._store.check([self._key("different")])

    def wait_for_all(self, timeout_s: float) -> None:
        """Wait until all ranks have reported, or two of many have reported different calls."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._world_size > _RANKS_READ:
                complete = self.differ()
            else:
                complete = self._store.check([self._key(r) for r in range(self._world_size)])
            if complete:
                return
            time.sleep(0.01)

    def read(self) -> dict[int, tuple[str, str]]:
        """Return name and description of the call by rank, of the ranks that have reported.

        It waits until these have read the reports, too: the process that holds the store may end
        then.
        """
        ranks = range(self._world_size) if self._world_size <= _RANKS_READ else ()
        calls = {}
        for key in (*ranks, "first", "different"):
            if self._store.check([self._key(key)]):
                rank, name, description = json.loads(self._store.get(self._key(key)))
                calls[rank] = (name, description)
        readers = self._store.add(self._key("readers"), 1)
        deadline = time.monotonic() + _ACKNOWLEDGE_S
        while readers < len(calls) and time.monotonic() < deadline:
            time.sleep(0.01)
            readers = self._store.add(self._key("readers"), 0)
        return calls

    @contextlib.contextmanager
    def watched(self, name: str, description: str) -> Iterator[None]:
        """Report this rank's call, and look for different ones in a thread.

        In a thread, because a store does not answer when its process is stopped.  What differs is
        in `disagreement`.
        """
        done = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(done, name, description), name="brain_dist-late", daemon=True
        )
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join(_ACKNOWLEDGE_S)

    def _watch(self, done: threading.Event, name: str, description: str) -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            self.report(name, description)
            while not self.differ():
                if done.wait(_POLL_EVERY_S):
                    self.withdraw()
                    return
            self.disagreement = self.read()

    def _key(self, name: str | int) -> str:
        return f"{self._prefix}/{name}"


def out_of_step_message(
    calls: Mapping[int, tuple[str, str]], unreported: Iterable[str] = ()
) -> str:
    """Return the text of an error that names the call of each rank.

    Parameters
    ----------
    calls : mapping of int to tuple of str
        Name and description of the call by rank.
    unreported : iterable of str
        Calls of ranks that have not reported.
    """
    ranks_of: dict[str, list[int]] = {}
    for rank, (_, call) in sorted(calls.items()):
        ranks_of.setdefault(call, []).append(rank)
    parts: list[str] = []
    for call, ranks in ranks_of.items():
        subject = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
        verb = "" if parts else " are" if len(ranks) > 1 else " is"
        parts.append(f"{subject}{verb} in {call}")
    parts += [f"another rank in {call}()" for call in unreported]
    return f"the ranks are out of step: {', '.join(parts)}: call it on every rank"
