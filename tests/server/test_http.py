from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest

from router_backend import __version__
from router_backend.engines.echo import EchoModel
from router_backend.errors import LoadError, RouterError
from router_backend.plan.prompt import router_prompt
from router_backend.plan.rules import validate
from router_backend.server.pages import CONSOLE
from router_backend.server.sse import stream
from router_backend.types import GenerateRequest, ModelInfo
from tests.fakes.running import App, app, echo_model, says_plans, until

TOOLS = ("/general-search", "/math", "/code")
KEY = "k-alice-1234"


@pytest.fixture(scope="module")
def shared() -> Iterator[App]:
    with app() as running:
        yield running


@pytest.fixture
def echo(shared: App) -> App:
    """The module's app, its model as it was at first."""
    shared.model.script = says_plans
    shared.model.fail_after = None
    shared.model.seen.clear()
    return shared


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, whose shape is checked."""
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str) and error["message"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    return dict(error)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, whose framing is checked."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    *frames, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def last_seen(echo: App) -> GenerateRequest:
    return echo.model.seen[-1]


# /v1/generate


def test_plain_answer_is_one_key(echo: App) -> None:
    response = echo.generate("say it", output="text")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"text": "say it"}


def test_output_is_a_plan_by_default(echo: App) -> None:
    bodies: tuple[dict[str, Any], ...] = ({}, {"output": "plan"})
    for body in bodies:
        text = echo.generate("a query", **body).json()["text"]
        plan, findings = validate(json.loads(text), TOOLS)
        assert plan is not None and findings == []


def test_prompt_reaches_the_engine_as_it_is(echo: App) -> None:
    for prompt in ('  é 漢字 😀\n\ttab \\ "quote" \u2028', "x"):
        assert echo.generate(prompt, output="text").json() == {"text": prompt}
        assert last_seen(echo).prompt == prompt


def test_details_of_text(echo: App) -> None:
    details = echo.generate("one two three", output="text", details=True, seed=7, max_new_tokens=2).json()["details"]
    timings = details.pop("timings")
    assert details == {
        "model": "echo",
        "strategy": "native",
        "engine": "echo",
        "finish_reason": "length",
        "seed": 7,
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "budget": None,
        "route": None,
    }
    tokens = ["prompt_tokens", "cached_tokens", "completion_tokens"]
    seconds = ["queue_seconds", "prefill_seconds", "decode_seconds"]
    assert list(timings) == [*tokens, *seconds, "forward_passes", "drafted", "accepted", "forced", "gpu_seconds"]
    assert [timings[name] for name in (*tokens, "forward_passes", "drafted")] == [3, 0, 2, 2, 0]
    assert timings["queue_seconds"] > 0 and timings["decode_seconds"] >= 0


def test_details_of_a_plan(echo: App) -> None:
    body = echo.generate("one two", details=True, max_new_tokens=700).json()
    assert list(body) == ["text", "details"]
    details = body["details"]
    assert list(details) == [
        "model",
        "strategy",
        "engine",
        "finish_reason",
        "seed",
        "usage",
        "timings",
        "budget",
        "route",
    ]
    budget = details["budget"]
    used = EchoModel().count_tokens(body["text"])
    assert (budget["limit"], budget["used"], budget["clipped"]) == (700, used, [])
    assert used <= 700
    assert details["usage"]["completion_tokens"] == used
    assert details["usage"]["total_tokens"] == used + 2
    assert details["finish_reason"] == "stop"


@pytest.mark.parametrize("value", [False, None])
def test_no_details_unless_asked(echo: App, value: bool | None) -> None:
    body: dict[str, Any] = {} if value is None else {"details": value}
    assert list(echo.generate(output="text", **body).json()) == ["text"]


def test_defaults_are_the_contracts(echo: App) -> None:
    echo.generate(output="text")
    drawn = last_seen(echo).sampling
    assert (drawn.max_new_tokens, drawn.temperature, drawn.top_p, drawn.stop) == (600, 0.2, 0.9, ())


def test_defaults_are_the_operators() -> None:
    with app(max_new_tokens=50, default_temperature=1.5, default_top_p=0.5) as echo:
        echo.generate(output="text")
        drawn = last_seen(echo).sampling
        assert (drawn.max_new_tokens, drawn.temperature, drawn.top_p) == (50, 1.5, 0.5)


def test_wishes_win_and_zero_is_one(echo: App) -> None:
    echo.generate(output="text", max_new_tokens=9, temperature=0, top_p=1, seed=0, stop=["x", "y", "z", "\n"])
    drawn = last_seen(echo).sampling
    assert (drawn.max_new_tokens, drawn.temperature, drawn.top_p, drawn.seed) == (9, 0, 1, 0)
    assert drawn.stop == ("x", "y", "z", "\n")


def test_null_is_the_default(echo: App) -> None:
    echo.generate(output="text", max_new_tokens=None, temperature=None, top_p=None, seed=None, stop=None)
    drawn = last_seen(echo).sampling
    assert (drawn.max_new_tokens, drawn.temperature, drawn.top_p, drawn.stop) == (600, 0.2, 0.9, ())


def test_seed_makes_an_answer_repeatable(echo: App) -> None:
    """The model's words come of its seed here, so the answers tell whether the same seed reached it."""
    echo.model.script = lambda request: f"seeded {request.sampling.seed}"
    first = echo.generate(output="text", details=True).json()
    second = echo.generate(output="text", details=True).json()
    assert first["details"]["seed"] != second["details"]["seed"]
    again = echo.generate(output="text", details=True, seed=first["details"]["seed"]).json()
    assert (again["text"], again["details"]["seed"]) == (first["text"], first["details"]["seed"])


