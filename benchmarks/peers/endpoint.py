"""OpenAI's streamed chat completions, for libraries that bring no server: what they write goes into a job's pieces."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any


@dataclass
class Job:
    """One request. `pieces` gets the text as it is written, then None, or an exception."""

    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    schema: dict[str, Any] | None
    prompt_tokens: int = 0
    tokens: int = 0
    pieces: SimpleQueue[str | Exception | None] = field(default_factory=SimpleQueue)


def server(port: int, submit: Callable[[Job], None]) -> ThreadingHTTPServer:
    """On loopback. `submit` returns at once."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
            sampling = (body["max_tokens"], body["temperature"], body["top_p"], body["seed"])
            job = Job(body["messages"], *sampling, schema)
            submit(job)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            while (piece := job.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    self._event({"error": {"message": repr(piece)}})
                    return
                self._event({"choices": [{"index": 0, "delta": {"content": piece}}]})
            usage = {"prompt_tokens": job.prompt_tokens, "completion_tokens": job.tokens}
            self._event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, value: object) -> None:
            self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())

        def log_message(self, format: str, *args: object) -> None: ...

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)
