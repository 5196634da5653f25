"""The part of a hub that Spaces and uploads need, on loopback: and what can go wrong with it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_WRITES_AND_IS_NEVER_SHOWN"


@dataclass
class FakeRepo:
    """A Space, or a model's repository.

    Attributes:
        stages: those still to come; the last one stays.
    """

    private: bool = False
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"* text"})
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    hardware: str = "cpu-basic"
    sleep_time: int | None = None
    stages: list[str] = field(default_factory=lambda: ["NO_APP_FILE"])
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.commits).encode()).hexdigest()

    @property
    def runtime(self) -> dict[str, Any]:
        stage = self.stages.pop(0) if len(self.stages) > 1 else self.stages[0]
        asked = {"current": None, "requested": self.hardware}
        return {"stage": stage, "hardware": asked, "gcTimeout": self.sleep_time, "storage": None}


class FakeSpacesHub:
    """`url` is what HF_ENDPOINT should name; `host` the address of every Space.

    Attributes:
        refuses: a part of a path → status and words.
        breaks: the connection ends in the middle of so many commits.
        after_commit: the stages that follow a commit.
        asked: method, path and body of everything that came.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.repos: dict[str, FakeRepo] = {}
        self.refuses: dict[str, tuple[int, str]] = {}
        self.breaks = 0
        self.after_commit = ["BUILDING", "APP_STARTING", "RUNNING"]
        self.logs: list[str] = []
        self.asked: list[tuple[str, str, bytes]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def changes(self) -> list[str]:
        """Paths of what was asked and could change something."""
        harmless = ("/validate-yaml", "/preupload/main")
        return [path for method, path, _ in self.asked if method == "POST" and not path.endswith(harmless)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def fake_spaces_hub(host: str = "http://127.0.0.1:9") -> Iterator[FakeSpacesHub]:
    hub = FakeSpacesHub(host)
    try:
        yield hub
    finally:
        hub.close()


def _handler(hub: FakeSpacesHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            hub.asked.append((self.command, path, body))
            refused = next((hub.refuses[part] for part in hub.refuses if part in path), None)
            found = re.fullmatch(r"/api/(?:spaces|models)/([^/]+/[^/]+)(?:/(.*))?", path)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._say({"error": "Invalid username or password."}, 401)
            elif refused:
                self._say({"error": refused[1]}, refused[0])
            elif path == "/api/repos/create":
                self._create(json.loads(body))
            elif path == "/api/validate-yaml":
                self._say({"errors": [], "warnings": []})
            elif found and found[1] in hub.repos:
                self._repo(found[1], hub.repos[found[1]], found[2] or "", body)
            else:
                self._say({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked.get('organization') or 'acme'}/{asked['name'].rpartition('/')[2]}"
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            hub.repos.setdefault(name, FakeRepo(private=private, hardware=asked.get("hardware", "cpu-basic")))
            self._say({"url": f"{hub.url}/spaces/{name}", "id": name, "name": name})

        def _repo(self, name: str, repo: FakeRepo, rest: str, body: bytes) -> None:
            first = rest.partition("/")[0]
            if rest == "" or first == "revision":
                self._say({"id": name, "sha": repo.sha, "private": repo.private, "host": hub.host, "siblings": []})
            elif first == "runtime":
                self._say(repo.runtime)
            elif first == "tree":
                self._say([_entry(path, data) for path, data in sorted(repo.files.items())])
            elif first in ("variables", "secrets"):
                self._values(getattr(repo, first), body)
            elif first == "hardware":
                repo.hardware = json.loads(body)["flavor"]
                self._say(repo.runtime)
            elif first == "sleeptime":
                repo.sleep_time = json.loads(body)["seconds"]
                self._say(repo.runtime)
            elif first == "restart":
                repo.stages = list(hub.after_commit)
                self._say(repo.runtime)
            elif first == "preupload":
                files = [each["path"] for each in json.loads(body)["files"]]
                said = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
                self._say({"files": said})
            elif first == "commit":
                self._commit(name, repo, body)
            elif first == "logs":
                self._logs()

        def _values(self, kept: dict[str, str], body: bytes) -> None:
            if body:
                given = json.loads(body)
                kept[given["key"]] = given["value"]
                self._say({})
            else:
                secret = self.path.endswith("secrets")
                self._say({key: {"key": key} if secret else {"value": value} for key, value in kept.items()})

        def _commit(self, name: str, repo: FakeRepo, body: bytes) -> None:
            if hub.breaks:
                hub.breaks -= 1
                self.close_connection = True
                return
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repo.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del repo.files[value["path"]]
            repo.commits += 1
            repo.stages = list(hub.after_commit)
            self._say({"commitOid": repo.sha, "commitUrl": f"{hub.url}/{name}/commit/{repo.sha}"})

        def _logs(self) -> None:
            events = "".join(
                f"data: {json.dumps({'data': line, 'timestamp': '2026-01-01T00:00:00.000Z'})}\n\n" for line in hub.logs
            )
            self._send(events.encode(), 200, {"Content-Type": "text/event-stream"})

        def _say(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self._send(json.dumps(body).encode(), status, {"Content-Type": "application/json", **(headers or {})})

        def _send(self, body: bytes, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _entry(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"type": "file", "path": path, "size": len(data), "oid": oid}
