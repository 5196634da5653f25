"""The tab where one request is answered two to four ways, side by side."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import gradio as gr
from pydantic import Field

from router_backend.plan.rules import validate
from router_backend.server.body import Body, checked
from router_backend.server.native import Asked
from router_backend.server.sse import merged, paced
from router_backend.ui.backend import Backend, body_of, whole
from router_backend.ui.plan_view import parts, plan_in, render_plan, so_far
from router_backend.ui.running import HIDDEN, News, Running, trouble_of

_NAMES = ("A", "B", "C", "D")
_KNOBS = ("max_new_tokens", "temperature", "seed", "output")  # of a column, by the names of `body_of`
_FIGURES = ("", "route", "valid", "tokens", "budget", "truncated", "seconds", "tokens/s", "seed")


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

    async def on_compare(request: str, many: int, *wishes: object) -> AsyncIterator[News]:
        try:
            with backend.charged():
                number = checked(_Columns, columns=whole(many)).columns
                wished = [dict(zip(_KNOBS, wishes[at * len(_KNOBS) :], strict=False)) for at in range(number)]
                bodies = [body_of(request, **each) for each in wished]
        except Exception as error:
            yield run.ended("Nothing to compare", trouble_of(error))
            return
        yield {**run.begun(), figures: parts.line("Asking…"), **dict.fromkeys(views[:number], "")}
        began, writing = time.monotonic(), parts.line("Writing…")
        answers = [_Answer()] * number
        async with aclosing(merged([_safely(backend, body) for body in bodies])) as pieces:
            async for at, (text, told, trouble) in pieces:
                answers[at] = _Answer(text or answers[at].text, told, time.monotonic() - began)
                plan = so_far(text)
                shown = render_plan(plan, waits=True) if plan else parts.line(f"{len(text)} characters")
                yield {views[at]: parts.alert("No answer", trouble) if trouble else shown, figures: writing}
        plans = [each.plan for each in answers if each.plan]
        done = {views[at]: _whole(each, plans) for at, each in enumerate(answers) if each.told}
        rows = [[name, *_figures(each, settings.tools)] for name, each in zip(_NAMES, answers, strict=False)]
        yield {**done, figures: parts.table("Figures", _FIGURES, rows), **run.ended()}

    def on_stop() -> News:
        return {figures: parts.line("Stopped."), **run.ended()}

    def on_count(many: int) -> list[Any]:
        number = checked(_Columns, columns=whole(many)).columns
        return [gr.Column(visible=at < number) for at in range(len(_NAMES))]

    count.change(on_count, inputs=[count], outputs=columns, **HIDDEN)
    run.ask(on_compare, [query, count, *knobs], [figures, *views], on_stop)


@dataclass
class _Answer:
    """What a column has come to: its text, the answer's details once it is there, and the seconds that it took."""

    text: str = ""
    told: dict[str, Any] | None = None
    seconds: float = 0.0

    @cached_property
    def plan(self) -> dict[str, Any] | None:
        return plan_in(self.text) if self.told else None

    @property
    def budget(self) -> dict[str, Any]:
        return (self.told or {}).get("budget") or {}


class _Columns(Body):
    columns: Annotated[int, Field(ge=2, le=len(_NAMES))]


async def _safely(backend: Backend, body: Asked) -> AsyncGenerator[tuple[str, dict[str, Any] | None, str], None]:
    """An answer whose failure does not end the others."""
    try:
        async with aclosing(paced(backend.answer(body))) as answer:
            async for written, told in answer:
                yield written, told, ""
    except Exception as error:
        yield "", None, trouble_of(error)


def _whole(answer: _Answer, plans: Sequence[dict[str, Any]]) -> str:
    if answer.plan is None:
        return str(parts.alert("No plan in it", answer.text, "note"))
    others = [each for each in plans if each is not answer.plan]
    return render_plan(answer.plan, answer.budget.get("clipped", ()), differs=differences(answer.plan, others))


def differences(plan: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[str]:
    """Steps whose tool, and to-dos whose text, another plan does not have in this place or at all."""
    routes = [[_tool(step) for step in _items(each, "route_plan")] for each in (plan, *others)]
    todos = [_items(each, "todo_list") for each in (plan, *others)]
    steps = [at for at, tool in enumerate(routes[0]) if any(each[at : at + 1] != [tool] for each in routes)]
    items = [at for at, todo in enumerate(todos[0]) if any(todo not in each for each in todos)]
    return [f"route_plan[{at}]" for at in steps] + [f"todo_list[{at}]" for at in items]


def _items(plan: dict[str, Any], key: str) -> list[str]:
    value = plan.get(key)
    return list(map(str, value)) if isinstance(value, list) else []


def _tool(step: str) -> str:
    return step.partition("(")[0]


def _figures(of: _Answer, tools: Sequence[str]) -> list[object]:
    if of.told is None:
        return ["no answer", *[""] * (len(_FIGURES) - 2)]
    plan, tokens = of.plan, of.told["usage"]["completion_tokens"]
    route = " → ".join(map(_tool, _items(plan or {}, "route_plan"))) or "–"
    valid = "–" if plan is None else "no" if validate(plan, tools)[1] else "yes"
    spent = [tokens, of.budget.get("limit", "–"), len(of.budget.get("clipped", ()))]
    return [route, valid, *spent, f"{of.seconds:.1f}", f"{tokens / max(of.seconds, 0.001):.1f}", of.told["seed"]]
