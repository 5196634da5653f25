"""The tab where one request is answered two to four ways, side by side."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

import gradio as gr
from pydantic import Field

from router_backend.plan.rules import validate
from router_backend.server.body import Body, checked
from router_backend.server.native import Sampling
from router_backend.server.sse import merged
from router_backend.ui.backend import Backend, Said, body_of, paced, whole
from router_backend.ui.plan_view import parts, render_plan, so_far
from router_backend.ui.running import HIDDEN, News, Running
from router_backend.ui.status import plan_in, trouble_of

_NAMES = ("A", "B", "C", "D")
_KNOBS = 4
_FIGURES = ("", "route", "valid", "tokens", "budget", "truncated", "seconds", "tokens/s", "seed")
_COMPARED = ("route_plan", "todo_list")


def compare_tab(backend: Backend) -> None:
    settings = backend.settings
    query = gr.Textbox(label="Request to compare", lines=3, max_lines=10, elem_id="compare-prompt")
    count = gr.Radio([2, 3, 4], value=2, label="Columns", elem_id="columns")
    knobs, views, columns = [], [], []
    with gr.Row(equal_height=False):
        for at, name in enumerate(_NAMES):
            with gr.Column(min_width=260, visible=at < 2) as column:
                with gr.Row(elem_classes="knobs"):
                    budget = gr.Number(settings.max_new_tokens, precision=0, label=f"Budget {name}", min_width=110)
                    heat = gr.Number(min(2.0, 0.3 * at), label=f"Temperature {name}", step=0.1, min_width=110)
                    seed = gr.Number(1, precision=0, label=f"Seed {name}", min_width=110)
                    output = gr.Radio(["plan", "text"], value="plan", label=f"Output {name}", min_width=180)
                views.append(gr.HTML("", elem_classes="rb-card rb-answer", elem_id=f"answer-{name}"))
            knobs += [budget, heat, seed, output]
            columns.append(column)
    with gr.Row():
        begin = gr.Button("Compare", variant="primary", elem_id="compare", scale=3)
        stop = gr.Button("Stop comparing", interactive=False, scale=1, min_width=110)
    run = Running(begin, stop, gr.HTML(visible=False))
    figures = gr.HTML(parts.line(), elem_id="figures")

    async def on_compare(text: str, many: int, *wishes: object) -> AsyncIterator[News]:
        try:
            number = checked(_Columns, columns=whole(many)).columns
            chosen = [wishes[at * _KNOBS : (at + 1) * _KNOBS] for at in range(number)]
            bodies = [
                body_of(text, output, max_new_tokens=limit, temperature=heat, seed=seed)
                for limit, heat, seed, output in chosen
            ]
        except Exception as error:
            yield run.ended("Nothing to compare", trouble_of(error))
            return
        yield {**run.begun(), figures: parts.line("Asking…"), **dict.fromkeys(views[:number], "")}
        began = time.monotonic()
        said: list[Said] = [("", None)] * number
        seconds, troubles = [0.0] * number, [""] * number
        async with aclosing(merged([_safely(backend, body) for body in bodies])) as pieces:
            async for at, (written, told, trouble) in pieces:
                said[at] = written or said[at][0], told
                seconds[at], troubles[at] = time.monotonic() - began, trouble
                plan = so_far(written)
                shown = render_plan(plan, waits=True) if plan else parts.line(f"{len(written)} characters")
                shown = parts.alert("No answer", trouble) if trouble else shown
                yield {views[at]: shown, figures: parts.line("Writing…")}
        plans = [plan_in(text) if told else None for text, told in said]
        done = {views[at]: _whole(at, plans, said[at]) for at in range(number) if not troubles[at]}
        rows = [_row(at, plans[at], said[at], seconds[at], settings.tools) for at in range(number)]
        yield {**done, figures: parts.table("Figures", _FIGURES, rows), **run.ended()}

    def on_stop() -> News:
        return {figures: parts.line("Stopped."), **run.ended()}

    def on_count(many: int) -> list[Any]:
        number = checked(_Columns, columns=whole(many)).columns
        return [gr.Column(visible=at < number) for at in range(len(_NAMES))]

    count.change(on_count, inputs=[count], outputs=columns, **HIDDEN)
    run.ask(on_compare, [query, count, *knobs], [figures, *views], on_stop)


class _Columns(Body):
    columns: Annotated[int, Field(ge=2, le=len(_NAMES))]


async def _safely(backend: Backend, body: Sampling) -> AsyncGenerator[tuple[str, dict[str, Any] | None, str], None]:
    """An answer whose failure does not end the others."""
    try:
        async with aclosing(paced(backend.answer(body))) as answer:
            async for written, told in answer:
                yield written, told, ""
    except Exception as error:
        yield "", None, trouble_of(error)


def _whole(at: int, plans: Sequence[dict[str, Any] | None], said: Said) -> str:
    plan, budget = plans[at], (said[1] or {}).get("budget") or {}
    if plan is None:
        return str(parts.alert("No plan in it", said[0], "note"))
    others = [other for each, other in enumerate(plans) if each != at and other is not None]
    return render_plan(plan, budget.get("clipped", ()), differs=differences(plan, others))


def differences(plan: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[str]:
    """Steps whose tool, and to-dos whose text, another plan does not have in this place or at all."""
    found = []
    for key in _COMPARED:
        items = [_compared(key, item) for item in _items(plan, key)]
        for other in others:
            theirs = [_compared(key, item) for item in _items(other, key)]
            for index, item in enumerate(items):
                same = theirs[index : index + 1] == [item] if key == "route_plan" else item in theirs
                if not same:
                    found.append(f"{key}[{index}]")
    return list(dict.fromkeys(found))


def _items(plan: dict[str, Any], key: str) -> list[str]:
    value = plan.get(key)
    return list(map(str, value)) if isinstance(value, list) else []


def _compared(key: str, item: str) -> str:
    return item.partition("(")[0] if key == "route_plan" else item


def _row(at: int, plan: dict[str, Any] | None, said: Said, seconds: float, tools: Sequence[str]) -> list[object]:
    told = said[1]
    if told is None:
        return [_NAMES[at], "no answer", *[""] * (len(_FIGURES) - 2)]
    budget, tokens = told.get("budget") or {}, told["usage"]["completion_tokens"]
    route = " → ".join(_compared("route_plan", step) for step in _items(plan or {}, "route_plan")) or "–"
    valid = "–" if plan is None else "no" if validate(plan, tools)[1] else "yes"
    spent = [tokens, budget.get("limit", "–"), len(budget.get("clipped", ()))]
    return [_NAMES[at], route, valid, *spent, f"{seconds:.1f}", f"{tokens / max(seconds, 0.001):.1f}", told["seed"]]
