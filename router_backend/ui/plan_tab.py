"""The tab where one plan is asked for, read while it is written, and taken along."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from router_backend.errors import InvalidRequest, RouterError
from router_backend.plan.rules import validate
from router_backend.plan.schema import DIFFICULTIES
from router_backend.server.native import Asked, PlanBody
from router_backend.server.sse import paced
from router_backend.ui.backend import Backend, body_of
from router_backend.ui.plan_view import handoffs, parts, plan_in, render_budget, render_plan, so_far
from router_backend.ui.running import HIDDEN, News, Running, trouble_of

_EXAMPLES: dict[str, str] = json.loads(Path(__file__).with_name("examples.json").read_text("utf-8"))
_PLACEHOLDER = "What should be solved? The answer says which specialist does what, and in which order."
_NO_PLAN_YET = parts.empty("The plan appears here while it is written.")
_NOTHING_YET = parts.empty("What the plan cost, its hand-offs and its texts to copy.")
_RAW = parts.empty("Raw text. If there is a plan in it, it is checked and shown here.")


def plan_tab(backend: Backend, status: gr.HTML, here: gr.Textbox) -> tuple[gr.Textbox, Any]:
    """Builds the tab. `here` holds the address of the API as the browser knows it.

    Returns where an answer's row of history stands, and the event after which it does.
    """
    settings = backend.settings
    prompt = gr.Textbox(
        label="Request", placeholder=_PLACEHOLDER, lines=4, max_lines=14, elem_id="prompt", autofocus=True
    )
    examples = gr.Dataset(
        components=[gr.Textbox(visible=False)],
        samples=[[text] for text in _EXAMPLES.values()],
        sample_labels=list(_EXAMPLES),
        type="index",
        label="Examples",
        elem_id="examples",
    )
    fields: dict[str, Any] = {"query": prompt}  # by the names of `body_of`
    levels = [("any", ""), *((each, each) for each in DIFFICULTIES)]
    outputs = [("Plan", "plan"), ("Text", "text")]
    with gr.Accordion("Context, criteria, guidance, difficulty, tags", open=False, elem_id="more"):
        with gr.Row():
            fields["context"] = gr.Textbox(label="Context", lines=2, info="What is known already")
            fields["acceptance"] = gr.Textbox(label="Acceptance criteria", lines=2, info="What an answer must do")
            fields["guidance"] = gr.Textbox(label="Guidance", lines=2, info="How to go about it")
        with gr.Row():
            fields["difficulty"] = gr.Radio(levels, value="", label="Difficulty", scale=2)
            fields["tags"] = gr.Textbox(label="Tags", info="Separated by commas")
    with gr.Row(elem_classes="knobs"):
        fields["output"] = gr.Radio(outputs, value="plan", label="Output", info="A plan, or raw text", min_width=150)
        fields["max_new_tokens"] = gr.Number(
            settings.max_new_tokens, precision=0, label="Budget (tokens)", info="The answer is written to fit",
            min_width=150, elem_id="budget",
        )  # fmt: skip
        heat, nucleus = settings.default_temperature, settings.default_top_p
        fields["temperature"] = gr.Slider(0, 2, heat, step=0.05, label="Temperature", info="0 is greedy", min_width=200)
        fields["top_p"] = gr.Slider(0.01, 1, nucleus, step=0.01, label="Top-p", info="1 keeps all", min_width=200)
        fields["seed"] = gr.Textbox(label="Seed", info="Empty: a new one each time", min_width=150)
    with gr.Row(elem_id="buttons"):
        generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
        stop = gr.Button("Stop", interactive=False, elem_id="stop", scale=1, min_width=110)
    run = Running(generate, stop, gr.HTML(visible=False, elem_id="alert"))
    result = gr.HTML(parts.line(), elem_id="sums")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            view = gr.HTML(_NO_PLAN_YET, elem_id="plan", elem_classes="rb-card")
        with gr.Column(scale=2, min_width=320):
            aside = gr.HTML(_NOTHING_YET, elem_id="aside", elem_classes="rb-card")
            live = gr.Textbox(
                label="Text as it comes", lines=6, max_lines=16, interactive=False, buttons=["copy"], elem_id="live"
            )
    record = gr.Textbox(visible="hidden", label="The last answer", elem_id="record")

    async def on_generate(address: str, *values: object) -> AsyncIterator[News]:
        given: dict[str, Any] = dict(zip(fields, values, strict=True))
        planned = given["output"] == "plan"
        empty = render_plan({}, waits=True) if planned else _RAW
        cleared = {result: parts.line("Asking…"), live: "", view: empty, aside: _NOTHING_YET, record: ""}
        yield {**run.begun(), **cleared}
        written, told, began, trouble = "", None, time.monotonic(), None
        try:
            with backend.charged():
                body = body_of(**given)
            yield {result: parts.waiting(await backend.health())}
            async with aclosing(paced(backend.answer(body))) as answer:
                async for written, told in answer:  # noqa: B007 - what the last one told
                    news = {live: written, result: parts.writing(time.monotonic() - began)}
                    yield news | ({view: render_plan(so_far(written), waits=True)} if planned else {})
        except Exception as error:
            trouble = trouble_of(error)
        sums = parts.sums(told, time.monotonic() - began) if told else parts.line()
        done: News = {live: written, result: sums, status: await status_of(backend)}
        plan = plan_in(written) if told else None
        if plan is not None and told is not None:
            found = validate(plan, settings.tools)[1]
            clipped = (told.get("budget") or {}).get("clipped", ())
            done[view] = render_plan(plan, clipped, list(map(str, found)), odds=odds_of(told))
            done[aside] = _aside(plan, told, body, str(address), not found)
            done[record] = _row(body, written, told)
        elif planned:
            trouble = trouble or "there is no plan in the answer"
            done[view] = render_plan(so_far(written)) if so_far(written) else _NO_PLAN_YET
        yield done | run.ended("The answer is not complete" if written else "No answer", trouble)

    def on_stop() -> News:
        return {result: parts.line(), **run.ended("Stopped", "What was written until then stays.", "note")}

    def on_example(index: int) -> str:
        if not isinstance(index, int) or not 0 <= index < len(_EXAMPLES):
            raise InvalidRequest("there is no such example")
        return list(_EXAMPLES.values())[index]

    examples.click(on_example, inputs=[examples], outputs=[prompt], **HIDDEN)
    shown = [result, live, view, aside, record, status]
    return record, run.ask(on_generate, [here, *fields.values()], shown, on_stop)


async def status_of(backend: Backend) -> str:
    try:
        return str(parts.head(await backend.health()))
    except RouterError as error:
        return str(parts.away(error.message))


def odds_of(details: Mapping[str, Any]) -> list[float | None]:
    """The probability of each step's tool, where the report tells it; of a backend elsewhere it may be anything."""
    found = []
    for step in details.get("route") or ():
        odds = step.get("probabilities") if isinstance(step, dict) else None
        odd = odds.get(step.get("tool")) if isinstance(odds, dict) else None
        found.append(odd if isinstance(odd, float) else None)
    return found


