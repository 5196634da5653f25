"""ZeroGPU's device API on loopback, as `spaces` speaks to it: lends a GPU that is none, refuses, queues, and notes."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Call:
    """What was asked of the API, and when (monotonic seconds)."""

    path: str
    sent: dict[str, str]
    at: float


@dataclass
class FakeZeroGPU:
    """`answers` are those to the next calls of `/schedule`, in order; with none left a GPU is lent at once."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path == path]

    def lend(self) -> dict[str, Any]:
        """A GPU that nobody has."""
        with self.lock:
            index = next(index for index in range(64) if index not in self.held.values())
            token = f"allow-{len(self.of('/schedule'))}-{index}"
            self.held[token] = index
            idle = index in self.used
            self.used.add(index)
        return {"idle": idle, "nvidiaIndex": index, "nvidiaUUID": f"GPU-fake-{index}", "allowToken": token}

    def take_back(self, token: str) -> None:
        with self.lock:
            self.held.pop(token, None)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        api, sent = self.server.api, dict(parse_qsl(parts.query))
        api.calls.append(Call(parts.path, sent, time.monotonic()))
        if parts.path == "/schedule":
            self._schedule(api)
            return
        if parts.path == "/release":
            api.take_back(sent["allowToken"])
        self._say(200)

    def _schedule(self, api: FakeZeroGPU) -> None:
        with api.lock:
            answer = api.answers.pop(0) if api.answers else "lend"
        kind, _, wait = answer.partition(" ")
        if kind == "lend":
            self._say(200, api.lend())
        elif kind == "queue":
            self._queue(api, float(wait))
        elif kind.isdecimal():
            self._say(int(kind))
        else:  # quota-exceeded, illegal-duration, pending-overquota-exceeded, and the seconds to wait
            self._say(429, {"left": 3, "wait": int(wait)}, {"X-Approve-Result": kind})

    def _queue(self, api: FakeZeroGPU, seconds: float) -> None:
        """Pings until the time is over, then lends; below zero: in vain."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("X-Queuing-Reason", "node")
        self.end_headers()
        for _ in range(max(1, round(abs(seconds) / 0.1))):
            self.wfile.write(b"event: ping\n\n")
            time.sleep(0.1)
        if seconds < 0:
            self.wfile.write(b"event: failed\n\n")
            return
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(b"event: succeeded\ndata: " + json.dumps(api.lend()).encode() + b"\n\n")

    def _say(self, status: int, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in {"X-Authenticated": "regular", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *ignored: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    api: FakeZeroGPU


@contextlib.contextmanager
def fake_zerogpu() -> Iterator[FakeZeroGPU]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.api = FakeZeroGPU(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="zerogpu")
        thread.start()
        try:
            yield server.api
        finally:
            server.shutdown()
            thread.join()
