"""A server upstream on loopback: it speaks as llama-server does, keeps what it is told to, and fails as servers do."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from starlette.testclient import TestClient

from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines.base import LocalModel
from router_backend.engines.echo import EchoModel
from router_backend.plan.rules import validate
from router_backend.server.app import create_app
from router_backend.service.loader import Loader
from router_backend.service.service import GenerationService
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest
from tests.fakes.running import plan_words, until

KEY = "upstream-key-1"
TOOLS = ("/general-search", "/math", "/code")
_ECHO = EchoModel()


@dataclass(frozen=True)
class Asked:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Faults:
    """What goes wrong with answers. `times`: with how many of them; the rest are as they should be.

    Attributes:
        status: of the answer, with `headers`.
        html: a page comes in its place.
        silent_at: after so many tokens nothing more comes.
        cut: the connection is closed after so many tokens.
        lies: the grammar is ignored.
        model: answers under this name.
        endless: it says that it wrote past the limit.
        error: an error in the midst of the stream.
    """

    times: int = 1_000_000
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    html: bool = False
    silent_at: int | None = None
    cut: int | None = None
    lies: bool = False
    model: str | None = None
    endless: bool = False
    error: bool = False


class FakeUpstream:
    """`url` is what MODEL_REPO should name; `asked` everything that came, over so many `connections`.

    Attributes:
        keeps: `lark` as llama-server does, `schema` by `response_format`, or nothing.
        said: what it answers where no grammar is kept.
        chat_only: it has neither completions nor `/tokenize`.
        off: tokens that `/tokenize` is wrong by.
    """

    def __init__(self, port: int = 0, **settings: Any) -> None:  # noqa: ANN401
        self.keeps, self.said, self.chat_only, self.off, self.models = "lark", "no plan", False, 0, ["router"]
        self.pause = 0.0
        self.faults = Faults()
        for name, value in settings.items():
            assert hasattr(self, name)
            setattr(self, name, value)
        self.asked: list[Asked] = []
        self.connections = self.cancelled = 0
        self.closing = threading.Event()
        self.words: list[str] = []
        self._ids: dict[str, int] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self._open: list[Any] = []
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def ids(self, text: str) -> list[int]:
        with self._lock:
            pieces = _ECHO.tokenize(text)
            for piece in pieces:
                if piece not in self._ids:
                    self._ids[piece] = len(self.words)
                    self.words.append(piece)
            return [self._ids[piece] for piece in pieces]

    def text(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else "".join(self.words[each] for each in prompt)

    def of(self, path: str) -> list[Asked]:
        return [each for each in self.asked if each.path == path]

    def fails(self, **faults: Any) -> None:  # noqa: ANN401
        self.faults = Faults(**faults)

    def answer(self, body: dict[str, Any], prompt: str) -> str:
        grammar = str(body.get("grammar", "")).removeprefix("%llguidance {}\n")
        if grammar and self.keeps == "lark" and not self.faults.lies:
            if "qzq7" in grammar:
                return "qzq7"
            said = plan_words(GenerateRequest("", "", prefix=prompt, grammar=grammar))
            lead = re.match(r'start: \(+("(?:[^"\\]|\\.)*")', grammar)
            return (json.loads(lead[1]) if lead else "") + said.lstrip() if "TEXT" in grammar else said
        if "response_format" in body and self.keeps == "schema" and "qzq7" in json.dumps(body["response_format"]):
            return '{"qzq7": 7}'
        return self.said

    def close(self) -> None:
        """As a server that dies: what is open is cut."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(2)


@contextlib.contextmanager
def fake_upstream(port: int = 0, **settings: Any) -> Iterator[FakeUpstream]:  # noqa: ANN401
    server = FakeUpstream(port, **settings)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def serving(*upstreams: FakeUpstream | str, ready: bool = True, **settings: object) -> Iterator[Any]:
    """Our API in front of such servers, as candidates in that order: starlette's client."""
    urls = [each if isinstance(each, str) else each.url for each in upstreams]
    told = {"model_repo": ",".join(urls), "upstream_api_key": KEY, "slots": 2, "drain_timeout": 1, **settings}
    loader = Loader(load_settings(allow_warm_start_failure=True, **told))
    service = GenerationService(loader.settings, loader.load)
    with TestClient(create_app(service, ui=False), "http://localhost") as client:
        if ready:
            until(lambda: service.health().status == "ok")
        for each in upstreams:
            if isinstance(each, FakeUpstream):
                each.asked.clear()
        yield client


