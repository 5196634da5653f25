"""The room's tabs, with the real model, and with mistakes that people make."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from router_backend.engines.llamacpp import LlamaCppModel
from router_backend.errors import RouterError
from router_backend.plan.rules import validate
from router_backend.server import gradio as gradio_room
from router_backend.server.native import PlanBody
from router_backend.settings import load_settings
from router_backend.ui.backend import RemoteBackend
from router_backend.ui.compare_tab import differences
from router_backend.ui.plan_tab import odds_of
from router_backend.ui.plan_view import handoffs, render_budget, render_plan, so_far
from router_tools.evaluate.metrics import route_of
from router_tools.evaluate.rows import BUNDLED, read_gold
from router_tools.train.rows import read_rows
from tests.fakes.browser import browser, overflow, page, running, server, watched
from tests.fakes.running import Kept, Served, echo_model, process, served, until

__all__ = ["browser", "page", "running", "server"]
TOOLS = ("/general-search", "/math", "/code")
ADMIN = "an-admin-key-1"
STARTING = Path(gradio_room.__file__).with_name("starting.html")
QUERY = "Derive the period of a pendulum and simulate it in Python."


@pytest.fixture(scope="module")
def real(embedded: LlamaCppModel) -> Iterator[Served]:
    """A server of the embedded router."""
    with served(Kept(embedded), ui=True, request_timeout=280) as server:  # type: ignore[arg-type]
        httpx.get(f"{server.url}/gradio/config", timeout=60).raise_for_status()
        yield server


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def ask(page: Page, text: str, budget: int = 260) -> None:
    page.get_by_label("Request", exact=True).fill(text)
    page.get_by_label("Budget (tokens)").fill(str(budget))
    page.get_by_role("button", name="Generate").click()


def finished(page: Page) -> None:
    expect(page.locator("#sums")).to_contain_text("finish: stop", timeout=280_000)


def linked(page: Page, name: str) -> str:
    """What a link to a file of the page's own holds."""
    address = page.get_by_role("link", name=name).get_attribute("href") or ""
    return base64.b64decode(address.partition("base64,")[2]).decode()


# Pure parts


def test_a_plan_is_read_while_it_is_written() -> None:
    text = '{"route_plan": ["/math(prove it)", "/code(check'
    assert so_far(text) == {"route_plan": ["/math(prove it)", "/code(check"]}
    assert so_far("") == so_far("no plan") == so_far("[1") == {}
    shown = render_plan(so_far(text), waits=True)
    assert shown.index("/code") < shown.index("Why this route") < shown.index("Metrics")
    assert shown.count("rp-waits") == 7


def test_each_specialist_is_told_its_task_its_todos_and_its_neighbours() -> None:
    plan: dict[str, object] = {
        "route_plan": ["/math(prove (it))", "/code(check it)"],
        "todo_list": ["- [ ] /math: the lemma", "- [ ] /code: a script", "- [ ] router QA: approve"],
    }
    (first, math), (second, code) = handoffs(plan)
    assert (first, second) == ("1. /math", "2. /code")
    assert (
        "Task: prove (it)\nYou get: the request itself" in math and "- [ ] the lemma" in math and "script" not in math
    )
    assert "You get: /math: prove (it)" in code and code.endswith("Hand over to: router QA")


def test_the_budget_is_shown_by_field() -> None:
    shown = render_budget({"fields": {"tags": {"given": 40, "used": 10}}, "clipped": ["tags[0]", "tags[2]", "other"]})
    assert "10 of 40" in shown and "2 truncated" in shown and 'style="width:25.0%"' in shown


def test_the_probability_of_each_tool_is_shown_where_the_report_tells_it() -> None:
    route = [{"tool": "/math", "probabilities": {"/math": 0.914, "/code": 0.086}}, {"tool": "/code"}, None]
    odds = odds_of({"route": route})
    assert odds == [0.914, None, None] and odds_of({"route": None}) == odds_of({}) == []
    shown = render_plan({"route_plan": ["/math(a)", "/code(b)"]}, odds=odds)
    assert "91% sure" in shown and shown.count("sure") == 1


def test_what_differs_between_plans() -> None:
    one = {"route_plan": ["/math(a)", "/code(b)"], "todo_list": ["- [ ] /math: x", "- [ ] router QA: y"]}
    other = {"route_plan": ["/math(c)"], "todo_list": ["- [ ] router QA: y"]}
    assert differences(one, [other]) == ["route_plan[1]", "todo_list[0]"]
    assert differences(other, [one]) == differences(one, []) == []


