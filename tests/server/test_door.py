"""The guard and the door over HTTP: names, heads, browsers, people's keys, limits of a key, drain, reload."""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from router_backend.server.middleware.connection import Limits
from router_backend.settings import load_settings
from tests.fakes.browser import browser, watched
from tests.fakes.running import App, Served, app, echo_model, in_threads, served, until

__all__ = ["browser"]

KEY, OTHER, ADMIN = "k-alice-1234", "k-bob-5678", "k-admin-90"
KEYS = f"alice:{KEY},bob:{OTHER}"
BEARER = {"authorization": f"Bearer {KEY}"}
HTML = {"accept": "text/html,*/*;q=0.8"}


def code_of(response: Any) -> str:  # noqa: ANN401
    return str(response.json()["error"]["code"])


# Names (DNS rebinding)


@pytest.fixture(scope="module")
def unguarded() -> Iterator[App]:
    with app() as running:
        yield running


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:7860", "LOCALHOST", "127.0.0.1:1", "127.0.0.1", "[::1]:7860", "[::1]"]
)
def test_row_16_the_loopback_goes_by_these_names(unguarded: App, host: str) -> None:
    assert unguarded.client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:7860",
        "my.localhost:80",
        "x.localhost",
        ".localhost",
        "10.0.0.7",
        "127.0.0.2:7860",
        "[::2]",
        "[::1]evil.example",
        "localhost:7860:7860",
        "localhost:evil",
        "localhost:",
        "localhost.",
        "",
        "[",
        "[localhost",
        "x",
    ],
)
def test_row_16_a_name_from_elsewhere_does_not_lead_here(unguarded: App, host: str) -> None:
    """A page elsewhere whose name is made to lead to this machine (DNS rebinding) gets nothing."""
    for path in ("/health", "/v1/generate", "/gradio", "/console"):
        response = unguarded.client.get(path, headers={"host": host})
        assert (response.status_code, code_of(response)) == (421, "wrong_host")


def test_names_are_the_operators() -> None:
    with app(allowed_hosts="router.example, other.example:8443") as echo:
        for host, status in {
            "router.example": 200,
            "Router.Example:99": 200,
            "other.example:8443": 200,
            "other.example": 421,
            "evil.example": 421,
            "localhost": 200,
        }.items():
            assert echo.client.get("/health", headers={"host": host}).status_code == status, host


@pytest.mark.parametrize("settings", [{"router_api_keys": KEYS}, {"host": "0.0.0.0"}, {"allowed_hosts": "*"}])
def test_any_name_where_a_key_is_needed_or_the_server_is_public(settings: dict[str, Any]) -> None:
    with app(**settings) as echo:
        assert echo.client.get("/health", headers={"host": "any.example"}).status_code == 200


# Heads


def test_long_urls_and_heads(unguarded: App) -> None:
    get = unguarded.client.get
    response = get("/health?" + "x" * 9000)
    assert (response.status_code, code_of(response)) == (414, "url_too_long")
    response = get("/health", headers={"x-long": "x" * 33_000})
    assert (response.status_code, code_of(response)) == (431, "headers_too_large")
    assert get("/health?" + "x" * 8000, headers={"x-long": "x" * 20_000}).status_code == 200


def test_an_endless_head_is_cut_off() -> None:
    with served() as server, connected(server) as line:
        line.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError, TimeoutError):
            while sent < 2**20:
                line.sendall(b"x-more: " + b"x" * 1000 + b"\r\n")
                sent += 1010
                time.sleep(0.0005)
        assert sent < 2**19


@contextlib.contextmanager
def connected(server: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), 60) as line:
        yield line


def closed_after(line: socket.socket) -> float:
    """The seconds until the server closes it; an error if it does not."""
    start = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while line.recv(4096):
            pass
    return time.monotonic() - start


# Slow ones


@pytest.fixture(scope="module")
def impatient() -> Iterator[Served]:
    model = echo_model(slots=1)
    limits = Limits(header_seconds=0.5, body_seconds=0.5, write_seconds=0.5)
    with served(model, limits=limits, max_body_bytes=2**23) as server:
        yield server


@pytest.mark.parametrize("said", [b"", b"GET /livez HTTP/1.1\r\nHost: loc"])
def test_row_19_a_head_that_does_not_come(impatient: Served, said: bytes) -> None:
    with connected(impatient) as line:
        line.sendall(said)
        assert closed_after(line) > 0.3


def test_row_19_a_second_head_that_does_not_come(impatient: Served) -> None:
    with connected(impatient) as line:
        line.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 200 ")
        line.sendall(b"GET /livez HT")
        assert closed_after(line) > 0.3


