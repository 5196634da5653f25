from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from router_backend.errors import RouterError
from router_backend.plan.prompt import router_prompt
from router_backend.plan.rules import validate
from router_tools.smoke import FAILED, PASSED, QUERY, TOOLS, run_smoke

PLAN: dict[str, object] = {
    "route_plan": ["/math(count the steps)", "/code(write the search)"],
    "route_rationale": "The bound comes first, then the code that keeps it.",
    "expected_artifacts": ["A tested function."],
    "thinking_outline": ["1. Derive the bound.", "2. Write the function."],
    "handoff_plan": "/math -> /code -> router QA",
    "todo_list": ["- [ ] /math: derive the bound", "- [ ] /code: write it", "- [ ] router QA: review"],
    "difficulty": "introductory",
    "tags": ["search"],
    "acceptance_criteria": ["The test passes."],
    "metrics": {"primary": ["steps"], "secondary": ["seconds"]},
}
HEALTH = {"status": "ok", "model": "m", "strategy": "gguf", "reason": "first candidate"}


def error(message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False


@dataclass(frozen=True)
class Script:
    """What a fake router answers; as it stands, all of it is right."""

    health: Answer = Answer(body=HEALTH)
    generate: Answer = Answer(body={"text": json.dumps(PLAN)})
    unknown: Answer = Answer(400, error("unknown field: no_such_field"))
    root: Answer = Answer(307, headers={"Location": "/gradio"})


GOOD = Script()


@contextmanager
def serving(script: Script) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A router on a free port of the loopback, and the bodies that it gets."""
    released = threading.Event()
    seen: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(script.health if self.path == "/health" else script.root)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({**body, "authorization": self.headers.get("Authorization")})
            self._say(script.generate if set(body) == {"prompt"} else script.unknown)

        def _say(self, answer: Answer) -> None:
            if answer.hangs:
                released.wait(20)
                return
            raw = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(raw))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def smoke(script: Script, **options: object) -> tuple[int, dict[str, str]]:
    """The exit code, and check → its line."""
    lines: list[str] = []
    with serving(script) as (url, _):
        code = run_smoke(url, out=lines.append, **options)  # type: ignore[arg-type]
    return code, {line[6:].partition(":")[0]: line for line in lines}


def test_a_good_router_passes() -> None:
    lines: list[str] = []
    with serving(GOOD) as (url, seen):
        assert run_smoke(f"{url}/v1/generate", "key-1", out=lines.append) == PASSED
    assert [line[:4] for line in lines] == ["ok  "] * 8 + ["all "]
    assert "ok, model m, strategy gguf" in lines[0]
    assert seen[0] == {"prompt": router_prompt(QUERY), "authorization": "Bearer key-1"}
    assert "key-1" not in "".join(lines)
    assert not validate(PLAN, TOOLS)[1]


def test_an_idle_router_has_no_model_yet() -> None:
    code, lines = smoke(replace(GOOD, health=Answer(body={"status": "idle", "model": None, "strategy": "pending"})))
    assert code == PASSED
    assert "idle" in lines["health"]


def test_a_redirect_may_be_absolute() -> None:
    assert smoke(replace(GOOD, root=Answer(307, headers={"Location": "https://h/gradio/?a=b"})))[0] == PASSED


def plan_with(**changes: object) -> Answer:
    return Answer(body={"text": json.dumps({**PLAN, **changes})})


BROKEN: dict[str, tuple[Script, str, str]] = {
    "health lies": (
        replace(GOOD, health=Answer(body={**HEALTH, "status": "failed", "reason": "out of\nmemory"})),
        "health",
        "200, but status is failed: out of memory",
    ),
    "health is text": (replace(GOOD, health=Answer(body="fine")), "health", "200, and the body is no JSON object"),
    "health has no model": (
        replace(GOOD, health=Answer(body={**HEALTH, "model": None})),
        "health",
        "no model in the body",
    ),
    "health has no strategy": (
        replace(GOOD, health=Answer(body={"status": "ok", "model": "m"})),
        "health",
        "no strategy",
    ),
    "still loading": (
        replace(GOOD, health=Answer(503, {**HEALTH, "status": "loading", "reason": "reading weights"})),
        "health",
        "503, status loading: reading weights",
    ),
    "a key too many": (
        replace(GOOD, generate=Answer(body={"text": json.dumps(PLAN), "model": "m"})),
        "body",
        "must be exactly {\"text\"}, and has the keys ['model', 'text']",
    ),
    "body is a list": (replace(GOOD, generate=Answer(body=[])), "body", "is no JSON object"),
    "text is an object": (replace(GOOD, generate=Answer(body={"text": PLAN})), "body", "text is no string"),
    "cut off": (
        replace(GOOD, generate=Answer(body={"text": json.dumps(PLAN)[:-40]})),
        "json",
        "the text is no whole JSON",
    ),
    "text is null": (replace(GOOD, generate=Answer(body={"text": "null"})), "json", "JSON, but no object"),
    "breaks a rule": (
        replace(GOOD, generate=plan_with(handoff_plan="/code -> router QA")),
        "plan",
        "rule 2, handoff_plan: does not open with /math",
    ),
    "breaks the schema": (replace(GOOD, generate=plan_with(difficulty="hard")), "plan", "difficulty: "),
    "other tools": (replace(GOOD, generate=plan_with(route_plan=["/poetry(a)"])), "plan", "calls /poetry"),
    "fails": (
        replace(GOOD, generate=Answer(500, error("internal error"), {"x-request-id": "r7"})),
        "generate",
        "500 Internal Server Error: internal error (request r7)",
    ),
    "error in another shape": (
        replace(GOOD, unknown=Answer(400, {"detail": "unknown field: no_such_field"})),
        "unknown field",
        '400, but not in the shape {"error": {"message", "type", "param", "code"}}',
    ),
    "accepts unknown fields": (
        replace(GOOD, unknown=GOOD.generate),
        "unknown field",
        "must be refused with 400, and the answer is 200",
    ),
    "refuses something else": (
        replace(GOOD, unknown=Answer(400, error("the budget is too small"))),
        "unknown field",
        "does not name the field",
    ),
    "hangs": (replace(GOOD, generate=Answer(hangs=True)), "generate", "no whole answer from"),
    "no redirect": (replace(GOOD, root=Answer(404, {})), "redirect", "GET / must answer 307, and answers 404"),
    "redirect elsewhere": (
        replace(GOOD, root=Answer(307, headers={"Location": "/docs"})),
        "redirect",
        "leads to /docs, not to /gradio",
    ),
}
FOLLOW_GENERATE = {"generate", "body", "json", "plan", "time"}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_router_fails_for_the_right_reason(name: str) -> None:
    script, check, reason = BROKEN[name]
    # Only what hangs is waited for in vain: a busy machine may take a second for an answer that comes.
    code, lines = smoke(script, timeout=5 if script.generate.hangs else 60)
    assert code == FAILED
    assert lines[check].startswith("FAIL  ")
    assert reason in lines[check]
    failed = {each for each, line in lines.items() if line.startswith("FAIL")}
    assert failed == {check}
    skipped = {each for each, line in lines.items() if line.startswith("skip")}
    assert skipped <= FOLLOW_GENERATE


def test_too_slow() -> None:
    code, lines = smoke(GOOD, within=0.0)
    assert code == FAILED
    assert "0 are allowed" in lines["time"]


def test_own_tools() -> None:
    code, lines = smoke(GOOD, tools=("/math", "/poetry"))
    assert code == FAILED
    assert "calls /code, which is none of /math, /poetry" in lines["plan"]


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RouterError, match=f"cannot connect to http://127.0.0.1:{port}"):
        run_smoke(f"http://127.0.0.1:{port}/v1/generate", out=lambda line: None)


@pytest.mark.parametrize(("url", "says"), [(None, "HF_ROUTER_API"), ("", "HF_ROUTER_API"), ("here", "must be like")])
def test_no_url(url: str | None, says: str) -> None:
    with pytest.raises(RouterError, match=says):
        run_smoke(url)


def test_a_key_that_no_header_can_carry_is_not_said() -> None:
    with pytest.raises(RouterError) as raised:
        run_smoke("http://127.0.0.1:1", api_key="geheim\n")
    assert "geheim" not in raised.value.message


def test_a_router_that_goes_away_under_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    from router_backend.client import Reply, RouterClient, Unreachable

    send: Callable[..., Reply] = RouterClient.send

    def dying(self: RouterClient, method: str, path: str, *args: object, **options: object) -> Reply:
        if method == "POST":
            raise Unreachable(None, "cannot connect")
        return send(self, method, path, *args, **options)

    monkeypatch.setattr(RouterClient, "send", dying)
    code, lines = smoke(GOOD)
    assert code == FAILED
    assert lines["generate"].startswith("FAIL")
