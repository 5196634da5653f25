"""A real browser, and a real server with the echo engine, for the tests of the pages."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, Playwright, Request, sync_playwright

from router_backend.engines.base import Engine
from router_backend.engines.echo import EchoModel
from router_backend.engines.threaded import ThreadedEngine
from router_backend.ladder import Attempt, Candidate, Loaded, Rung
from router_backend.plan.write import PlanWriter
from router_backend.server.app import create_app
from router_backend.service import GenerationService
from router_backend.settings import Settings, load_settings
from router_backend.types import GenerateRequest

LOCAL = ("http://127.0.0.1:", "data:", "blob:", "about:")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class EchoServer:
    """A running server and the parts of it that tests look at."""

    url: str
    model: EchoModel
    engine: ThreadedEngine
    service: GenerationService


def echo_service(model: EchoModel, settings: Settings) -> tuple[GenerationService, ThreadedEngine]:
    """A service over an echo model, not started."""
    engine = ThreadedEngine(model, PlanWriter(model, settings.tools))

    def load(report: Callable[[Attempt], None]) -> Loaded[Engine]:
        return Loaded(engine, Rung(Candidate("echo", "echo"), "native"), ())

    return GenerationService(settings, load), engine


def plan_words(request: GenerateRequest, words: str = "say how it is done and check it") -> str:
    """A script for the echo model: one of the choices, or the same words for every text of a plan."""
    rules = request.grammar or ""
    if "CHOICE:" in rules:
        options = [json.loads(each) for each in re.findall(r'"(?:[^"\\]|\\.)*"', rules.partition("CHOICE:")[2])]
        return str(options[len(request.prefix) % len(options)])
    if "TAG:" in rules:
        return f'tag-{len(request.prefix)}",'
    lead = " " if rules.startswith('start: " "') else ""
    return f'{lead}{words}",'


@contextlib.contextmanager
def echo_server() -> Iterator[EchoServer]:
    """The whole app on a free port, until the block ends."""
    model = EchoModel()
    service, engine = echo_service(model, load_settings(drain_timeout=2))
    config = uvicorn.Config(create_app(service), ws="none", log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
        thread.start()
        try:
            until(lambda: server.started and service.health().status == "ok")
            yield EchoServer(f"http://127.0.0.1:{listener.getsockname()[1]}", model, engine, service)
        finally:
            server.should_exit = True
            thread.join(15)
            gc.collect()  # what the server's libraries left open is told of here, not in another module's test
    assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 10) -> float:
    """Waits for a condition, and returns the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"still not so after {seconds} seconds"
        time.sleep(0.01)
    return time.monotonic() - start


def find_chromium() -> str:
    """The browser's path: CHROMIUM, or the first known name on PATH."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        pytest.fail("no Chromium: install chromium, or set CHROMIUM to its path", pytrace=False)
    return path


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=find_chromium(), args=list(_FLAGS))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running() -> Iterator[EchoServer]:
    with echo_server() as server:
        yield server


@pytest.fixture
def server(running: EchoServer) -> EchoServer:
    """The module's server with a model that says the prompt, or a plan of always the same words."""
    running.model.script = lambda request: plan_words(request) if request.grammar else request.prompt
    running.model.fail_after = None
    running.model.seconds_per_token = 0.0
    running.model.seen.clear()
    return running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page at desk size. At its end: nothing was asked from another host, and no script failed."""
    with watched(browser, 1280, 900) as page:
        yield page


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    """As `page`, at the size of a phone."""
    with watched(browser, 390, 844) as page:
        yield page


@contextlib.contextmanager
def watched(browser: Browser, width: int, height: int) -> Iterator[Page]:
    elsewhere: list[str] = []
    failures: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith(LOCAL):
            elsewhere.append(request.url)

    with browser.new_context(viewport={"width": width, "height": height}) as context:
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("request", note)
        page.on("pageerror", lambda error: failures.append(str(error)))
        yield page
    assert elsewhere == []
    assert failures == []


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert isinstance(wide, int)
    return wide