def test_row_19_dripping_does_not_help(impatient: Served) -> None:
    with connected(impatient) as line:
        line.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nx-more: ")
        with pytest.raises(ConnectionError):
            for _ in range(1000):  # twenty seconds
                line.sendall(b"x")
                time.sleep(0.02)


def test_row_19_a_body_that_does_not_come(impatient: Served) -> None:
    with connected(impatient) as line:
        line.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        line.sendall(b"Content-Length: 100\r\n\r\n{")
        said = b""
        while b"}}" not in said:
            said += line.recv(4096)
        assert said.startswith(b"HTTP/1.1 408 ") and b'"request_timeout"' in said


def test_row_19_a_reader_that_does_not_read(impatient: Served) -> None:
    """Its stream is broken off, its slot is free for the next one, and the connection is gone."""
    body = b'{"output": "text", "stream": true, "max_new_tokens": 100, "prompt": "%s"}'
    words = b"y " + b"x" * 3_900_000  # one token of four megabytes: more than the sockets' buffers hold
    content = body % words
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(60)
        line.connect(("127.0.0.1", impatient.port))
        line.sendall(
            b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + b"Content-Length: %d\r\n\r\n" % len(content)
            + content
        )
        until(lambda: len(impatient.model.seen) > 0)
        until(lambda: impatient.idle)
        answer = httpx.post(f"{impatient.url}/v1/generate", json={"prompt": "next", "output": "text"}, timeout=60)
        assert answer.json() == {"text": "next"}
        said = b""
        with contextlib.suppress(ConnectionError):
            while piece := line.recv(2**20):
                said = said[-100:] + piece
        assert b"[DONE]" not in said, "it was cut off, not served slowly"


def test_row_19_others_are_unaffected(impatient: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connected(impatient)).sendall(b"POST /v1/gen")
        for _ in range(5):
            assert httpx.get(f"{impatient.url}/livez", timeout=60).status_code == 200


# Browsers


