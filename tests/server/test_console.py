"""The console: one file, by hand and by keyboard."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from router_backend.server.pages import CONSOLE
from tests.fakes.browser import browser, overflow, page, phone, running, server
from tests.fakes.running import Served, until

__all__ = ["browser", "page", "phone", "running", "server"]


def test_is_one_file_without_outside_assets_and_writes_answers_as_text_only() -> None:
    source = CONSOLE.read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", source) == ["data:,", "gradio", "docs", "health"]
    assert not re.search(r"https?://|@import|url\(|innerHTML|insertAdjacentHTML|document\.write", source)
    assert not re.search(r"localStorage|sessionStorage|document\.cookie", source)


@pytest.mark.browser
def test_sends_from_the_keyboard_and_shows_the_plan(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/console")
    expect(page.get_by_role("status").first).to_have_text("ok · echo · native · echo")
    expect(page.get_by_label("Prompt")).to_be_focused()
    page.keyboard.type("Bound the spectral gap")
    page.keyboard.press("Control+Enter")
    answer = page.get_by_label("Answer")
    expect(answer).to_contain_text('{\n  "route_plan": [\n')
    facts = page.locator("#facts")
    for fact in ("Seconds", r"Prompt\d+ tokens", r"Completion\d+ tokens of 600", "Clipped", "Finishstop"):
        expect(facts).to_have_text(re.compile(fact))
    assert page.locator("#error").is_hidden()


@pytest.mark.browser
def test_sends_the_fields_that_are_filled_in_and_leaves_the_rest_to_the_server(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/console")
    page.get_by_label("Prompt").fill("<b>one</b> two three")
    page.get_by_label("Budget").fill("3")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Output").select_option("text")
    page.get_by_label("API key").fill("secret")
    with page.expect_request("**/v1/generate") as sent:
        page.get_by_role("button", name="Send").click()
    assert sent.value.post_data_json == {
        "prompt": "<b>one</b> two three",
        "output": "text",
        "details": True,
        "max_new_tokens": 3,
        "temperature": 0,
    }
    assert sent.value.headers["authorization"] == "Bearer secret"
    expect(page.get_by_label("Answer")).to_have_text("<b>")
    expect(page.locator("#facts")).to_contain_text("length")


@pytest.mark.browser
def test_escape_cancels_and_frees_the_slot(page: Page, server: Served) -> None:
    server.model.seconds_per_token = 0.2
    page.goto(f"{server.url}/console")
    page.get_by_label("Prompt").fill("word " * 400)
    page.get_by_label("Output").select_option("text")
    page.get_by_role("button", name="Send").click()
    until(lambda: bool(server.model.active))
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.keyboard.press("Escape")
    until(lambda: server.engine.free_slots == 4, 30)  # a minute before it would have ended
    expect(page.locator("#state")).to_have_text(re.compile("Cancelled after"))
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


@pytest.mark.browser
def test_shows_an_error_with_its_request_id(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/console")
    page.get_by_label("Prompt").fill("anything")
    page.get_by_label("Budget").fill("5000")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_have_text(re.compile(r"context of 4096 tokens.*x-request-id: req-", re.DOTALL))
    expect(page.locator("#state")).to_contain_text("status 400")


@pytest.mark.browser
def test_says_so_when_the_server_is_gone(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/console")
    page.route("**/v1/generate", lambda route: route.abort("connectionrefused"))
    page.get_by_label("Prompt").fill("anything")
    page.keyboard.press("Meta+Enter")
    expect(page.get_by_role("alert")).to_have_text("The server cannot be reached. Is it running?")


@pytest.mark.browser
def test_fits_a_phone(phone: Page, server: Served) -> None:
    phone.goto(f"{server.url}/console")
    assert overflow(phone) == 0
    phone.get_by_label("Prompt").fill("x" * 300)
    phone.get_by_label("Output").select_option("text")
    phone.get_by_role("button", name="Send").click()
    expect(phone.get_by_label("Answer")).to_have_text("x" * 300)
    assert overflow(phone) == 0
