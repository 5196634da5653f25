"""The Gradio UI: how a plan is shown, how it is mounted, and the page in a real browser."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser

import httpx
import pytest
from fastapi import FastAPI
from playwright.sync_api import Locator, Page, expect

from router_backend.engines.echo import EchoModel
from router_backend.plan.prompt import INSTRUCTIONS, router_prompt
from router_backend.server.gradio.mount import LazyUI, attach
from router_backend.server.native import details
from router_backend.server.operations import health_body
from router_backend.settings import load_settings
from router_backend.types import Chunk, LentGpu, ModelInfo, Timings
from router_backend.ui.backend import LocalBackend
from router_backend.ui.plan_view import parts, render_plan
from tests.fakes.browser import browser, overflow, page, phone, running, server
from tests.fakes.running import Served, echo_model, echo_service, plan_words, until

__all__ = ["browser", "page", "phone", "running", "server"]

PLAN: dict[str, object] = {
    "route_plan": ['/general-search(query="spectral gap", mode=rag)', "/math(prove it (fully))"],
    "route_rationale": "Search first.",
    "expected_artifacts": ["a proof"],
    "thinking_outline": ["1. look", "2. think"],
    "handoff_plan": "/general-search -> /math -> router QA",
    "todo_list": ["- [ ] /general-search: find", "- [x] /math: prove", "- [ ] router QA: approve"],
    "difficulty": "advanced",
    "tags": ["graph-theory"],
    "acceptance_criteria": ["- it holds"],
    "metrics": {"primary": ["error"], "secondary": ["time"], "primary_guidance": "small"},
}


class _Text(HTMLParser):
    """The text of a page, with the marks that tests look for."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def read(html: str) -> _Text:
    parser = _Text()
    parser.feed(html)
    return parser


def test_shows_every_text_of_a_plan() -> None:
    text = " ".join(read(render_plan(PLAN, ())).said)
    for part in ('query="spectral gap", mode=rag', "prove it (fully)", "Search first.", "a proof", "1.", "think"):
        assert part in text
    for part in ("/general-search -> /math -> router QA", "approve", "advanced", "graph-theory", "it holds", "small"):
        assert part in text
    assert "primary guidance" in text
    assert "clipped" not in text
    assert "[ ]" not in text


def test_escapes_every_text() -> None:
    evil = "<script>alert(1)</script>\"'&"

    def spoil(value: object) -> object:
        if isinstance(value, str):
            return evil + value + evil
        if isinstance(value, list):
            return [spoil(each) for each in value]
        return {f"{evil}{key}": spoil(each) for key, each in value.items()} if isinstance(value, dict) else value

    spoilt = {key: spoil(value) for key, value in PLAN.items()}
    calls = {**PLAN, "route_plan": [f"/math({evil})"], "todo_list": [f"- [ ] /math: {evil}"], "tags": evil}
    for plan in (spoilt, calls, {"metrics": evil, "route_plan": {evil: evil}}):
        shown = render_plan(plan, (evil,), findings=(evil,))
        assert "script" not in read(shown).tags
        assert evil in "".join(read(shown).said)


def test_marks_what_was_clipped_where_it_stands() -> None:
    names = ("todo_list[1]", "route_rationale", "route_plan[0]", "metrics.primary[0]", "metrics.primary_guidance")
    shown = render_plan(PLAN, names)
    assert shown.count("rp-clip") == len(names)
    clip = '<span class="rp-clip"'
    for before in ("Why this route", "mode=rag)"[:-1], "prove", "error", "primary guidance"):
        assert re.search(rf"{re.escape(before)} {clip}", shown), before


@pytest.mark.parametrize(
    "plan",
    [
        {},
        dict.fromkeys(PLAN),
        dict.fromkeys(PLAN, 7),
        {key: [{"a": 1}, None] for key in PLAN},
        {"metrics": {"primary": {"a": ["b"]}}},
    ],
)
def test_shows_what_is_there_of_a_broken_plan(plan: dict[str, object]) -> None:
    assert render_plan(plan, ("route_plan[3]", "nonsense")).startswith('<div class="rp">')


