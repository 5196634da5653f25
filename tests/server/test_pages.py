"""The pages that come with the API, in a real browser, without a net."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.fakes.browser import browser, page, running, server
from tests.fakes.running import Served

__all__ = ["browser", "page", "running", "server"]
pytestmark = pytest.mark.browser


def test_docs_show_the_api_offline(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/docs")
    expect(page.get_by_text("/v1/generate", exact=True)).to_be_visible()
    page.get_by_text("/v1/plan", exact=True).click()
    expect(page.get_by_text("max_new_tokens").first).to_be_visible()


def test_root_leads_to_the_ui_with_its_query(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/?__theme=dark")
    expect(page.get_by_role("heading", name="Router").first).to_be_visible()
    assert page.url.startswith(f"{server.url}/gradio") and page.url.endswith("?__theme=dark")
