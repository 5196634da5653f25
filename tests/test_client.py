from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from router_backend.client import ClientError, Reply, RouterClient, TimedOut, Unreachable, base_url, error_message
from router_backend.server.sse import DONE, event

KEY = "sk-very-secret"
ERROR = {"error": {"message": "too busy", "type": "rate_limit_error", "param": None, "code": "overloaded"}}
Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler, **fields: object) -> RouterClient:
    fields.setdefault("api_key", KEY)
    return RouterClient("http://router.test/", transport=httpx.MockTransport(handler), **fields)  # type: ignore[arg-type]


def answering(*responses: httpx.Response) -> tuple[list[httpx.Request], Handler]:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return responses[min(len(seen), len(responses)) - 1]

    return seen, handler


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:1", "http://h:1"),
        ("http://h:1/", "http://h:1"),
        (" https://h/v1/generate\n", "https://h"),
        ("https://h/v1/generate/?a=1#b", "https://h"),
        ("https://h/prefix/v1/generate", "https://h/prefix"),
        ("https://h/prefix/", "https://h/prefix"),
    ],
)
def test_the_base_of_a_url(url: str, base: str) -> None:
    assert base_url(url) == base


@pytest.mark.parametrize(
    "url", ["", "localhost:7860", "ftp://h", "http://", "h/v1/generate", "http://h:99999999", "\x00"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="must be like"):
        RouterClient(url)


def test_generate_sends_the_fields_and_the_key() -> None:
    seen, handler = answering(httpx.Response(200, json={"text": "{}"}))
    with client_of(handler) as client:
        assert client.generate("héllo \ud800", temperature=0) == {"text": "{}"}
    assert str(seen[0].url) == "http://router.test/v1/generate"
    assert seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert seen[0].headers["content-type"] == "application/json"
    assert json.loads(seen[0].content) == {"prompt": "héllo \ud800", "temperature": 0}


def test_plan() -> None:
    seen, handler = answering(httpx.Response(200, json={"plan": {}, "text": "{}", "report": {}}))
    assert client_of(handler).plan("q", seed=1)["plan"] == {}
    assert seen[0].url.path == "/v1/plan"
    assert json.loads(seen[0].content) == {"query": "q", "seed": 1}


@pytest.mark.parametrize("status", [200, 503])
def test_health_of_a_server_that_loads_is_no_error(status: int) -> None:
    _, handler = answering(httpx.Response(status, json={"status": "loading"}))
    assert client_of(handler).health() == {"status": "loading"}


def test_health_of_something_else() -> None:
    _, handler = answering(httpx.Response(404, text="Not Found"))
    with pytest.raises(ClientError, match="404 Not Found: the body is 'Not Found'"):
        client_of(handler).health()


def test_an_error_in_the_one_shape() -> None:
    _, handler = answering(httpx.Response(429, json=ERROR, headers={"x-request-id": "r1", "retry-after": "7"}))
    with pytest.raises(ClientError) as caught:
        client_of(handler).generate("p")
    assert str(caught.value) == "429 Too Many Requests: too busy (request r1)"
    assert (caught.value.status, caught.value.message, caught.value.request_id) == (429, "too busy", "r1")
    assert caught.value.retry_after == 7


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (httpx.Response(502, text="<h1>Bad\n\x1b[31m gateway</h1>"), r"^502 Bad Gateway: the body is '<h1>Bad \[31m g"),
        (httpx.Response(500), "^500 Internal Server Error: the body is empty$"),
        (httpx.Response(599, text="x" * 2000), "^599: the body is 'x{300}…'$"),
        (httpx.Response(301, headers={"location": "https://h/"}), "it redirects to https://h/; give that URL"),
        (httpx.Response(200, text="hello"), "200 OK: the body is no answer of a router: no 'text' in 'hello'"),
        (httpx.Response(200, json={"text": 1}), "no 'text' in"),
        (httpx.Response(200, json=[1]), "no 'text' in"),
        (httpx.Response(200, text="[" * 100_000), "no 'text' in"),
        (httpx.Response(401, text=f"unknown key {KEY}"), r"unknown key \*\*\*"),
    ],
)
def test_what_is_no_answer(response: httpx.Response, says: str) -> None:
    _, handler = answering(response)
    with pytest.raises(ClientError, match=says) as caught:
        client_of(handler).generate("p")
    assert KEY not in str(caught.value)