def _aside(plan: dict[str, Any], details: dict[str, Any], body: Asked, address: str, valid: bool) -> str:
    asked = {**body.model_dump(exclude_none=True, exclude={"stream", "details"}), "seed": details["seed"]}
    url = f"{address}{body.path}"
    text = json.dumps(asked, ensure_ascii=False)
    curl = f"curl {url} -H 'Content-Type: application/json' -d {shlex.quote(text)}"
    python = f"import httpx\n\nanswer = httpx.post({url!r}, json={asked!r}, timeout=300)\nprint(answer.json())"
    taken = [("JSON", json.dumps(plan, ensure_ascii=False, indent=2)), ("curl", curl), ("Python", python)]
    spent = render_budget(details["budget"]) if details.get("budget") else ""
    return str(parts.aside(valid, spent, handoffs(plan), taken))


def _row(body: Asked, text: str, details: dict[str, Any]) -> str:
    """A row of history: what was asked, what came, what it cost."""
    prompt, _ = body.asks()
    query = body.query if isinstance(body, PlanBody) else prompt
    tokens = details["usage"]["completion_tokens"]
    row = {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "query": query, "prompt": prompt, "text": text, "tokens": tokens}
    return json.dumps({**row, "model": details["model"], "seed": details["seed"]}, ensure_ascii=False)