def test_stop_ends_a_text_and_is_no_part_of_it(echo: App) -> None:
    body = echo.generate("one two STOP three", output="text", stop=[" STOP"], details=True).json()
    assert body["text"] == "one two"
    assert body["details"]["finish_reason"] == "stop"


# /v1/plan


def test_plan_answer(echo: App) -> None:
    response = echo.client.post("/v1/plan", json={"query": "what is it", "max_new_tokens": 800, "seed": 3})
    body = response.json()
    assert response.status_code == 200 and list(body) == ["plan", "text", "report"]
    assert json.loads(body["text"]) == body["plan"]
    assert validate(body["plan"], TOOLS)[1] == []
    assert body["report"]["budget"]["limit"] == 800 and body["report"]["seed"] == 3
    assert set(body["report"]) == {
        *("model", "strategy", "engine", "finish_reason"),
        *("seed", "usage", "timings", "budget", "route"),
    }


def test_plan_builds_the_canonical_prompt(echo: App) -> None:
    echo.client.post("/v1/plan", json={"query": "What is 2 + 2?"})
    assert last_seen(echo).prompt == (
        "You are the Router Agent coordinating Math, Code, and General-Search specialists.\n"
        "Given the user query, respond with a JSON object describing the full routing plan.\n"
        "\n"
        "Requirements:\n"
        "- STRICT JSON with double quotes and no extra commentary.\n"
        "- Keys: route_plan, route_rationale, expected_artifacts, thinking_outline,\n"
        "  handoff_plan, todo_list, difficulty, tags, acceptance_criteria, metrics.\n"
        "- route_plan must be an ordered list of tool invocations.\n"
        "- Use the original phrasing when possible.\n"
        "\n"
        "User query:\n"
        "What is 2 + 2?\n"
    )


PARTS: dict[str, Any] = {
    "context": "a class",
    "acceptance": "it is right",
    "guidance": "be brief",
    "difficulty": "advanced",
    "tags": ["algebra", "two-words"],
}