def in_a_loop(work: Callable[[], Awaitable[None]]) -> None:
    """Runs a coroutine in another thread: this one may have the browser's loop."""

    async def run() -> None:
        await work()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, run()).result()


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", timeout=30)


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import router_backend.server.app, sys; sys.exit('gradio' in sys.modules)"

    async def check() -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        assert await process.wait() == 0

    in_a_loop(check)


def test_starts_once_leads_to_its_folder_and_leaves_no_task() -> None:
    async def check() -> None:
        service, engine = echo_service(EchoModel(), load_settings())
        app = FastAPI(redirect_slashes=False)
        ui = LazyUI(LocalBackend(service))
        attach(app, ui)
        async with client(app) as http:
            moved = await http.get("/gradio?__theme=dark")
            assert (moved.status_code, moved.headers["location"]) == (307, "/gradio/?__theme=dark")
            first, second = await asyncio.gather(http.get("/gradio/"), http.get("/gradio/config"))
            assert (first.status_code, second.status_code) == (200, 200)
            assert second.json()["root"] == "http://127.0.0.1/gradio"
            assert (await http.get("/gradio/nothing/here")).status_code == 404
        await ui.close()
        await ui.close()
        await engine.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    in_a_loop(check)


def test_closes_though_it_was_never_asked_for() -> None:
    service, _ = echo_service(EchoModel(), load_settings())
    in_a_loop(LazyUI(LocalBackend(service)).close)


@pytest.mark.parametrize(
    ("missing", "said"), [("gradio", "router-backend[ui]"), ("gradio.blocks", "cannot be imported")]
)
def test_says_what_to_install_without_gradio(monkeypatch: pytest.MonkeyPatch, missing: str, said: str) -> None:
    def refuse(backend: object) -> None:
        raise ModuleNotFoundError("gone", name=missing)

    monkeypatch.setattr("router_backend.server.gradio.mount._build", refuse)

    async def check() -> None:
        service, _ = echo_service(EchoModel(), load_settings())
        app = FastAPI()
        ui = LazyUI(LocalBackend(service))
        attach(app, ui)
        async with client(app) as http:
            answer = await http.get("/gradio/")
        assert answer.status_code == 503
        assert said in answer.text
        assert 'href="../console"' in answer.text
        await ui.close()

    in_a_loop(check)


def ask(page: Page, text: str) -> None:
    page.get_by_label("Request", exact=True).fill(text)
    page.get_by_role("button", name="Generate").click()


