import asyncio
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from router_backend.server.middleware.guard import ALWAYS_PUBLIC, Guard
from router_backend.settings import load_settings

KEY, OTHER = "k-alice-1234", "k-bob-5678"
Header = tuple[bytes, bytes]


class Inner:
    """The app behind the guard: says yes to everything and remembers what came through."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            await PlainTextResponse("inside")(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.accept"})


def talk(
    path: str,
    headers: list[Header] | None = None,
    *,
    keys: str | None = f"alice:{KEY},bob:{OTHER}",
    public: str = "",
    method: str = "POST",
    kind: str = "http",
) -> tuple[list[MutableMapping[str, Any]], Inner]:
    """What a server would be told to send for one request, its path decoded as servers decode it."""
    inner = Inner()
    guard = Guard(inner, load_settings(router_api_keys=keys, public_paths=public))
    sent: list[MutableMapping[str, Any]] = []
    scope: Scope = {
        "type": kind,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost"), *(headers or [])],
    }

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent, inner


def status(path: str, *authorization: str | bytes, keys: str | None = f"alice:{KEY},bob:{OTHER}", **rest: Any) -> int:  # noqa: ANN401
    values = [value if isinstance(value, bytes) else value.encode() for value in authorization]
    sent, inner = talk(path, [(b"authorization", value) for value in values], keys=keys, **rest)
    code = int(sent[0]["status"])
    assert (code == 200) == bool(inner.scopes), "only what is let in reaches the app"
    return code


def test_a_known_key_opens() -> None:
    assert status("/v1/generate", f"Bearer {KEY}") == 200
    assert status("/v1/generate", f"Bearer {OTHER}") == 200
    assert status("/anything/else", f"Bearer {KEY}", method="DELETE") == 200


def test_no_key_is_needed_where_none_is_set() -> None:
    for path in ("/v1/generate", "/docs", "//v1/generate"):
        assert status(path, keys=None) == 200
        assert status(path, "Bearer whatever", keys=None) == 200


def test_the_refusal() -> None:
    sent, inner = talk("/v1/generate")
    assert not inner.scopes
    start, body = sent
    headers = dict(start["headers"])
    assert start["status"] == 401
    assert headers[b"www-authenticate"] == b"Bearer"
    assert headers[b"content-type"] == b"application/json"
    assert body["body"] == (
        b'{"error":{"message":"send a known key as Authorization: Bearer KEY",'
        b'"type":"authentication_error","param":null,"code":"invalid_api_key"}}'
    )


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {KEY}",
        f"Token {KEY}",
        KEY,
        f"Bearer{KEY}",
        f"Bearer:{KEY}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Bearer {KEY.upper()}",
        f"Bearer {KEY},{OTHER}",
        f"Bearer {KEY} {OTHER}",
        f"Bearer alice:{KEY}",
        f"Bearer Bearer {KEY}",
        f"Bearer {KEY}\x00",
        "Bearer ключ",
        "Bearer 😀",
        b"Bearer \xff\xfe",
        b"\xff",
        b"Bearer " + b"x" * 20_000,
    ],
)
def test_row_16_anything_else_does_not(authorization: str | bytes) -> None:
    assert status("/v1/generate", authorization) == 401


def test_the_schemes_name_has_no_case_and_blanks_around_a_key_do_not_count() -> None:
    for authorization in (f"bearer {KEY}", f"BEARER {KEY}", f"Bearer  {KEY}", f"Bearer {KEY} "):
        assert status("/v1/generate", authorization) == 200


def test_the_first_of_two_headers_counts() -> None:
    """A proxy in front may look at either one, so the second must not be able to save the first."""
    assert status("/v1/generate", "Bearer wrong", f"Bearer {KEY}") == 401
    assert status("/v1/generate", f"Bearer {KEY}", f"Bearer {KEY}") == 200


def test_a_key_anywhere_else_is_no_key() -> None:
    for name in (b"x-api-key", b"proxy-authorization", b"cookie", b"api-key"):
        sent, inner = talk("/v1/generate", [(name, f"Bearer {KEY}".encode())])
        assert sent[0]["status"] == 401
        assert not inner.scopes


@pytest.mark.parametrize("key", ["schlüssel", "ключ", "密钥密钥", "🔑🔒🗝", "a:b=c/d+e"])
def test_keys_of_any_characters_as_clients_send_them(key: str) -> None:
    assert status("/v1/generate", f"Bearer {key}", keys=f"zoë:{key}") == 200
    assert status("/v1/generate", f"Bearer {key}x", keys=f"zoë:{key}") == 401


def test_row_16_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """In constant time: as many comparisons for the first key as for the last and for none."""
    import hmac

    asked: list[int] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        asked[-1] += 1
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for authorization in (f"Bearer {KEY}", f"Bearer {OTHER}", "Bearer wrong", "Basic x"):
        asked.append(0)
        status("/v1/generate", authorization)
    assert asked == [2, 2, 2, 2]


# Paths


def test_the_public_paths() -> None:
    assert {"/", "/health", "/livez", "/readyz", "/startupz"} == ALWAYS_PUBLIC
    for path in ALWAYS_PUBLIC:
        assert status(path) == 200
        assert status(path, "Bearer wrong") == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/generate",
        "//v1/generate",
        "///health",
        "//health",
        "//",
        "/health/",
        "/health//",
        "/health/../v1/generate",
        "/v1/../health",
        "/v1/../v1/generate",
        "/./health",
        "/health/.",
        "/health;x",
        "/health?x",
        "/health#x",
        "/health%2f",
        "/%2e%2e/health",
        "/Health",
        "/HEALTH",
        "/health\x00",
        "/health ",
        " /health",
        "/health\n",
        "\\health",
        "/healthy",
        "/livez/x",
        "/metrics",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/console",
        "/gradio",
        "/gradio/",
        "/gradio/config",
        "/v1/models",
        "/v1/plan",
        "",
        "health",
        "*",
        "http://host/health",
        "/ｈealth",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_row_16_every_other_path_needs_a_key(path: str, method: str) -> None:
    assert status(path, method=method) == 401
    assert status(path, f"Bearer {KEY}", method=method) == 200


def test_more_public_paths_are_compared_whole_too() -> None:
    public = "/docs, /openapi.json"
    for path in ("/docs", "/openapi.json", "/health"):
        assert status(path, public=public) == 200
    for path in ("/docs/", "/docs/oauth2-redirect", "//docs", "/openapi", "/v1/generate", ""):
        assert status(path, public=public) == 401


def test_a_prefix_of_the_proxy_does_not_make_a_path_public() -> None:
    inner = Inner()
    guard = Guard(inner, load_settings(router_api_keys=f"alice:{KEY}"))
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request"}

    scope: Scope = {"type": "http", "method": "GET", "path": "/v1/generate", "root_path": "/v1/generate", "headers": []}
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == 401
    assert not inner.scopes


def test_a_public_path_of_an_open_server_stays_open() -> None:
    assert status("/health", keys=None) == 200


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/health", 200),
        ("/%68ealth", 200),
        ("/v1/generate", 401),
        ("/v1%2Fgenerate", 401),
        ("/%76%31/generate", 401),
        ("/health%2F..%2Fv1%2Fgenerate", 401),
        ("/health%00", 401),
        ("/health/%2e%2e/v1/generate", 401),
        ("/%2Fv1/generate", 401),
        ("/health%3F", 401),
    ],
)
def test_row_16_encoded_paths(target: str, expected: int) -> None:
    """What the router would take for `/v1/generate` is guarded, whatever it was written like."""

    async def ask(keys: str | None) -> int:
        app = Starlette(
            routes=[
                Route("/health", lambda request: PlainTextResponse("public")),
                Route("/v1/generate", lambda request: PlainTextResponse("secret")),
            ]
        )
        guard = Guard(app, load_settings(router_api_keys=keys))
        # The server decodes the target once; httpx hands it over as it is written here.
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://localhost") as client:
            response = await client.get(httpx.URL("http://localhost", raw_path=target.encode()))
            assert response.text != "secret" or keys is None
            return response.status_code

    assert asyncio.run(ask(f"alice:{KEY}")) == expected
    assert asyncio.run(ask(None)) in (200, 404)


# What is not HTTP


def test_a_websocket_needs_a_key_too() -> None:
    sent, inner = talk("/v1/generate", kind="websocket")
    assert not inner.scopes
    assert "websocket.accept" not in {message["type"] for message in sent}
    sent, inner = talk("/v1/generate", [(b"authorization", f"Bearer {KEY}".encode())], kind="websocket")
    assert [message["type"] for message in sent] == ["websocket.accept"]


def test_the_life_of_the_server_is_none_of_its_business() -> None:
    _, inner = talk("/", kind="lifespan")
    assert [scope["type"] for scope in inner.scopes] == ["lifespan"]