def test_optional_parts_reach_the_prompt(echo: App) -> None:
    echo.client.post("/v1/plan", json={"query": "q", **PARTS})
    assert last_seen(echo).prompt == router_prompt("q", **{**PARTS, "tags": tuple(PARTS["tags"])})
    for name, value in PARTS.items():
        echo.client.post("/v1/plan", json={"query": "q", name: value})
        assert last_seen(echo).prompt != router_prompt("q")
        assert "".join(value[:1]) in last_seen(echo).prompt.partition("User query:")[2]
        echo.client.post("/v1/plan", json={"query": "q", name: None})
        assert last_seen(echo).prompt == router_prompt("q")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "query"),
        ({"query": ""}, "query"),
        ({"query": 1}, "query"),
        ({"query": "q", "difficulty": "hard"}, "difficulty"),
        ({"query": "q", "tags": ["a"] * 33}, "tags"),
        ({"query": "q", "tags": ["a", ""]}, "tags.1"),
        ({"query": "q", "prompt": "x"}, "prompt"),
        ({"query": "q", "output": "text"}, "output"),
    ],
)
def test_plan_refuses_by_name(echo: App, body: dict[str, Any], param: str) -> None:
    response = echo.client.post("/v1/plan", json=body)
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert param in error["message"]
    assert echo.model.seen == []


def test_a_plan_that_cannot_be_written_is_a_502_and_no_fragment(echo: App) -> None:
    echo.model.script = lambda request: ""
    for path, body in (("/v1/plan", {"query": "q"}), ("/v1/generate", {"prompt": "q"})):
        response = echo.client.post(path, json=body)
        assert response.status_code == 502
        assert error_of(response)["code"] == "invalid_plan"


# Streams


def test_stream_of_text(echo: App) -> None:
    *pieces, last = events(echo.generate("one two three", output="text", stream=True))
    assert pieces == [{"text": "one"}, {"text": " two"}, {"text": " three"}]
    assert last == {"text": "", "finish_reason": "stop"}


@pytest.mark.parametrize(("path", "name"), [("/v1/generate", "prompt"), ("/v1/plan", "query")])
def test_stream_of_a_plan_is_the_plan(echo: App, path: str, name: str) -> None:
    body = {name: "a query", "seed": 5}
    plain = echo.client.post(path, json=body).json()["text"]
    *pieces, last = events(echo.client.post(path, json={**body, "stream": True, "details": True}))
    assert len(pieces) > 5
    assert "".join(piece["text"] for piece in pieces) == plain
    assert last["finish_reason"] == "stop" and last["details"]["seed"] == 5
    assert last["details"]["budget"]["used"] <= 600


def test_a_stream_keeps_every_character(echo: App) -> None:
    prompt = "é 漢字\n\n😀 data: [DONE]\r\n\u2028 end"
    pieces = events(echo.generate(prompt, output="text", stream=True))
    assert "".join(piece["text"] for piece in pieces) == prompt


def test_an_error_before_the_first_chunk_is_a_status(echo: App) -> None:
    echo.model.fail_after = 0
    response = echo.generate(output="text", stream=True)
    assert response.status_code == 500
    assert error_of(response)["code"] == "engine_error"
    response = echo.generate(max_new_tokens=1, stream=True)
    assert response.status_code == 400
    assert error_of(response)["code"] == "budget_too_small"


def test_an_engine_that_fails_at_once_is_a_status_for_a_streamed_plan_too(echo: App) -> None:
    echo.model.fail_after = 0
    response = echo.generate(stream=True)
    assert response.status_code == 500
    assert error_of(response)["code"] == "engine_error"


def test_an_error_in_midstream_is_an_event(echo: App) -> None:
    echo.model.fail_after = 2
    *pieces, last = events(echo.generate("one two three", output="text", stream=True))
    assert "".join(piece["text"] for piece in pieces) == "one two"
    assert last == {
        "error": {
            "message": "the echo engine was told to fail",
            "type": "server_error",
            "param": None,
            "code": "engine_error",
        }
    }
    echo.model.fail_after = None
    assert echo.generate("one", output="text").json() == {"text": "one"}