def written_in(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Text as it comes")


@pytest.mark.browser
def test_writes_a_plan_and_shows_it_to_read_and_as_json(page: Page, server: Served) -> None:
    server.model.script = lambda request: plan_words(request, "try <b>bold</b> {{words}} and ${1+1} once")
    page.goto(f"{server.url}/gradio/")
    expect(page.locator("#head")).to_contain_text("echo · strategy native · engine echo")
    page.get_by_text("Spectral gap and mixing").click()
    request = page.get_by_label("Request", exact=True)
    expect(request).to_have_value(re.compile("^Prove that the mixing time"))
    page.keyboard.press("Control+Enter")
    plan = page.locator("#plan .rp")
    expect(plan.locator(".rp-route > li").first).to_contain_text("try <b>bold</b> {{words}} and ${1+1}")
    expect(plan.locator(".rp-todo .rp-tool").last).to_have_text("router QA")
    expect(page.locator("#sums")).to_contain_text(re.compile(r"used \d+ of 600 tokens"))
    assert {seen.prompt for seen in server.model.seen} == {router_prompt(request.input_value())}
    written = json.loads(written_in(page).input_value())
    assert next(iter(written)) == "route_plan"
    page.locator("summary", has_text="JSON").click()
    expect(page.locator("#aside details[open] pre")).to_contain_text('"route_plan": [')
    assert page.locator(".rb-alert").count() == 0


@pytest.mark.browser
def test_text_output_is_sent_as_it_is(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/gradio/")
    page.get_by_label("Text", exact=True).check()
    page.get_by_label("Budget (tokens)").fill("4")
    ask(page, "one two three four five")
    expect(written_in(page)).to_have_value("one two three four")
    expect(page.locator("#sums")).to_contain_text("finish: length")
    assert server.model.seen[-1].prompt == "one two three four five"


@pytest.mark.browser
def test_a_whole_router_prompt_is_not_wrapped_again(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/gradio/")
    ask(page, INSTRUCTIONS + "count to three\n")
    expect(page.locator("#sums")).to_contain_text("finish: stop")
    assert {seen.prompt for seen in server.model.seen} == {INSTRUCTIONS + "count to three\n"}


@pytest.mark.browser
def test_stop_keeps_the_text_and_frees_the_slot(page: Page, server: Served) -> None:
    server.model.seconds_per_token = 0.1
    page.goto(f"{server.url}/gradio/")
    page.get_by_label("Text", exact=True).check()
    ask(page, "word " * 500)
    stop = page.get_by_role("button", name="Stop")
    expect(written_in(page)).to_have_value(re.compile("word word word"))
    assert server.engine.free_slots == 3
    stop.click()
    until(lambda: server.engine.free_slots == 4 and server.service.health().running == 0, 20)  # not after fifty seconds
    expect(page.locator(".rb-alert")).to_contain_text("Stopped")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    expect(stop).to_be_disabled()
    expect(written_in(page)).to_have_value(re.compile("word word word"))
    server.model.seconds_per_token = 0
    ask(page, "again")
    expect(written_in(page)).to_have_value("again")
    assert page.locator(".rb-alert").count() == 0


@pytest.mark.browser
def test_leaving_the_page_frees_the_slot(page: Page, server: Served) -> None:
    server.model.seconds_per_token = 0.1
    page.goto(f"{server.url}/gradio/")
    page.get_by_label("Text", exact=True).check()
    ask(page, "word " * 500)
    until(lambda: server.engine.free_slots == 3)
    page.goto("about:blank")
    until(lambda: server.engine.free_slots == 4, 20)  # not after fifty seconds


@pytest.mark.browser
def test_an_error_stands_near_the_result_and_the_text_stays(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/gradio/")
    alert = page.get_by_role("alert")
    ask(page, "   ")
    expect(alert).to_contain_text("write a request first")
    page.get_by_label("Budget (tokens)").fill("10")
    ask(page, "anything")
    expect(alert).to_contain_text("the smallest budget for a whole plan is")
    page.get_by_label("Text", exact=True).check()
    server.model.fail_after = 3
    ask(page, "one two three four five")
    expect(alert).to_contain_text("the echo engine was told to fail")
    expect(written_in(page)).to_have_value("one two three")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    assert "Traceback" not in page.content()


def test_the_head_says_what_a_plan_costs_and_that_a_stand_in_answers() -> None:
    service, _ = echo_service(echo_model(slots=1), load_settings())
    info = ModelInfo("acme/<b>", "8bit", "transformers", 4096)
    gpu = LentGpu("large", 48, "granted", None, 20, seconds=30.2, plans=3, seconds_per_plan=9.9)
    now = replace(service.health(), status="ok", model=info.model, info=info, gpu=gpu)
    assert "9.9 GPU seconds per plan (large, quota granted)" in parts.head(health_body(now))
    assert "rb-alert" not in parts.head(health_body(now)) and "acme/&lt;b&gt;" in parts.head(health_body(now))
    why = "a stand-in answers: the embedded model, since no checkpoint of the list loads here (a/<i>: gated)"
    said = parts.head(health_body(replace(now, gpu=None, stand_in=True, reason=why)))
    assert (
        "A stand-in answers</b>It is the embedded model, since no checkpoint" in said and "a/&lt;i&gt;: gated" in said
    )
    held = details(Chunk(finish_reason="stop", timings=Timings(gpu_seconds=7.25), info=info), 1)
    assert "<b>7.2</b> GPU seconds" in parts.sums(held, 8.0)
    assert "GPU" not in parts.sums(details(Chunk(finish_reason="stop", info=info), 1), 8.0)


@pytest.mark.browser
def test_fits_a_phone(phone: Page, server: Served) -> None:
    phone.goto(f"{server.url}/gradio/")
    expect(phone.get_by_role("button", name="Generate")).to_be_visible()
    assert overflow(phone) == 0
    ask(phone, "x" * 200)
    expect(phone.locator("#sums")).to_contain_text("finish: stop")
    assert overflow(phone) == 0