@contextlib.contextmanager
def model_of(url: str, **settings: object) -> Iterator[LocalModel]:
    """The engine alone."""
    loader = Loader(load_settings(model_repo=url, upstream_api_key=KEY, slots=2, **settings))
    model = loader.model(Rung(Candidate(url, "upstream"), "served"))
    try:
        yield model
    finally:
        model.close()


def plan(client: Any, **fields: object) -> Any:  # noqa: ANN401
    return client.post("/v1/plan", json={"query": "Prove that it converges and check it.", **fields})


def valid(response: Any) -> dict[str, Any]:  # noqa: ANN401
    """A whole plan within its budget, as the client got it."""
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    assert validate(body["plan"], TOOLS)[1] == []
    assert body["report"]["budget"]["used"] <= body["report"]["budget"]["limit"]
    return body


def _handler(server: FakeUpstream) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement of its head

        def setup(self) -> None:
            super().setup()
            server.connections += 1
            server._open.append(self.connection)

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._seen({})
            if self.path == "/v1/models":
                self._say({"object": "list", "data": [{"id": name, "object": "model"} for name in server.models]})
            elif self.path == "/props":
                self._say({"total_slots": 2})
            else:
                self._say({"error": {"message": "not found"}}, 404)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._seen(body)
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                self._say({"error": {"message": f"who is {self.headers.get('Authorization')}?"}}, 401)
            elif self.path == "/v1/chat/completions" or (self.path == "/v1/completions" and not server.chat_only):
                self._complete(body)
            elif self.path == "/tokenize" and not server.chat_only:
                ids = server.ids(body["content"])
                self._say({"tokens": ids + ids[: server.off]})
            elif self.path == "/apply-template" and not server.chat_only:
                turns = "".join(f"<|{each['role']}|>{each['content']}<|end|>" for each in body["messages"])
                self._say({"prompt": f"{turns}<|assistant|>"})
            else:
                self._say({"error": {"message": "not found"}}, 404)

        def _seen(self, body: dict[str, Any]) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.asked.append(Asked(self.path, headers, body))

        def _complete(self, body: dict[str, Any]) -> None:
            faults = server.faults if server.faults.times > 0 else Faults()
            server.faults.times -= 1
            if faults.status is not None:
                self._say({"error": {"message": f"no, {KEY}"}}, faults.status, faults.headers)
                return
            if faults.html:
                self._send(b"<html>Welcome</html>", 200, {"Content-Type": "text/html"})
                return
            chat = "messages" in body
            prompt = "\n".join(each["content"] for each in body["messages"]) if chat else server.text(body["prompt"])
            read = len(server.ids(prompt)) if chat or isinstance(body["prompt"], str) else len(body["prompt"])
            said = server.answer(body, prompt)
            ends = [said.find(stop) for stop in body.get("stop", ()) if stop in said]
            words = list(_ECHO.tokenize(said[: min(ends)] if ends else said))
            most = body["max_tokens"]
            reason = "length" if len(words) > most else "stop"
            self._told = {"model": faults.model or body["model"]}
            wrote = most + 1 if faults.endless else len(words[:most])
            usage = {"prompt_tokens": read, "completion_tokens": wrote}
            if not body.get("stream"):
                text = "".join(words[:most])
                part = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
                self._say({**self._told, "choices": [{**part, "finish_reason": reason}], "usage": usage})
                return
            try:
                self._stream(words[:most], reason, usage, faults, chat=chat)
            except OSError:
                server.cancelled += 1
                self.close_connection = True

        def _stream(self, words: list[str], reason: str, usage: object, faults: Faults, *, chat: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for index, word in enumerate(words):
                if index == faults.silent_at:
                    server.closing.wait(60)
                if index == faults.cut:
                    self.connection.shutdown(2)
                    self.close_connection = True
                    return
                if faults.error and index:
                    self._event({"error": {"message": "out of memory"}})
                    return
                if server.pause:
                    server.closing.wait(server.pause)
                part: dict[str, Any] = {"delta": {"content": word}} if chat else {"text": word}
                self._event({**self._told, "choices": [{**part, "finish_reason": None}]})
            last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
            self._event({**self._told, "choices": [{**last, "finish_reason": reason}]})
            self._event({**self._told, "choices": [], "usage": usage})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

        def _event(self, event: object) -> None:
            self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def _say(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self._send(json.dumps(body).encode(), status, {"Content-Type": "application/json", **(headers or {})})

        def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
            if server.closing.is_set():
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    return Handler