def test_the_bundled_gold_rows_are_plans_that_keep_the_rules() -> None:
    rows = read_gold(BUNDLED)
    assert len({row.prompt for row in rows}) == 24
    assert len({row.plan["tags"][0] for row in rows}) == 12
    assert {row.plan["difficulty"] for row in rows} == {"introductory", "intermediate", "advanced"}
    assert {tool for row in rows for tool in route_of(row.plan)} == set(TOOLS)
    assert [str(finding) for row in rows for finding in validate(row.plan, TOOLS)[1]] == []
    assert len(read_rows(BUNDLED, TOOLS)[0]) == 24


# The tabs, with the real model


@pytest.mark.browser
@pytest.mark.real
def test_a_plan_is_written_copied_judged_and_exported(page: Page, real: Served, tmp_path: Path) -> None:
    page.goto(f"{real.url}/gradio/")
    page.get_by_role("button", name="Context, criteria").click()
    page.get_by_role("textbox", name=re.compile("^Context")).fill("The angle is small.")
    page.get_by_role("textbox", name=re.compile("^Acceptance")).fill("Units are given.")
    page.get_by_role("textbox", name=re.compile("^Tags")).fill("physics, simulation")
    page.get_by_label("advanced").check()
    page.get_by_role("textbox", name=re.compile("^Seed")).fill("7")
    ask(page, QUERY)
    expect(page.locator("#plan .rp-route .rp-tool").first).to_be_visible(timeout=280_000)
    expect(page.locator("#sums")).to_contain_text("Writing")  # the route is there before the rest
    finished(page)
    expect(page.locator("#aside")).to_contain_text("Keeps all five rules")
    expect(page.locator(".rb-budget th").first).to_have_text("route plan")
    assert page.locator("#plan .rp-waits").count() == 0
    steps = page.locator("#plan .rp-route > li").count()
    assert page.locator("#aside details").count() == steps + 3
    curl = shlex.split(page.locator("details", has_text="curl").locator("pre").text_content() or "")
    body = json.loads(curl[-1])
    assert body["seed"] == 7 and body["context"] == "The angle is small." and body["tags"] == ["physics", "simulation"]
    assert curl[1] == f"{real.url}/v1/plan"
    answer = httpx.post(curl[1], json=body, timeout=280).json()
    assert answer["report"]["seed"] == 7 and answer["plan"]["route_plan"]
    page.reload()
    tab(page, "History")
    page.get_by_label("Earlier plans").click()
    page.get_by_role("option").first.click()
    expect(page.locator("#earlier .rp-route")).to_be_visible()
    plan = json.loads(page.get_by_label("Corrected plan").input_value())
    page.get_by_label("Corrected plan").fill("{}")
    expect(page.locator("#checked")).to_contain_text("Not a plan yet")
    corrected = {**plan, "tags": ["pendulum"]}
    page.get_by_label("Corrected plan").fill(json.dumps(corrected))
    expect(page.locator("#checked")).to_contain_text("Keeps the rules")
    page.get_by_label("Good").check()
    page.get_by_role("button", name="Save judgement").click()
    expect(page.locator("#export")).to_contain_text("1 rows for router-backend train")
    (tmp_path / "rows.jsonl").write_text(linked(page, "training.jsonl"), "utf-8")
    (row,), _ = read_rows(tmp_path / "rows.jsonl", TOOLS)
    assert row.plan["tags"] == ["pendulum"] and "Context:\nThe angle is small." in row.prompt
    assert json.loads(linked(page, "history.jsonl"))["thumb"] == "good"


@pytest.mark.browser
@pytest.mark.real
def test_two_budgets_side_by_side(page: Page, real: Served) -> None:
    page.goto(f"{real.url}/gradio/")
    tab(page, "Compare")
    page.get_by_label("Request to compare").fill(QUERY)
    page.get_by_label("Budget A").fill("230")
    page.get_by_label("Budget B").fill("12")
    page.get_by_role("button", name="Compare", exact=True).click()
    rows = page.locator("#figures tbody tr")
    expect(rows).to_have_count(2, timeout=280_000)
    expect(rows.first).to_contain_text("yes")
    expect(rows.last).to_contain_text("no answer")
    expect(page.locator("#answer-B .rb-alert")).to_contain_text("the smallest budget for a whole plan is")
    expect(page.locator("#answer-B .rb-alert")).to_be_visible()
    expect(page.locator("#answer-A .rp-route")).to_be_visible()


