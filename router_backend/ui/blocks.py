"""The page: its head, its tabs, and the functions for programs that speak Gradio's protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from router_backend.plan.rules import validate
from router_backend.server.native import PlanBody
from router_backend.server.sse import paced
from router_backend.types import Output
from router_backend.ui.backend import Backend, body_of
from router_backend.ui.backend_tab import backend_tab
from router_backend.ui.benchmark_tab import benchmark_tab
from router_backend.ui.compare_tab import compare_tab
from router_backend.ui.history_tab import history_tab
from router_backend.ui.plan_tab import plan_tab, status_of
from router_backend.ui.plan_view import plan_in
from router_backend.ui.running import HIDDEN

_ADDRESS = "() => location.origin + location.pathname.replace(/\\/gradio\\/?$/, '')"


def build_blocks(backend: Backend) -> gr.Blocks:
    """The page. It asks the backend itself, so a request waits, is refused and ends as one over HTTP does."""
    with gr.Blocks(title="Router", analytics_enabled=False) as page:
        status = gr.HTML('<h1>Router</h1><p class="rb-status">…</p>', elem_id="head")
        here = gr.Textbox(visible="hidden", label="Address of the API", elem_id="here")
        ticker = gr.Timer(1.0)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Plan", id="plan") as first:
                record, answered = plan_tab(backend, status, here)
            with gr.Tab("Compare", id="compare") as second:
                compare_tab(backend)
            with gr.Tab("Benchmark", id="benchmark") as third:
                benchmark_tab(backend)
            with gr.Tab("Backend", id="backend") as fourth:
                live = backend_tab(backend, fourth, here)
            with gr.Tab("History", id="history") as fifth:
                history_tab(backend, page, record, answered)

        async def on_tick() -> tuple[str, Any]:
            now = await status_of(backend)
            return now, gr.Timer(active="rb-dot ok" not in now)

        page.load(on_tick, outputs=[status, ticker], **HIDDEN)
        page.load(None, outputs=[here], js=_ADDRESS, api_visibility="private")
        for other in (first, second, third, fifth):
            other.select(lambda: gr.Timer(active=False), outputs=[live], **HIDDEN)
        ticker.tick(on_tick, outputs=[status, ticker], **HIDDEN)
        _endpoints(backend)
    return page


def _endpoints(backend: Backend) -> None:
    """Functions for programs. Gradio takes a tuple for several values where it sees one, not a name."""
    settings = backend.settings

    async def answer(
        prompt: str,
        output: Output = "plan",
        max_new_tokens: int = settings.max_new_tokens,
        temperature: float = settings.default_temperature,
        top_p: float = settings.default_top_p,
    ) -> AsyncIterator[str]:
        """The text so far, until it is whole."""
        with backend.charged():
            body = body_of(prompt, output, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
        async with aclosing(paced(backend.answer(body))) as texts:
            async for written, _ in texts:
                yield written

    async def plan_of_task(
        user_task: str,
        context: str = "",
        acceptance: str = "",
        extra_guidance: str = "",
        difficulty: str = "",
        tags: str = "",
        model_choice: str = "",
        max_new_tokens: int = settings.max_new_tokens,
        temperature: float = settings.default_temperature,
        top_p: float = settings.default_top_p,
    ) -> AsyncIterator[tuple[str, dict[str, Any], str, str]]:
        """The text so far, its plan, whether it is valid, the prompt. One model is served, whatever is chosen."""
        task = {"context": context, "acceptance": acceptance, "guidance": extra_guidance, "difficulty": difficulty}
        knobs = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        with backend.charged():
            body = body_of(user_task, tags=tags, **task, **knobs)
        assert isinstance(body, PlanBody)
        async with aclosing(paced(backend.answer(body))) as texts:
            async for written, told in texts:
                plan = (plan_in(written) if told else None) or {}
                said = _verdict(plan, settings.tools) if told else "⏳ The plan is being written."
                yield written, plan, said, body.prompt()

    def clear_outputs() -> tuple[str, dict[str, Any], str, str]:
        """Four empty values. Nothing is kept here that could be cleared."""
        return "", {}, "", ""

    for function in (plan_of_task, clear_outputs):
        function.__annotations__["return"] = tuple[str, dict[str, Any], str, str]
    gr.api(answer, api_name="generate")
    for slash in ("", "/"):  # an older Space had names that began with a slash of their own
        gr.api(plan_of_task, api_name=f"{slash}generate_router_plan_streaming")
        gr.api(clear_outputs, api_name=f"{slash}clear_outputs")


def _verdict(plan: object, tools: Sequence[str]) -> str:
    if not plan:
        return "❌ The answer holds no plan."
    valid, findings = validate(plan, tools)
    if valid is not None and not findings:
        return "✅ The plan is valid."
    return "❌ The plan is not valid: " + "; ".join(map(str, findings))
