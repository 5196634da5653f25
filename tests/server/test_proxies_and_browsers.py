"""HTTP as proxies, load balancers and the SDKs of browsers use it: a prefix, HEAD, preflights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from router_backend.errors import SettingsError
from router_backend.settings import load_settings
from tests.fakes.browser import browser, watched
from tests.fakes.proxy import proxy
from tests.fakes.running import App, app, served

__all__ = ["browser"]

KEY = "k-alice-1234"


@pytest.fixture(scope="module")
def echo() -> Iterator[App]:
    with app() as running:
        yield running


# Preflights

OPENAI_JS = (
    "authorization,content-type,x-stainless-arch,x-stainless-helper-method,x-stainless-lang,x-stainless-os,"
    "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,"
    "x-stainless-timeout,openai-organization,idempotency-key"
)


@pytest.mark.parametrize("wanted", [OPENAI_JS, "authorization,user-agent,x-a-b-c", "traceparent", "Authorization", ""])
@pytest.mark.parametrize("origins", ["https://app.example", "https://other.example,https://app.example", "*"])
def test_preflights_of_the_sdks_of_browsers(wanted: str, origins: str) -> None:
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    with app(router_api_keys=f"alice:{KEY}", cors_origins=origins) as echo:
        for path in ("/v1/chat/completions", "/v1/plan", "/v1/models"):
            response = echo.client.options(path, headers=asked | {"access-control-request-headers": wanted})
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] in ("*", "https://app.example")
            assert response.headers.get("access-control-allow-headers", "") == wanted
            for method in ("GET", "HEAD"):  # with a key of its own, a HEAD is asked for too
                also = echo.client.options(path, headers=asked | {"access-control-request-method": method})
                assert (also.status_code, method in also.headers["access-control-allow-methods"]) == (200, True)
            other = echo.client.options(path, headers=asked | {"origin": "https://evil.example"})
            assert ("access-control-allow-origin" in other.headers) == (origins == "*")


# HEAD


GETS = ["/health", "/livez", "/readyz", "/startupz", "/metrics", "/v1/models", "/v1/models/router", "/console", "/docs"]


@pytest.mark.parametrize("path", [*GETS, "/openapi.json", "/", "/v1/models/nothing", "/nothing", "/v1/plan", "/docs/"])
def test_head_is_get_without_the_body(echo: App, path: str) -> None:
    get, head = echo.client.get(path), echo.client.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    for name in ("content-type", "location", "www-authenticate", "content-security-policy"):
        assert head.headers.get(name) == get.headers.get(name)
    if path not in ("/metrics", "/livez", "/readyz", "/startupz"):  # their figures change meanwhile
        assert head.headers.get("content-length") == get.headers.get("content-length")


def test_every_get_of_the_api_answers_head(echo: App) -> None:
    paths = echo.client.get("/openapi.json").json()["paths"]
    asked = [path for path, methods in paths.items() if "get" in methods and "{" not in path]
    assert len(asked) >= 6
    for path in asked:
        assert echo.client.head(path).status_code == echo.client.get(path).status_code == 200


def test_head_is_counted_as_head_and_by_its_route(echo: App) -> None:
    echo.client.head("/v1/models/router")
    labels = {"method": "HEAD", "route": "/v1/models/{model:path}", "status": "200"}
    assert echo.service.metrics.registry.get_sample_value("router_http_requests_total", labels)


def test_head_needs_a_key_where_get_does() -> None:
    with app(router_api_keys=f"alice:{KEY}") as echo:
        assert echo.client.head("/v1/models").status_code == 401
        assert echo.client.head("/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        assert echo.client.head("/health").status_code == 200


def test_head_of_the_ui_and_of_an_endless_stream() -> None:
    with served(ui=True) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        for path in ("/gradio/", "/gradio/config", "/health"):
            assert client.head(path).status_code == client.get(path).status_code == 200, path
        # An event stream that a GET would hold open.
        answer = client.head("/gradio/gradio_api/heartbeat/x")
        assert answer.headers["content-type"].startswith("text/event-stream") and answer.content == b""
        assert client.get("/livez").status_code == 200, "the connection goes on"


# A prefix


@pytest.mark.parametrize("keep_prefix", [False, True], ids=["taken off", "handed on"])
def test_behind_a_proxy_that_shows_it_below_a_path(keep_prefix: bool) -> None:
    with (
        served(root_path="/router/", ui=True) as server,
        proxy(server.url, "/router", keep_prefix=keep_prefix) as url,
        httpx.Client(timeout=60) as client,
    ):
        host = url.removesuffix("/router")
        moved = client.get(f"{url}/?__theme=dark")
        assert (moved.status_code, moved.headers["location"]) == (307, "/router/gradio?__theme=dark")
        moved = client.get(host + moved.headers["location"])
        assert (moved.status_code, moved.headers["location"]) == (307, "/router/gradio/?__theme=dark")
        assert client.get(host + moved.headers["location"]).status_code == 200
        assert client.get(f"{url}/gradio/config").json()["root"] == f"{url}/gradio"
        docs = client.get(f"{url}/docs").text
        assert "/router/openapi.json" in docs and "/router/static-offline-docs/" in docs
        assert client.get(f"{url}/docs/").headers["location"] == f"{url}/docs"
        assert client.get(f"{url}/openapi.json").json()["servers"] == [{"url": "/router"}]
        assert client.get(f"{url}/health").json()["status"] == "ok"
        body = {"prompt": "a b c", "output": "text"}
        assert client.post(f"{url}/v1/generate", json=body).json() == {"text": "a b c"}
        with client.stream("POST", f"{url}/v1/generate", json={**body, "stream": True}) as answer:
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert lines[-1] == "[DONE]" and "".join(json.loads(line)["text"] for line in lines[:-1]) == "a b c"
        metrics = client.get(f"{url}/metrics").text
        assert 'route="/v1/generate"' in metrics and 'route="/gradio"' in metrics and "/router" not in metrics


def test_a_prefix_opens_nothing_and_hides_nothing() -> None:
    with app(root_path="/router", router_api_keys=f"alice:{KEY}", public_paths="/console") as echo:
        for path in ("/health", "/router/health", "/router/console", "/console", "/", "/router/"):
            assert echo.client.get(path).status_code in (200, 307), path
        for path in ("/docs", "/router/docs", "/router", "/router/router/health", "/routerhealth", "/router//health"):
            assert echo.client.get(path).status_code == 401, path
        bearer = {"authorization": f"Bearer {KEY}"}
        assert echo.client.get("/router/router/health", headers=bearer).status_code == 404
        assert echo.client.get("/router/v1/models", headers=bearer).status_code == 200


def test_the_proxy_of_the_docs_is_this_one() -> None:
    """`docs/nginx.conf` was run with nginx; its location, target and prefix are those that the tests above use."""
    page = (Path(__file__).parents[2] / "docs" / "nginx.conf").read_text("utf-8")
    assert "location /router/ {" in page and "ROOT_PATH=/router" in page
    assert re.search(r"proxy_pass http://127\.0\.0\.1:7860/;", page), "with the slash that takes the prefix off"
    for line in ("proxy_set_header Host $http_host;", "proxy_set_header X-Forwarded-Proto $scheme;"):
        assert line in page
    seconds = re.search(r"proxy_read_timeout (\d+)s;", page)
    assert seconds and int(seconds[1]) > load_settings().request_timeout
    size = re.search(r"client_max_body_size (\d+)m;", page)
    assert size and int(size[1]) * 2**20 >= load_settings().max_body_bytes


def test_without_the_setting_no_header_makes_a_prefix(echo: App) -> None:
    """Whoever can write a header could else lead the UI's scripts elsewhere."""
    told = {"x-forwarded-prefix": "/evil", "x-script-name": "/evil", "forwarded": "for=x;path=/evil"}
    assert echo.client.get("/", headers=told).headers["location"] == "/gradio"
    assert "/evil" not in echo.client.get("/docs", headers=told).text
    assert echo.client.get("/router/health").status_code == 404