def test_pages_of_elsewhere_may_not_read_unless_they_are_named() -> None:
    ask = {"origin": "https://app.example", "access-control-request-method": "POST"}
    with app(router_api_keys=KEYS) as echo:
        response = echo.client.options("/v1/generate", headers=ask)
        assert response.status_code == 401 and "access-control-allow-origin" not in response.headers
        assert "access-control-allow-origin" not in echo.client.get("/health", headers=ask).headers
    with app(router_api_keys=KEYS, cors_origins="https://app.example") as echo:
        response = echo.client.options(
            "/v1/generate", headers=ask | {"access-control-request-headers": "authorization"}
        )
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in response.headers, "a browser's own keys are not for them"
        answer = echo.generate(output="text", headers=BEARER | {"origin": "https://app.example"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        other = echo.client.options("/v1/generate", headers=ask | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        assert echo.generate().status_code == 401, "CORS is no key"


def test_headers_of_pages_and_answers(unguarded: App) -> None:
    for path in ("/health", "/console", "/docs", "/nothing"):
        assert unguarded.client.get(path).headers["x-content-type-options"] == "nosniff"
    console = unguarded.client.get("/console").headers["content-security-policy"]
    assert "default-src 'none'" in console and "script-src 'sha256-" in console and "unsafe" not in console
    for path in ("/console", "/docs"):
        headers = unguarded.client.get(path).headers
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "same-origin"
    assert "content-security-policy" not in unguarded.client.get("/health").headers


def test_the_policy_of_frames_is_the_operators() -> None:
    with app(frame_ancestors="https://portal.example") as echo:
        policy = echo.client.get("/console").headers["content-security-policy"]
        assert policy.endswith(", frame-ancestors https://portal.example")


# People's keys


@pytest.fixture(scope="module")
def guarded() -> Iterator[App]:
    with app(router_api_keys=KEYS, admin_key=ADMIN, cors_origins="https://app.example,*") as running:
        yield running


def basic(name: str, key: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(f'{name}:{key}'.encode()).decode()}"}


ALICE = basic("alice", KEY)


@pytest.mark.parametrize("path", ["/gradio", "/gradio/", "/console", "/docs", "/nothing"])
def test_a_browser_that_asks_for_a_page_is_asked_for_a_name_and_a_key(guarded: App, path: str) -> None:
    for method in ("GET", "HEAD"):
        response = guarded.client.request(method, path, headers=HTML)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == 'Basic realm="router", charset="UTF-8"'


def test_programs_are_asked_for_a_key_and_open_no_window(guarded: App) -> None:
    """A script of a page, whose browser would ask its user at every 401 with Basic, is a program too."""
    for headers in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
        assert guarded.client.get("/docs", headers=headers).headers["www-authenticate"] == "Bearer"
    for headers in (HTML, {}):
        assert guarded.client.post("/v1/generate", headers=headers).headers["www-authenticate"] == "Bearer"


def test_name_and_key_open_the_pages_and_the_api(guarded: App) -> None:
    for path in ("/console", "/docs", "/openapi.json", "/metrics"):
        assert guarded.client.get(path, headers=HTML | ALICE).status_code == 200
    assert guarded.generate("in", output="text", headers=ALICE).json() == {"text": "in"}, "curl -u alice:KEY"
    assert guarded.generate(output="text", headers={"authorization": ALICE["authorization"].replace("Basic", "bAsIc")})


@pytest.mark.parametrize("name", ["zoë", "用户", "a b"])
def test_names_and_keys_of_any_characters(name: str) -> None:
    with app(router_api_keys=f"{name}:schlüssel:é,other:k-other-1") as echo:
        assert echo.generate(output="text", headers=basic(name, "schlüssel:é")).status_code == 200
        assert echo.generate(output="text", headers=basic(name, "schlüssel")).status_code == 401


@pytest.mark.parametrize(
    "sent",
    [
        *(("alice", OTHER), ("bob", KEY), ("Alice", KEY), ("", KEY), ("alice", ""), ("alice", f"{KEY} ")),
        *(("", ""), ("admin", ADMIN), ("alice:", KEY), ("alice\n", KEY)),
    ],
)
def test_another_name_or_key_does_not(guarded: App, sent: tuple[str, str]) -> None:
    response = guarded.client.get("/console", headers=HTML | basic(*sent))
    assert response.status_code == 401 and response.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize("sent", ["", "=", "x", "YWxpY2U", "YWxpY2U=", "alice:k-alice-1234", "*", "Ym9i Ym9i", "é"])
def test_credentials_that_are_not_well_formed(guarded: App, sent: str) -> None:
    response = guarded.client.get("/console", headers=[(b"authorization", b"Basic " + sent.encode())])
    assert response.status_code == 401


ELSEWHERE: list[dict[str, str]] = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost.evil"},
    {"origin": "http://localhost:99"},
    {"origin": "http://localhost", "sec-fetch-site": "cross-site"},
    {"origin": "http://localhost", "sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "anything", "origin": "http://evil.example"},
]


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_a_page_of_elsewhere_cannot_use_the_browsers_key(guarded: App, headers: dict[str, str]) -> None:
    """Browsers send it with whatever a page asks for. `*` in CORS_ORIGINS does not change that."""
    for path in ("/v1/generate", "/gradio/gradio_api/queue/join", "/admin/reload"):
        response = guarded.client.post(path, json={}, headers=ALICE | headers)
        assert (response.status_code, code_of(response)) == (403, "forbidden")
    assert guarded.generate(output="text", headers=BEARER | headers).status_code == 200, "which no browser sends itself"
    assert guarded.client.get("/console", headers=ALICE | HTML | headers).status_code == 200, "a link leads here"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost"},
        {"origin": "http://LOCALHOST"},
        {"origin": "https://localhost"},
        {"origin": "https://public.example", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"origin": "https://app.example", "sec-fetch-site": "cross-site"},
        {"origin": "https://app.example"},
    ],
)
def test_pages_of_this_server_and_of_named_origins_can(guarded: App, headers: dict[str, str]) -> None:
    assert guarded.generate(output="text", headers=ALICE | headers).status_code == 200


@pytest.mark.browser
def test_the_pages_work_in_a_browser_with_a_key(browser: Browser) -> None:
    """The console under its strict policy, Gradio with all its paths and the docs, behind one name and key."""
    with served(ui=True, router_api_keys=KEYS) as server:
        httpx.get(f"{server.url}/gradio/", headers=BEARER, timeout=60).raise_for_status()  # it takes long to start
        with watched(browser, 1280, 900, http_credentials={"username": "alice", "password": KEY}) as page:
            page.set_default_timeout(60_000)
            page.goto(f"{server.url}/gradio")
            page.locator("#prompt textarea").fill("what to do")
            page.locator("#generate").click()
            expect(page.locator("#json, #plan").first).to_contain_text("/general-search", timeout=60_000)
            page.goto(f"{server.url}/console")
            page.locator("#prompt").fill("one more")
            page.locator("#send").click()
            expect(page.locator("#state")).to_contain_text("Answered")
            page.goto(f"{server.url}/docs")
            expect(page.get_by_text("/v1/generate", exact=True)).to_be_visible()


# Limits of a key


def test_each_key_has_its_own_minute() -> None:
    with app(router_api_keys=KEYS, key_requests_per_minute=2) as echo:

        def ask(key: str) -> Any:  # noqa: ANN401
            return echo.generate(output="text", headers={"authorization": f"Bearer {key}"})

        assert [ask(KEY).status_code for _ in range(3)] == [200, 200, 429]
        refused = ask(KEY)
        assert code_of(refused) == "rate_limit_exceeded" and 25 <= int(refused.headers["retry-after"]) <= 31
        assert ask(OTHER).status_code == 200


def test_each_key_has_its_own_share_at_once() -> None:
    model, free, refused = echo_model(slots=4), threading.Event(), list[int]()
    with served(model, router_api_keys=KEYS, key_concurrency=2) as server:
        model.stuck = free

        def ask(index: int) -> int:
            if index == 6:  # lets the others go once all have been heard
                try:
                    until(lambda: len(refused) == 2 and len(model.active) == 4, 30)
                finally:
                    free.set()
                return 0
            headers = {"authorization": f"Bearer {KEY if index < 4 else OTHER}"}
            body = {"prompt": "a b c d e f g h", "output": "text"}
            code = httpx.post(f"{server.url}/v1/generate", json=body, headers=headers, timeout=60).status_code
            if code == 429:
                refused.append(index)
            return code

        codes = in_threads(7, ask)
        assert sorted(codes[:4]) == [200, 200, 429, 429] and codes[4:6] == [200, 200]


# Reload


def test_reload_needs_the_admin_key(guarded: App) -> None:
    for headers in ({}, BEARER, ALICE, {"authorization": f"Bearer {ADMIN}x"}):
        assert guarded.client.post("/admin/reload", headers=headers).status_code in (401, 403)


def test_no_reload_without_an_admin_key(unguarded: App) -> None:
    assert unguarded.client.post("/admin/reload").status_code == 404


def test_the_admin_key_is_no_other_key() -> None:
    from router_backend.errors import SettingsError

    with pytest.raises(SettingsError, match="ADMIN_KEY must not be one of ROUTER_API_KEYS") as caught:
        load_settings(router_api_keys=f"alice:{ADMIN}", admin_key=ADMIN)
    assert ADMIN not in caught.value.message


def test_one_key_only_for_the_admin() -> None:
    """With no other key set, all is open but the reload."""
    with app(admin_key=ADMIN) as echo:
        assert echo.generate(output="text").status_code == 200
        assert echo.client.post("/admin/reload").status_code == 403


# Drain


def test_row_23_while_it_drains() -> None:
    model = echo_model(slots=2, seconds_per_token=0.02)
    with served(model, drain_timeout=1000) as server, connected(server) as slow_body:
        slow_body.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        slow_body.sendall(b"Content-Length: 33\r\n\r\n")
        until(lambda: server.service._accepted == 1)
        answers: list[httpx.Response] = []
        ask = lambda: answers.append(  # noqa: E731
            httpx.post(f"{server.url}/v1/generate", json={"prompt": "w " * 40, "output": "text"}, timeout=60)
        )
        running = threading.Thread(target=ask)
        running.start()
        until(lambda: len(model.active) == 1)
        drained = threading.Event()

        async def drain() -> None:
            await server.service.drain()
            drained.set()

        server.run(drain())
        until(lambda: server.service.is_stopping)
        assert httpx.get(f"{server.url}/livez").status_code == 200
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        refused = httpx.post(f"{server.url}/v1/generate", json={"prompt": "new", "output": "text"})
        assert (refused.status_code, code_of(refused)) == (503, "not_ready")
        assert refused.headers["connection"] == "close" and int(refused.headers["retry-after"]) >= 1
        slow_body.sendall(b'{"prompt": "x", "output": "text"}')
        assert b"200 OK" in slow_body.recv(4096)
        running.join(60)
        assert [each.status_code for each in answers] == [200]
        assert drained.wait(60)
        assert [request.prompt.split()[0] for request in model.seen].count("new") == 0


def test_console_script_matches_its_policy(unguarded: App) -> None:
    """A changed script without its hash would be a dead page; the hash is made of the page itself."""
    response = unguarded.client.get("/console")
    assert len(re.findall(r"'sha256-", response.headers["content-security-policy"])) == 2