def test_row_27_a_foreign_error_in_midstream_keeps_its_text(echo: App) -> None:
    class Pieces(list[str]):
        """Counted as they should be; when they are said, it fails after the first."""

        def __iter__(self) -> Iterator[str]:
            yield "one"
            raise RuntimeError("password in here")

    echo.model.tokenize = lambda text: Pieces(["one"])  # type: ignore[method-assign]
    try:
        response = echo.generate(output="text", stream=True)
    finally:
        del echo.model.tokenize
    assert response.status_code == 200 and response.text.startswith('data: {"text":"one"}')
    assert "password" not in response.text
    assert "internal_error" in response.text


def test_closing_a_stream_closes_what_makes_it() -> None:
    """Where a slow reader leaves, the stream stands at a send, and nothing is cancelled within its events."""
    closed: list[bool] = []

    async def many() -> AsyncGenerator[dict[str, object], None]:
        try:
            while True:
                yield {"text": "x"}
        finally:
            closed.append(True)

    async def main() -> None:
        made = many()
        body: Any = (await stream(made)).body_iterator
        assert await anext(body) == b'data: {"text":"x"}\n\n'
        assert closed == []
        await body.aclose()
        assert closed == [True]

    asyncio.run(main())


# Health


PROBE = ["state", "phase", "detail", "elapsed_seconds"]
HEALTH = [
    *("status", "model", "strategy", "engine", "reason", "stand_in", "attempts"),
    *("context_length", "smallest_budget", "queue", "gpu", "upstream", "warnings", "version"),
]


def statuses(echo: App) -> dict[str, int]:
    """The four health routes' statuses; their bodies are checked, and that nobody asked the model."""
    found: dict[str, int] = {}
    before = len(echo.model.seen)
    for path in ("/health", "/livez", "/readyz", "/startupz"):
        response = echo.client.get(path)
        body = response.json()
        assert list(body) == (HEALTH if path == "/health" else PROBE)
        assert body["status" if path == "/health" else "state"] == echo.service.health().status
        if path != "/health":
            assert body["phase"] and body["detail"] and body["elapsed_seconds"] >= 0
        found[path] = response.status_code
    assert len(echo.model.seen) == before
    return found


def test_health_idle() -> None:
    with app(skip_warm_start=True, ready=False) as echo:
        assert statuses(echo) == {"/health": 200, "/livez": 200, "/readyz": 200, "/startupz": 200}
        body = echo.client.get("/health").json()
        assert (body["status"], body["model"], body["strategy"], body["engine"]) == ("idle", None, "pending", None)
        assert echo.generate("one", output="text").json() == {"text": "one"}
        assert echo.client.get("/health").json()["status"] == "ok"


def test_health_ok(echo: App) -> None:
    assert statuses(echo) == {"/health": 200, "/livez": 200, "/readyz": 200, "/startupz": 200}
    body = echo.client.get("/health").json()
    assert body.pop("reason")
    assert body == {
        "status": "ok",
        "model": "echo",
        "strategy": "native",
        "engine": "echo",
        "stand_in": False,
        "attempts": [],
        "context_length": 4096,
        "smallest_budget": echo.engine.smallest_budget(),
        "queue": {"running": 0, "waiting": 0, "slots": 4},
        "gpu": None,
        "upstream": None,
        "warnings": [],
        "version": __version__,
    }