@pytest.mark.browser
@pytest.mark.real
def test_a_benchmark_runs_and_is_judged(page: Page, real: Served, tmp_path: Path) -> None:
    page.goto(f"{real.url}/gradio/")
    tab(page, "Benchmark")
    page.get_by_label("Rows", exact=True).fill("2")
    page.get_by_label("Budget of a row").fill("230")
    page.get_by_role("button", name="Run, or go on").click()
    expect(page.locator("#report table")).to_be_visible(timeout=280_000)
    expect(page.locator("#progress")).to_contain_text("2 of 2 rows")
    scores = json.loads(linked(page, "scores.json"))
    assert scores["rows"] == 2 and scores["buckets"]["overall"]["scores"]["json_valid"] == 1
    expect(page.frame_locator("iframe.rb-report").get_by_role("heading", level=1)).to_contain_text("Evaluation of")
    charts = page.frame_locator("iframe.rb-report").get_by_role("heading").all_inner_texts()
    assert {"Tokens of an answer", "Seconds of an answer", "The first tool's probabilities"} <= {*charts}
    assert "Rows with a truncated text" in charts and scores["confidence"]["bins"]
    page.get_by_role("button", name="Rows of your own").click()
    assert len(page.get_by_label("Answers:").input_value().splitlines()) == 2, "a second run asks for none of them"
    large, wrong = tmp_path / "large.jsonl", tmp_path / "wrong.jsonl"
    large.write_bytes(b"x" * 50_000_000)
    wrong.write_text('{"prompt": "p"}\n', "utf-8")
    page.locator("input[type=file]").first.set_input_files(large)
    expect(page.get_by_text("large.jsonl has 50000 kB; at most")).to_be_visible()
    page.locator("input[type=file]").first.set_input_files(wrong)
    expect(page.get_by_label("Gold rows")).to_have_value('{"prompt": "p"}\n')
    page.get_by_role("button", name="Run, or go on").click()
    expect(page.get_by_role("alert")).to_contain_text("the gold rows, line 1: completion must be the gold plan")


@pytest.mark.browser
@pytest.mark.real
def test_the_backend_shows_its_ladder_and_reloads_for_the_admin_alone(page: Page, embedded: LlamaCppModel) -> None:
    with served(Kept(embedded), ui=True, admin_key=ADMIN) as server:  # type: ignore[arg-type]
        _look_and_reload(page, server)


def _look_and_reload(page: Page, server: Served) -> None:
    httpx.post(f"{server.url}/v1/plan", json={"query": QUERY, "max_new_tokens": 215}, timeout=280).raise_for_status()
    page.goto(f"{server.url}/gradio/")
    tab(page, "Backend")
    expect(page.get_by_role("region", name="The last requests")).to_contain_text("not kept (LOG_PROMPTS)")
    expect(page.locator("#backend")).to_contain_text("of 4 slots")
    expect(page.get_by_role("region", name="The ladder")).to_be_visible()
    expect(page.locator("#backend")).to_contain_text("GB in this process")
    assert QUERY not in (page.locator("#backend").text_content() or ""), "LOG_PROMPTS is not set"
    for key, said in (("not-the-admin-key", "Not reloaded"), (ADMIN, "serves now")):
        page.get_by_label("Admin key").fill(key)
        page.get_by_role("button", name="Reload").click()
        expect(page.locator("#reload")).to_contain_text(said)


# A backend elsewhere


@pytest.mark.browser
@pytest.mark.real
def test_the_page_alone_asks_a_backend_in_another_process(browser: Browser, real: Served, tmp_path: Path) -> None:
    with process("--port", "0", command="ui", folder=tmp_path, HF_ROUTER_API=real.url) as alone:
        with watched(browser, 1440, 900) as page:
            page.goto(f"{alone.url()}/")
            expect(page.locator("#head")).to_contain_text("embedded", timeout=120_000)
            ask(page, QUERY)
            finished(page)
            expect(page.locator("#aside")).to_contain_text("Keeps all five rules")
            tab(page, "Backend")
            expect(page.locator("#backend")).to_contain_text("shown at the backend's own page")
        assert httpx.post(f"{alone.url()}/v1/generate", json={"prompt": "x"}).status_code == 404
        assert alone.stop() == 0


@pytest.mark.browser
def test_a_backend_that_wants_a_key_is_away_or_goes_in_mid_stream(browser: Browser, tmp_path: Path) -> None:
    def told(url: str, text: str) -> None:
        with (
            process("--port", "0", command="ui", folder=tmp_path, HF_ROUTER_API=url) as alone,
            watched(browser, 1280, 900) as page,
        ):
            page.goto(f"{alone.url()}/gradio/")
            ask(page, "anything")
            expect(page.get_by_role("alert")).to_contain_text(text)

    with process("--port", "0", folder=tmp_path, ENGINE="echo", ROUTER_API_KEYS="a:some-key-123") as backend:
        url = backend.url()
        told(url, "Start the page with the backend's key")
    told(url, "Is the backend running?")
    slow = echo_model(seconds_per_token=0.05)
    with served(slow, drain_timeout=0.1) as passing:
        asked = {"query": "anything", "max_new_tokens": 600}

        async def part() -> list[str]:
            backend = RemoteBackend(load_settings(), passing.url, None)
            texts = []
            with pytest.raises(RouterError, match="the server is shutting down"):
                async for text, _ in backend.answer(PlanBody.model_validate(asked)):
                    texts.append(text)
                    if len(texts) == 3:
                        passing.run(passing.service.drain())
            return texts

        with ThreadPoolExecutor(1) as pool:  # the browser has this thread's loop
            assert len(pool.submit(asyncio.run, part()).result()) >= 3


