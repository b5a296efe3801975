"""Forked child processes; importing torch in a new process would take seconds."""

import os
import select
import signal
import time
import traceback

WRITING = (
    "mkdir",
    "create",
    "write",
    "external_write",
    "fsync",
    "fsync_directory",
    "rename",
    "unlink",
    "rmdir",
)

KILLED, FINISHED, FAILED, HUNG = "killed", "finished", "failed", "hung"


class Child:
    """A forked child that runs a function and reports bytes through a pipe."""

    def __init__(self, function):
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(reading)
                function(lambda number: os.write(writing, bytes([number])))
                code = 0
            except BaseException:  # noqa: BLE001 - whatever it is, the child only ends here
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        self.pipe = reading
        self.reports = []

    def wait(self, timeout_s=60.0):
        """Return how the child ended; after the timeout it is killed and counts as hung."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if select.select([self.pipe], [], [], 0.1)[0]:
                data = os.read(self.pipe, 4096)
                if not data:
                    return self._reap()
                self.reports.extend(data)
        os.kill(self.pid, signal.SIGKILL)
        self._reap()
        return HUNG

    def kill(self, sign=signal.SIGKILL):
        os.kill(self.pid, sign)

    def _reap(self):
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            return KILLED
        return FINISHED if os.WEXITSTATUS(status) == 0 else FAILED


class KillAt:
    """A failpoint that kills its process at the n-th operation, perhaps after half a write."""

    def __init__(self, number, torn=False):
        self.number = number
        self.torn = torn
        self.count = 0

    def __call__(self, operation, path, detail):
        # A kill before a read leaves the same state as one before it.
        self.count += operation in WRITING
        if self.count < self.number:
            return None
        if self.torn and operation == "write" and self.count == self.number and len(detail) > 1:
            return len(detail) // 2
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the signal may reach another thread first
        return None


class Count:
    """A failpoint that counts write operations."""

    def __init__(self):
        self.count = 0

    def __call__(self, operation, path, detail):
        self.count += operation in WRITING
