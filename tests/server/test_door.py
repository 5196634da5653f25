"""The guard and the door over HTTP: names, heads, browsers, sessions, limits of a key, drain, reload."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Page, expect

from router_backend.server.middleware import session
from router_backend.settings import load_settings
from tests.fakes.browser import browser, page
from tests.fakes.running import App, Served, app, echo_model, in_threads, served, until

__all__ = ["browser", "page"]

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
    "host", ["localhost", "localhost:7860", "LOCALHOST", "127.0.0.1:1", "[::1]:7860", "10.0.0.7", "my.localhost:80"]
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
    with served(model, header_timeout=0.5, body_timeout=0.5, write_timeout=0.5, max_body_bytes=2**23) as server:
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
        assert "access-control-allow-credentials" not in response.headers, "a session is no business of theirs"
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


# Sessions


@pytest.fixture(scope="module")
def guarded() -> Iterator[App]:
    with app(router_api_keys=KEYS, admin_key=ADMIN) as running:
        yield running


@pytest.fixture
def visitor(guarded: App) -> Iterator[App]:
    """Somebody without a session."""
    guarded.client.cookies.clear()
    yield guarded
    guarded.client.cookies.clear()


def log_in(visitor: App, key: str, where: str = "/console") -> Any:  # noqa: ANN401
    content = f"key={quote(key)}&where={quote(where)}"
    return visitor.client.post("/login", content=content, headers={"content-type": "application/x-www-form-urlencoded"})


def test_a_browser_is_shown_a_form_and_programs_are_not(visitor: App) -> None:
    for path in ("/console", "/docs", "/nothing"):
        response = visitor.client.get(path, headers=HTML)
        assert response.status_code == 401 and f'name="where" value="{path}"' in response.text
        assert visitor.client.get(path).headers["content-type"] == "application/json"
    assert visitor.client.post("/v1/generate", headers=HTML).headers["content-type"] == "application/json"


def test_a_session_opens_the_pages(visitor: App) -> None:
    response = log_in(visitor, KEY)
    assert (response.status_code, response.headers["location"]) == (303, "/console")
    cookie = response.headers["set-cookie"]
    assert KEY not in cookie
    for word in ("HttpOnly", "SameSite=lax", "Path=/", "Max-Age=43200"):
        assert word in cookie
    assert visitor.client.get("/console", headers=HTML).status_code == 200
    answer = visitor.generate("in", output="text", headers={"origin": "http://localhost"})
    assert answer.json() == {"text": "in"}


def test_a_session_does_not_count_for_pages_of_elsewhere(visitor: App) -> None:
    log_in(visitor, KEY)
    for headers in ({}, {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://localhost.evil"}):
        response = visitor.generate(output="text", headers=headers)
        assert (response.status_code, code_of(response)) == (403, "forbidden")


def test_a_wrong_key_shows_the_form_again(visitor: App) -> None:
    for key in ("wrong", "", ADMIN, f"alice:{KEY}"):
        response = log_in(visitor, key)
        assert response.status_code == 401 and "set-cookie" not in response.headers
        assert 'role="alert" >' in response.text and 'value="/console"' in response.text


@pytest.mark.parametrize(
    "where",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "\\\\evil",
        "",
        "/a\r\nx: y",
        "javascript:alert(1)",
        "/ü",
    ],
)
def test_the_form_leads_nowhere_else(visitor: App, where: str) -> None:
    assert log_in(visitor, KEY, where).headers["location"] == "/"
    page = visitor.client.get("/%22%3E%3Cscript%3E", headers=HTML | {"cookie": ""}).text
    assert "<script>" not in page


@pytest.mark.parametrize(
    "change", [lambda s: s[:-1], lambda s: s + "0", lambda s: "eA==." + s, lambda s: "", lambda s: "é"]
)
def test_a_forged_session_is_none(visitor: App, change: Any) -> None:  # noqa: ANN401
    good = log_in(visitor, KEY).cookies[session.COOKIE]
    visitor.client.cookies.clear()
    raw = change(good).encode("latin-1")
    response = visitor.client.get("/console", headers=[(b"cookie", session.COOKIE.encode() + b"=" + raw)])
    assert response.status_code == 401


def test_a_session_ends() -> None:
    digests = {"zoë": b"x" * 32}
    good = session.issue("zoë", digests["zoë"])
    assert session.holder(good, digests) == "zoë"
    assert session.holder(good, {"zoë": b"y" * 32}) is None, "with its key"
    assert session.holder(good, {}) is None
    old = session.issue("zoë", digests["zoë"], now=time.time() - session.SECONDS - 1)
    assert session.holder(old, digests) is None
    name, until_, _ = good.split(".")
    assert session.holder(f"{name}.{int(until_) + 9999}.{good.rpartition('.')[2]}", digests) is None


def test_an_endless_form_is_refused(visitor: App) -> None:
    response = visitor.client.post("/login", content="key=" + "x" * 9000)
    assert response.status_code == 413


def test_no_form_where_no_key_is_needed(unguarded: App) -> None:
    assert unguarded.client.get("/login").status_code == 404


@pytest.mark.browser
def test_the_pages_work_in_a_browser_with_a_key(page: Page) -> None:
    """The console under its strict policy, and Gradio with all its paths, behind one form."""
    with served(ui=True, router_api_keys=KEYS) as server:
        httpx.get(f"{server.url}/gradio/", headers=BEARER, timeout=60).raise_for_status()  # it takes long to start
        page.set_default_timeout(60_000)
        page.goto(f"{server.url}/gradio")
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Open").click()
        page.locator("#prompt textarea").fill("what to do")
        page.locator("#generate").click()
        expect(page.locator("#json, #plan").first).to_contain_text("/general-search", timeout=60_000)
        page.goto(f"{server.url}/console")
        page.locator("#prompt").fill("one more")
        page.locator("#send").click()
        expect(page.locator("#state")).to_contain_text("Answered")


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


def test_reload_needs_the_admin_key(visitor: App) -> None:
    for headers in ({}, BEARER, {"authorization": f"Bearer {ADMIN}x"}):
        assert visitor.client.post("/admin/reload", headers=headers).status_code in (401, 403)
    log_in(visitor, KEY)
    assert visitor.client.post("/admin/reload", headers={"origin": "http://localhost"}).status_code == 403


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
