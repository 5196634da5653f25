"""A real browser, and a server to look at with it, for the tests of the pages."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Playwright, Request, expect, sync_playwright

from router_backend.engines.echo import EchoModel
from tests.fakes.running import Served, says_plans, served

LOCAL = ("http://127.0.0.1:", "data:", "blob:", "about:")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


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
    expect.set_options(timeout=60_000)  # for what would never come: a busy machine takes its time
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with served(EchoModel(), ui=True, drain_timeout=2) as server:
        httpx.get(f"{server.url}/gradio/config", timeout=60).raise_for_status()  # the page is there, not its forerunner
        yield server


@pytest.fixture
def server(running: Served) -> Served:
    """The module's server with a model that says the prompt, or a plan of always the same words."""
    running.model.script = says_plans
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
def watched(browser: Browser, width: int, height: int, **options: Any) -> Iterator[Page]:  # noqa: ANN401 - Playwright's
    elsewhere: list[str] = []
    failures: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith(LOCAL):
            elsewhere.append(request.url)

    with browser.new_context(viewport={"width": width, "height": height}, **options) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
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