def test_no_repr_and_no_error_has_the_key() -> None:
    assert KEY not in repr(RouterClient("http://h", KEY))
    with pytest.raises(ValueError, match="no header can carry") as caught:
        RouterClient("http://h", f"{KEY}\n")
    assert KEY not in str(caught.value)


def test_a_password_in_the_url_is_sent_and_not_shown() -> None:
    seen, handler = answering(httpx.Response(500))
    client = RouterClient("http://me:hidden@router.test/v1/generate", transport=httpx.MockTransport(handler))
    with pytest.raises(ClientError):
        client.generate("p")
    assert seen[0].headers["authorization"].startswith("Basic ")
    assert "hidden" not in repr(client)
    assert client.url == "http://router.test"


def test_retries_wait_as_long_as_the_server_asks() -> None:
    busy = httpx.Response(429, json=ERROR, headers={"retry-after": "3"})
    seen, handler = answering(busy, httpx.Response(503, json=ERROR), httpx.Response(200, json={"text": "t"}))
    waits: list[float] = []
    assert client_of(handler, retries=2, sleep=waits.append).generate("p") == {"text": "t"}
    assert waits == [3, 2]
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("status", "retry_after", "asked"), [(429, "1", 3), (429, "61", 1), (500, "1", 1), (400, "1", 1), (503, "soon", 3)]
)
def test_retries_are_bounded(status: int, retry_after: str, asked: int) -> None:
    seen, handler = answering(httpx.Response(status, json=ERROR, headers={"retry-after": retry_after}))
    waits: list[float] = []
    with pytest.raises(ClientError, match="too busy"):
        client_of(handler, retries=2, sleep=waits.append).generate("p")
    assert len(seen) == asked
    assert len(waits) == asked - 1


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_nothing_listens() -> None:
    with RouterClient(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(Unreachable, match="cannot connect"):
        client.health()


def test_a_server_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with RouterClient(url, timeout=0.1) as client, pytest.raises(TimedOut, match=r"/health in 0\.1 s"):
            client.health()


class Trickle(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield b" "


def test_an_answer_that_trickles_for_ever_ends() -> None:
    _, handler = answering(httpx.Response(200, stream=Trickle()))
    with pytest.raises(TimedOut):
        client_of(handler, timeout=0.05).generate("p")


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (httpx.ConnectTimeout("x"), Unreachable, "no answer in 10 s"),
        (httpx.ConnectError("no such host"), Unreachable, "no such host"),
        (httpx.ReadTimeout("x"), TimedOut, "no whole answer"),
        (httpx.WriteTimeout("x"), TimedOut, "no whole answer"),
        (httpx.ReadError(""), ClientError, "broke: ReadError"),
        (httpx.RemoteProtocolError("peer closed"), ClientError, "broke: peer closed"),
        (httpx.DecodingError("not gzip"), ClientError, "broke: not gzip"),
    ],
)
def test_every_error_of_the_transport_is_mapped(error: httpx.RequestError, kind: type[ClientError], says: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(ClientError, match=says) as caught:
        client_of(handler).health()
    assert type(caught.value) is kind
    assert caught.value.status is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"error": "text"},
        {"detail": "x"},
        {"error": {"message": "m"}},
        {"error": {**ERROR["error"], "more": 1}},
        {**ERROR, "more": 1},
        {"error": {**ERROR["error"], "message": None}},
        {"error": {**ERROR["error"], "param": 1}},
        [],
    ],
)
def test_the_error_shape_is_exact(body: object) -> None:
    assert error_message(Reply(400, {}, json.dumps(body).encode(), 0.0)) is None
    assert error_message(Reply(400, {}, json.dumps(ERROR).encode(), 0.0)) == "too busy"


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
@pytest.mark.parametrize("raw", [False, True])
def test_a_stream_goes_on_behind_what_others_take_for_the_end_of_a_line(
    monkeypatch: pytest.MonkeyPatch, sign: str, raw: bool
) -> None:
    said = {"text": f"a{sign}b"}
    text = json.dumps(said, ensure_ascii=False)
    content = (f"data: {text}\n\n".encode() if raw else event(said)) + DONE
    assert raw or len(content.decode().splitlines()) == 4, "nor does another reader break it there"

    async def main() -> list[dict[str, Any]]:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, content=content))
        monkeypatch.setattr(httpx, "AsyncClient", partial(httpx.AsyncClient, transport=transport))
        return [each async for each in RouterClient("http://localhost").stream("/v1/generate", {})]

    assert asyncio.run(main()) == [said]
