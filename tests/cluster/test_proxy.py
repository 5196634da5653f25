"""What stands in Ray's proxies, before apps that behave as Ray's proxy and the replicas behind it do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from router_backend.cluster.proxy import middlewares
from tests.fakes.running import app as running_app

START: Message = {"type": "http.response.start", "status": 200}
JSON = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff"), (b"x-request-id", b"mine")]


class Ray:
    """Sends some messages and ends, as the proxy does whose replica dies; keeps the scopes that it saw."""

    def __init__(self, *messages: Message) -> None:
        self.messages, self.scopes = messages, list[Scope]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        for message in self.messages:
            await send(message)


def front(behind: object) -> TestClient:
    (one,) = middlewares()
    return TestClient(one.cls(behind, *one.args, **one.kwargs), "http://localhost")  # type: ignore[arg-type]


def body(text: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": text, "more_body": more}


def told(answer: Any) -> tuple[int, str, str]:  # noqa: ANN401 - of whichever httpx the test client finds
    return answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]


def test_an_answer_passes_as_it_is() -> None:
    answer = front(Ray({**START, "headers": JSON}, body(b"{}"))).get("/v1/models")
    assert (answer.status_code, answer.text, answer.headers["x-request-id"]) == (200, "{}", "mine")


def test_the_request_id_is_told_once() -> None:
    twice = [*JSON, (b"X-Request-ID", b"mine")]
    assert front(Ray({**START, "headers": twice}, body(b"{}"))).get("/").headers.get_list("x-request-id") == ["mine"]


def test_a_request_whose_replica_died_may_be_sent_again() -> None:
    answer = front(Ray()).post("/v1/generate", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (
        503,
        "engine_lost",
        "1",
    )


def test_a_replica_that_died_between_head_and_body_is_as_one_that_died_before() -> None:
    assert told(front(Ray({**START, "headers": JSON})).post("/v1/generate")) == (503, "engine_lost", "1")


def test_a_stream_whose_replica_died_says_so() -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
    answer = front(Ray({**START, "headers": headers}, body(b'data: {"text":"one"}\n\n', more=True))).post(
        "/v1/generate"
    )
    first, second, last = answer.text.strip().split("\n\n")
    assert (answer.status_code, first, last) == (200, 'data: {"text":"one"}', "data: [DONE]")
    assert json.loads(second.removeprefix("data: "))["error"]["code"] == "engine_lost"


def test_a_whole_stream_is_left_alone() -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"x-content-type-options", b"nosniff")]
    behind = Ray({**START, "headers": headers}, body(b"data: [DONE]\n\n", more=True), body(b""))
    assert front(behind).post("/v1/generate").text == "data: [DONE]\n\n"


@pytest.mark.parametrize("status", [404, 429, 500, 503])
def test_what_ray_says_of_its_own_has_our_shape(status: int) -> None:
    answer = front(PlainTextResponse("no replicas, in Ray's words", status)).post("/v1/generate")
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (
        503,
        "not_ready",
        "2",
    )
    assert "Ray" not in answer.text


def test_rays_own_probes_are_its_own() -> None:
    answer = front(PlainTextResponse("draining", 503)).get("/-/healthz")
    assert (answer.status_code, answer.text) == (503, "draining")


def test_errors_of_the_app_are_told_as_they_are() -> None:
    with running_app() as served:
        answer = front(served.client.app).post("/v1/generate", json={"prompt": ""}, headers={"host": "localhost"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


@pytest.mark.parametrize("path", ["/gradio/", "/gradio_api/queue/join", "/gradio/gradio_api/call/generate", "/config"])
def test_calls_of_the_ui_have_a_session(path: str) -> None:
    behind = Ray({**START, "headers": JSON}, body(b"{}"))
    client = front(behind)
    for headers in ({}, {}, {"x-session-id": "own"}):
        client.get(path, headers=headers)
    first, second, third = (
        [value for name, value in scope["headers"] if name == b"x-session-id"] for scope in behind.scopes
    )
    assert first == second != [b"own"] == third and len(first[0]) == 16


def test_other_requests_go_wherever_there_is_room() -> None:
    behind = Ray({**START, "headers": JSON}, body(b"{}"))
    front(behind).post("/v1/generate")
    assert not [name for name, _ in behind.scopes[0]["headers"] if name == b"x-session-id"]