def test_row_20_health_loading_and_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that waits until it is told how to end."""
    go, error = threading.Event(), LoadError("no checkpoint: the disk is gone")

    def load(_: object) -> Any:  # noqa: ANN401 - never returns
        assert go.wait(20)
        raise error

    monkeypatch.setattr("router_backend.service.host.pause", lambda times: 1000.0)
    with app(skip_warm_start=True, ready=False) as echo:
        monkeypatch.setattr(echo.service.host, "load", load)
        echo.client.portal.call(echo.service.host.begin)
        assert statuses(echo) == {"/health": 503, "/livez": 200, "/readyz": 503, "/startupz": 503}
        body = echo.client.get("/health").json()
        assert (body["status"], body["strategy"], body["model"]) == ("loading", "pending", None)
        go.set()
        until(lambda: echo.service.health().status == "failed")
        assert statuses(echo) == {"/health": 503, "/livez": 200, "/readyz": 503, "/startupz": 503}
        assert echo.client.get("/health").json()["reason"] == error.message
        response = echo.generate()
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
        assert error_of(response)["code"] == "load_failed"
        assert error.message in error_of(response)["message"]


def test_health_stopping() -> None:
    with app() as echo:
        echo.client.portal.call(echo.service.close)
        assert statuses(echo) == {"/health": 503, "/livez": 200, "/readyz": 503, "/startupz": 200}
        response = echo.generate()
        assert response.status_code == 503 and "retry-after" in response.headers
        assert error_of(response)["code"] == "not_ready"


# Pages


def test_root_leads_to_the_ui_with_its_query(echo: App) -> None:
    for query in ("", "?a=1&b=%20x&__theme=dark"):
        response = echo.client.get(f"/{query}")
        assert (response.status_code, response.headers["location"]) == (307, f"/gradio{query}")


def test_root_and_gradio_with_the_ui() -> None:
    with app(ui=True) as echo:
        assert echo.client.get("/?x=1").headers["location"] == "/gradio?x=1"
        assert echo.client.get("/gradio").status_code in (200, 307)


def test_console(echo: App) -> None:
    response = echo.client.get("/console")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert response.text == CONSOLE.read_text(encoding="utf-8")


# OpenAPI


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


@pytest.fixture(scope="module")
def document(shared: App) -> dict[str, Any]:
    response = shared.client.get("/openapi.json")
    assert response.status_code == 200
    return dict(response.json())


def test_docs_page(echo: App) -> None:
    response = echo.client.get("/docs")
    assert response.status_code == 200 and "/openapi.json" in response.text


def test_openapi_holds_every_path(document: dict[str, Any]) -> None:
    assert document["info"]["version"] == __version__
    methods = {(path, method) for path, each in document["paths"].items() for method in each}
    assert methods == {
        ("/v1/generate", "post"),
        ("/v1/plan", "post"),
        ("/v1/chat/completions", "post"),
        ("/v1/completions", "post"),
        ("/v1/decisions", "post"),
        ("/v1/models", "get"),
        ("/v1/models/{model}", "get"),
        ("/health", "get"),
        ("/metrics", "get"),
        ("/livez", "get"),
        ("/readyz", "get"),
        ("/startupz", "get"),
    }
    for path, method in methods:
        operation = document["paths"][path][method]
        kind = "text/plain" if path == "/metrics" else "application/json"
        assert operation["summary"] and operation["responses"]["200"]["content"][kind]["schema"]


def test_openapi_references_lead_somewhere(document: dict[str, Any]) -> None:
    references = re.findall(r'"\$ref": "([^"]+)"', json.dumps(document))
    assert references
    for reference in references:
        assert resolved(document, {"$ref": reference})


@pytest.mark.parametrize(("path", "own"), [("/v1/generate", {"prompt"}), ("/v1/plan", {"query", *PARTS})])
def test_openapi_bodies_are_the_ones_that_are_read(
    document: dict[str, Any], echo: App, path: str, own: set[str]
) -> None:
    body = document["paths"][path]["post"]["requestBody"]
    schema = resolved(document, body["content"]["application/json"]["schema"])
    sampling = {"max_new_tokens", "temperature", "top_p", "seed", "stop", "stream", "details"}
    assert body["required"] is True and schema["additionalProperties"] is False
    assert set(schema["properties"]) - {"output"} == own | sampling
    assert set(schema["required"]) <= own
    for name in schema["properties"]:
        response = echo.client.post(path, json={name: object.__name__, **dict.fromkeys(schema["required"], "x")})
        assert "unknown field" not in response.text


def test_openapi_errors_have_the_error_shape(document: dict[str, Any]) -> None:
    for path in ("/v1/generate", "/v1/plan"):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "400", "401", "413", "415", "429", "500", "502", "503", "504"}
        for status in set(responses) - {"200"}:
            schema = resolved(document, responses[status]["content"]["application/json"]["schema"])
            error = resolved(document, schema["properties"]["error"])
            assert schema["required"] == ["error"]
            assert list(error["properties"]) == error["required"] == ["message", "type", "param", "code"]


def test_openapi_answers_are_the_ones_that_are_sent(document: dict[str, Any], echo: App) -> None:
    """The names that a real answer has, at both levels."""
    for path, body in (("/v1/generate", {"prompt": "q", "details": True}), ("/v1/plan", {"query": "q"})):
        schema = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        for name, value in echo.client.post(path, json=body).json().items():
            shape = resolved(document, schema)["properties"][name]
            shape = next((each for each in shape.get("anyOf", ()) if "$ref" in each), shape)
            if isinstance(value, dict):
                assert set(value) == set(resolved(document, shape)["properties"])
    for path in ("/health", "/readyz"):
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(resolved(document, schema)["properties"]) == set(echo.client.get(path).json())


# Errors and request ids


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/generate", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
    ],
)
def test_unknown_paths_and_methods(echo: App, method: str, path: str, status: int, code: str) -> None:
    response = echo.client.request(method, path)
    error = error_of(response)
    assert (response.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert f"{method} {path}" in error["message"]
    assert (status == 405) == ("allow" in response.headers)


def test_a_request_id_is_given(echo: App) -> None:
    ids = {echo.client.get("/livez").headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20
    assert all(re.fullmatch(r"req-[0-9a-f]{16}", each) for each in ids)


@pytest.mark.parametrize("sent", ["a", "trace:1.2_3-4", "x" * 128])
def test_a_request_id_is_echoed_and_reaches_the_engine(echo: App, sent: str) -> None:
    response = echo.generate(output="text", headers={"x-request-id": sent})
    assert response.headers.get_list("x-request-id") == [sent]
    assert last_seen(echo).id == sent
    assert echo.client.get("/nothing", headers={"x-request-id": sent}).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", [b"", b"x" * 129, b"two words", b"a\xe9", b"<b>", b'a"b', b"a;b", b"a\tb"])
def test_a_malformed_request_id_is_replaced(echo: App, sent: bytes) -> None:
    response = echo.client.get("/livez", headers=[(b"x-request-id", sent)])
    assert re.fullmatch(r"req-[0-9a-f]{16}", response.headers["x-request-id"])


# Access log


def lines(caplog: pytest.LogCaptureFixture, name: str = "router_backend.access") -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.name.startswith(name)]


@pytest.mark.parametrize("stream", [False, True])
def test_one_line_a_request(echo: App, caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    caplog.set_level(logging.INFO)
    body = {"prompt": "secret words here", "output": "text", "max_new_tokens": 2, "stream": stream}
    echo.client.post("/v1/generate?q=secret", json=body, headers={"x-request-id": "r1", "authorization": "Bearer k-1"})
    (line,) = lines(caplog)
    assert (line["levelname"], line["request_id"], line["status"]) == ("INFO", "r1", 200)
    assert (line["method"], line["path"]) == ("POST", "/v1/generate")
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish_reason"]) == (3, 2, "length")
    assert 0 < line["queue_seconds"] <= line["seconds"] and 0 <= line["decode_seconds"] <= line["seconds"] + 0.01
    ours = str(lines(caplog, "router_backend"))
    assert "secret" not in ours and "k-1" not in ours


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_logged_where_the_operator_asks_for_it(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    caplog.set_level(logging.INFO)
    with app(log_prompts=True) as echo:
        echo.generate("secret words", output="text", stream=stream)
    (line,) = lines(caplog)
    assert line["prompt"] == "secret words"


def test_the_line_of_a_refusal(echo: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    echo.generate("secret", secret=1)
    echo.client.get("/nothing")
    assert [line["status"] for line in lines(caplog)] == [400, 404]
    assert "secret" not in str(lines(caplog))


def test_the_line_of_a_missing_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with app(router_api_keys=f"alice:{KEY}") as echo:
        echo.generate(headers={"authorization": f"Bearer {KEY}x"})
        echo.generate("one", headers={"authorization": f"Bearer {KEY}"}, output="text")
    assert [line["status"] for line in lines(caplog)] == [401, 200]
    assert KEY not in str([vars(record) for record in caplog.records])


def test_probes_are_quiet(echo: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "router_backend.access")
    for path in ("/livez", "/readyz", "/startupz", "/health"):
        echo.client.get(path)
    assert {line["levelname"] for line in lines(caplog)} == {"DEBUG"}
    assert len(lines(caplog)) == 4


# Failures


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/plan"])
def test_row_21_an_unexpected_exception_is_a_500_without_its_text(
    echo: App, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    def script(request: GenerateRequest) -> str:
        raise MemoryError("password in here")

    echo.model.script = script
    body = {"query": "q"} if path == "/v1/plan" else {"prompt": "q", "output": "text"}
    caplog.set_level(logging.INFO)
    response = echo.client.post(path, json=body, headers={"x-request-id": "r9"})
    assert response.status_code == 500
    assert error_of(response) == {
        "message": "internal error",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert response.headers["x-request-id"] == "r9"
    assert [line["status"] for line in lines(caplog) if line["message"] == "request"] == [500]
    assert "MemoryError" in caplog.text, "the operator can find it"
    echo.model.script = says_plans
    assert echo.client.post(path, json=body).status_code == 200
    until(lambda: echo.engine.free_slots == 4)


@pytest.mark.parametrize("cls", RouterError.__subclasses__())
def test_every_error_is_answered_with_its_own_status(echo: App, cls: type[RouterError]) -> None:
    def script(request: GenerateRequest) -> str:
        raise cls("why", param="prompt", retry_after=1.2)

    echo.model.script = script
    response = echo.generate(output="text")
    assert response.status_code == cls.status
    assert error_of(response) == {"message": "why", "type": cls.type, "param": "prompt", "code": cls.code}
    assert response.headers["retry-after"] == "2"
    assert ("www-authenticate" in response.headers) == (cls.status == 401)


# Keys


def test_row_16_keys_on_every_route() -> None:
    with app(echo_model(), router_api_keys=f"alice:{KEY}") as echo:
        paths = [getattr(route, "path", "") for route in echo.client.app.routes]
        paths += ["/v1/generate", "/v1/plan", "/console", "/docs", "/openapi.json", "/redoc", "/nothing"]
        public = {"/", "/health", "/livez", "/readyz", "/startupz"}
        for path in filter(None, paths):
            for method in ("GET", "POST"):
                response = echo.client.request(method, path)
                assert (response.status_code == 401) == (path not in public), path
                if response.status_code == 401:
                    assert error_of(response)["code"] == "invalid_api_key"
                    assert response.headers["www-authenticate"] == "Bearer"
                good = echo.client.request(method, path, headers={"authorization": f"Bearer {KEY}"})
                assert good.status_code != 401
        assert echo.model.seen == []
        assert echo.generate("one", output="text", headers={"authorization": f"Bearer {KEY}"}).json() == {"text": "one"}


def test_public_paths_are_the_operators() -> None:
    with app(router_api_keys=f"alice:{KEY}", public_paths="/docs,/openapi.json") as echo:
        assert echo.client.get("/docs").status_code == echo.client.get("/openapi.json").status_code == 200
        assert echo.client.get("/console").status_code == 401


def test_fault_c_health_says_what_of_a_template_does_not_work() -> None:
    warning = "the checkpoint's chat template does not work (TemplateError: x): prompts are sent as they are"
    with app(EchoModel(ModelInfo("echo", "native", "echo", 4096, 4, warnings=(warning,)))) as echo:
        assert echo.client.get("/health").json()["warnings"] == [warning]