# Mistakes


@pytest.mark.browser
def test_odd_texts_are_texts(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/gradio/")
    for text in ("ما هي أقصر طريق بين مدينتين؟", "🧭" * 900):
        ask(page, text, 600)
        until(lambda text=text: any(text in seen.prompt for seen in server.model.seen))  # type: ignore[misc]
        finished(page)
    ask(page, "🧭" * 4000, 600)
    expect(page.get_by_role("alert")).to_contain_text("more than the context of 4096 tokens")


@pytest.mark.browser
def test_two_tabs_of_a_browser_keep_one_history_and_a_reload_frees_the_slot(page: Page, server: Served) -> None:
    page.goto(f"{server.url}/gradio/")
    other = page.context.new_page()
    other.goto(f"{server.url}/gradio/")
    for each, text in ((page, "first request"), (other, "second request")):
        expect(each.locator("#head")).to_contain_text("echo")
        ask(each, text, 600)
        finished(each)
        each.wait_for_function("text => (localStorage.getItem('router-history') ?? '').includes(text)", arg=text)
    assert [row["query"] for row in json.loads(page.evaluate("localStorage.getItem('router-history')"))] == [
        "second request",
        "first request",
    ]
    server.model.seconds_per_token = 0.1
    ask(page, "third request", 600)
    until(lambda: server.engine.free_slots == 3)
    page.reload()
    until(lambda: server.engine.free_slots == 4, 30)
    page.go_back()
    page.go_forward()
    expect(page.get_by_label("Request", exact=True)).to_be_visible()


@pytest.mark.browser
def test_what_is_sent_while_gradio_starts_is_sent_once_it_is_there(page: Page, server: Served) -> None:
    page.route("**/gradio/config", lambda route: route.fulfill(status=503))
    page.route("**/gradio/", lambda route: route.fulfill(path=STARTING), times=1)
    page.goto(f"{server.url}/gradio/")
    page.get_by_label("Request").fill("written early")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("sends your request")
    page.unroute("**/gradio/config")
    finished(page)
    expect(page.get_by_label("Request", exact=True)).to_have_value("written early")
    page.reload()
    expect(page.get_by_label("Request", exact=True)).to_have_value("")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


@pytest.mark.browser
def test_what_is_corrected_right_after_a_choice_stays_and_is_judged(page: Page, server: Served) -> None:
    rows = [{"at": f"2026-01-0{at}", "query": "q", "prompt": row.prompt, "text": json.dumps(row.plan)}
            for at, row in enumerate(read_gold(BUNDLED)[:6], 1)]  # fmt: skip
    page.goto(f"{server.url}/gradio/")
    page.evaluate("rows => localStorage.setItem('router-history', rows)", json.dumps(rows))
    page.reload()
    tab(page, "History")
    correction, verdict = page.get_by_label("Corrected plan"), page.locator("#checked")
    for row in rows * 2:
        page.get_by_label("Earlier plans").click()
        page.get_by_role("option", name=row["at"]).click()
        expect(correction).to_have_value(json.dumps(json.loads(row["text"]), ensure_ascii=False, indent=2))
        for text in ("{}", row["text"], "[]"):
            correction.fill(text)
        expect(verdict).to_contain_text("Not a plan yet")
        page.get_by_label("Earlier plans").focus()  # to leave the field is no choice
        correction.focus()
        correction.fill(row["text"])
        expect(verdict).to_contain_text("Keeps the rules")
        expect(correction).to_have_value(row["text"])


@pytest.mark.browser
@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (768, "dark"), (1440, "light")])
def test_every_tab_fits_and_is_reached_by_keys_alone(browser: Browser, server: Served, width: int, theme: str) -> None:
    with watched(browser, width, 900) as page:
        page.goto(f"{server.url}/gradio/?__theme={theme}")
        expect(page.get_by_label("Request", exact=True)).to_be_focused()
        page.keyboard.type("by keys alone")
        page.keyboard.press("Control+Enter")
        finished(page)
        assert overflow(page) == 0
        page.locator("#aside summary").first.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Copy"
        for name in ("Compare", "Benchmark", "Backend", "History"):
            shown = page.get_by_role("tab", name=name)
            if not shown.is_visible():  # in a narrow window some are behind a button
                page.locator("#tabs .overflow-menu > button").press("Enter")
                page.locator("#tabs .overflow-dropdown button", has_text=re.compile(name)).press("Enter")
            else:
                shown.focus()
                page.keyboard.press("Enter")
            expect(page.get_by_role("tabpanel").filter(visible=True)).to_have_count(1)
            assert overflow(page) == 0, name
