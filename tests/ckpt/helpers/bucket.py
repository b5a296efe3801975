"""S3 on loopback: moto's server in a process of its own, and a proxy in front of it with faults."""

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
import uuid

PROGRAM = """
import signal, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
import logging
logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""

SECRET = "a-very-secret-key"
KEY_ID = "AKIAVERYPUBLICID"


class Server:
    """moto's server in a process of its own."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
        )
        self.port = int(self._process.stdout.readline())

    def environment(self, port=None):
        """Return the environment variables of a client, also of one behind a proxy."""
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
        }

    def make_bucket(self):
        """Make a bucket and return its URL with a prefix."""
        import http.client

        name = f"bucket-{uuid.uuid4().hex[:12]}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("PUT", f"/{name}")
        assert connection.getresponse().status == 200
        connection.close()
        return f"s3://{name}/runs/7"

    def close(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class Fault:
    """What the proxy does to one request; a plan returns one for a request, or None."""

    def __init__(self, kind, after_bytes=0, seconds=0.0):
        self.kind, self.after_bytes, self.seconds = kind, after_bytes, seconds


class Proxy:
    """A proxy for HTTP with one request a connection, which can disturb any of them.

    `plan` is called with the method, the path and the number of the request, and returns a Fault:

    - "cut request", "cut answer": the connection ends after some bytes
    - "503", "403": an answer of the store's kind, without asking the store
    - "stall": nothing happens for some seconds, then the connection ends
    - "flip request", "flip answer": one bit of the body is another
    - "truncate answer": the body ends early, with a matching length
    - "lose answer": the store did what was asked, and the answer is lost
    """

    def __init__(self, port):
        self.plan = lambda method, path, number: None
        self.log = []
        self._target = port
        self._number = 0
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._is_closed = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self):
        self._is_closed = True
        self._listening.close()
        self._thread.join(5)

    def _accept(self):
        while not self._is_closed:
            try:
                if not select.select([self._listening], [], [], 0.1)[0]:
                    continue
                connection, _ = self._listening.accept()
            except (OSError, ValueError):
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):
            head, body = _receive(connection)
            if head is None:
                return
            method, path = head.split(b"\r\n")[0].decode().split(" ")[:2]
            with self._lock:
                self._number += 1
                number = self._number
                fault = self.plan(method, path, number)
                self.log.append((method, path, fault.kind if fault else ""))
            self._disturb(connection, head, body, fault)

    def _disturb(self, connection, head, body, fault):
        kind = fault.kind if fault else ""
        if kind == "stall":
            time.sleep(fault.seconds)
            return
        if kind in ("503", "403"):
            connection.sendall(_refusal(kind))
            return
        if kind == "flip request" and body:
            body = _flip(body, fault.after_bytes)
        with socket.create_connection(("127.0.0.1", self._target), timeout=60) as store:
            request = _one_request(head) + body
            if kind == "cut request":
                store.sendall(request[: len(head) + fault.after_bytes])
                return
            store.sendall(request)
            answer_head, answer_body = _receive(store, is_answer=True, method=head[:4])
        if kind == "lose answer":
            return
        if kind == "flip answer" and answer_body:
            answer_body = _flip(answer_body, fault.after_bytes)
        if kind == "truncate answer" and answer_body:
            answer_body = answer_body[: len(answer_body) // 2]
            answer_head = _with_length(answer_head, len(answer_body))
        answer = _one_request(answer_head) + answer_body
        if kind == "cut answer":
            answer = answer[: len(answer_head) + fault.after_bytes]
        connection.sendall(answer)


def _receive(connection, *, is_answer=False, method=b""):
    """Return the head and the body of a request or an answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return None, b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    head += b"\r\n\r\n"
    fields = _fields(head)
    if is_answer and (method == b"HEAD" or head.split(b" ")[1] in (b"204", b"304")):
        return head, b""
    if not is_answer and fields.get(b"expect"):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = fields.get(b"content-length")
    body = bytearray(body)
    if length is None and not is_answer:
        return head, bytes(body)
    while length is None or len(body) < int(length):
        part = connection.recv(1 << 20)
        if not part:
            break
        body += part
    return head, bytes(body)


def _fields(head):
    lines = [line.partition(b":") for line in head.split(b"\r\n")[1:] if line]
    return {name.strip().lower(): value.strip() for name, _, value in lines}


def _one_request(head):
    """Return a head that asks for the end of the connection after this request."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])


def _with_length(head, length):
    lines = [
        b"Content-Length: %d" % length if line.lower().startswith(b"content-length:") else line
        for line in head.split(b"\r\n")
    ]
    return b"\r\n".join(lines)


def _flip(body, at):
    at = min(at, len(body) - 1)
    return body[:at] + bytes([body[at] ^ 16]) + body[at + 1 :]


def _refusal(kind):
    code = {"503": "SlowDown", "403": "AccessDenied"}[kind]
    text = (
        f"<?xml version='1.0'?><Error><Code>{code}</Code><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId>"
        f"<StringToSign>{SECRET}</StringToSign></Error>"
    ).encode()
    reason = {"503": "Slow Down", "403": "Forbidden"}[kind]
    return (
        f"HTTP/1.1 {kind} {reason}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    ).encode() + text


def wait_until(is_true, timeout_s=60.0):
    """Wait for a condition; fail after a time that only a hang takes."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def objects(url, prefix=""):
    """Return the keys and sizes of the objects below a URL."""
    from brain_ckpt.mirror.objects import ObjectStore

    return {one.key: one.size for one in ObjectStore(url).list(prefix or "")}


@contextlib.contextmanager
def environment(variables):
    """Set environment variables for a while."""
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