@pytest.mark.parametrize(
    "wrong", ["router", "/a b", "//evil.example", "/..", "/a/../b", "/a?b", "http://x/y", "/gradio", "/v1/x", "/docs/"]
)
def test_a_prefix_that_is_none(wrong: str) -> None:
    with pytest.raises(SettingsError, match="ROOT_PATH"):
        load_settings(root_path=wrong)


@pytest.mark.parametrize(("given", "kept"), [("/", ""), ("/router/", "/router"), ("/a/b-c.d_e~f", "/a/b-c.d_e~f")])
def test_a_prefix_may_end_with_a_slash(given: str, kept: str) -> None:
    assert load_settings(root_path=given).root_path == kept


@pytest.mark.browser
def test_the_pages_work_below_a_path_with_a_key(browser: Browser) -> None:
    """Redirects, Gradio with all its files and its queue, the console and the docs, as a visitor meets them."""
    with (
        served(root_path="/router", ui=True, router_api_keys=f"alice:{KEY}") as server,
        proxy(server.url, "/router") as url,
        watched(browser, 1280, 900, http_credentials={"username": "alice", "password": KEY}) as page,
    ):
        page.set_default_timeout(60_000)
        page.goto(f"{url}/")
        page.locator("#prompt textarea").fill("what to do")
        page.locator("#generate").click()
        expect(page.locator("#json, #plan").first).to_contain_text("/general-search", timeout=60_000)
        assert page.url.startswith(f"{url}/gradio")
        page.goto(f"{url}/console")
        page.locator("#prompt").fill("one more")
        page.locator("#send").click()
        expect(page.locator("#state")).to_contain_text("Answered")
        page.goto(f"{url}/docs")
        expect(page.get_by_text("/v1/generate", exact=True)).to_be_visible()
