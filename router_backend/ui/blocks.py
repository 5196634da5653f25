"""The Gradio UI over `GenerationService`: a request, the text as it comes, and the plan to read."""

from __future__ import annotations

import html
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from router_backend.errors import InvalidRequest, RouterError
from router_backend.plan.parse import NoPlanFound, parse
from router_backend.plan.prompt import router_prompt
from router_backend.plan.rules import validate
from router_backend.service.health import Health
from router_backend.service.service import GenerationService
from router_backend.types import Chunk, GenerateRequest, Output, SamplingParams, is_blank
from router_backend.ui.plan_view import render_plan

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_UPDATES = 0.1
_NO_PLAN_YET = '<p class="rb-empty">The plan appears here when its answer is complete.</p>'
_NO_PLAN_IN_TEXT = '<p class="rb-empty">Raw text. If there is a plan in it, it is checked and shown here.</p>'
_EXAMPLES = (
    (
        "Spectral gap and mixing",
        "Prove that the mixing time of a lazy random walk on a d-regular expander is O(log n / (1 - λ₂)), then "
        "simulate the walk on random 3-regular graphs with up to 10⁵ vertices in NumPy, compare the measured mixing "
        "times with the bound, and find recent papers that tighten the constant for Ramanujan graphs.",
    ),
    (
        "Neural operators for Burgers",
        "Derive the discretisation error of a Fourier neural operator on the viscous Burgers equation when the "
        "training grid is coarser than the test grid. Implement the operator in JAX, train it at three resolutions, "
        "and check the derived rate against the measured error; cite published resolution-invariance results.",
    ),
    (
        "Private federated averaging",
        "Work out the Rényi differential privacy budget of federated averaging with Poisson client sampling over "
        "T rounds, convert it to (ε, δ), write a PyTorch accountant with unit tests for the known special cases, and "
        "search for attacks on gradient updates that hold at the budget found.",
    ),
)


def build_blocks(service: GenerationService) -> gr.Blocks:
    """The page. It calls the service itself, so a request waits, is refused and ends as one over HTTP does."""
    settings = service.settings
    with gr.Blocks(title="Router", analytics_enabled=False) as page:
        status = gr.HTML(_head(service.health()), elem_id="head", padding=False)
        prompt = gr.Textbox(
            label="Request",
            placeholder="What should be solved? The answer says which specialist does what, and in which order.",
            lines=4,
            max_lines=14,
            elem_id="prompt",
            autofocus=True,
        )
        gr.Examples(
            [[text] for _, text in _EXAMPLES],
            inputs=[prompt],
            example_labels=[label for label, _ in _EXAMPLES],
            label="Examples",
            elem_id="examples",
            cache_examples=False,
            api_visibility="private",
        )
        with gr.Row():
            output = gr.Radio(
                [("Plan", "plan"), ("Text", "text")],
                value="plan",
                label="Output",
                info="A whole routing plan, or raw text",
                elem_id="output",
            )
            budget = gr.Number(
                value=settings.max_new_tokens,
                precision=0,
                label="Budget (tokens)",
                info="The answer is written to fit",
                elem_id="budget",
            )
            temperature = gr.Slider(
                0,
                2,
                value=settings.default_temperature,
                step=0.05,
                label="Temperature",
                info="0 is greedy",
                elem_id="temperature",
            )
            top_p = gr.Slider(
                0.01,
                1,
                value=settings.default_top_p,
                step=0.01,
                label="Top-p",
                info="1 keeps all",
                elem_id="top-p",
            )
        with gr.Row(elem_id="buttons"):
            generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
            stop = gr.Button("Stop", interactive=False, elem_id="stop", scale=1, min_width=110)
        alert = gr.HTML(visible=False, elem_id="alert", padding=False)
        sums = gr.HTML(_line(), elem_id="sums", padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                live = gr.Textbox(
                    label="Text as it comes",
                    lines=10,
                    max_lines=22,
                    interactive=False,
                    buttons=["copy"],
                    elem_id="live",
                )
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Plan"):
                    plan_view = gr.HTML(_NO_PLAN_YET, elem_id="plan", padding=False)
                with gr.Tab("JSON"):
                    plan_json = gr.JSON(
                        label="Plan", show_label=False, open=True, max_height=900, buttons=["copy"], elem_id="json"
                    )
        ticker = gr.Timer(1.0)

        async def on_generate(
            text: str, wish: Output, limit: float | None, heat: float, nucleus: float
        ) -> AsyncIterator[dict[Any, Any]]:
            yield {
                alert: gr.HTML(visible=False),
                sums: _line(_waiting_for(service.health())),
                live: "",
                plan_view: _NO_PLAN_YET if wish == "plan" else _NO_PLAN_IN_TEXT,
                plan_json: None,
                generate: gr.Button(interactive=False),
                stop: gr.Button(interactive=True),
            }
            written = ""
            last = Chunk()
            began = shown = time.monotonic()
            trouble: str | None = None
            try:
                request = _request(text, wish, limit, heat, nucleus)
                async with aclosing(service.generate(request)) as chunks:
                    async for chunk in chunks:
                        written += chunk.text
                        last = chunk
                        now = time.monotonic()
                        if now - shown >= _SECONDS_BETWEEN_UPDATES:
                            shown = now
                            yield {live: written, sums: _line(f"Writing… <b>{now - began:.0f} s</b>")}
            except RouterError as error:
                trouble = error.message
            except Exception:
                _log.exception("unhandled error in the UI")
                trouble = "internal error; the server's log says more"
            done: dict[Any, Any] = {
                live: written,
                sums: _sums(last, time.monotonic() - began) if last.finish_reason else _line(),
                status: _head(service.health()),
                generate: gr.Button(interactive=True),
                stop: gr.Button(interactive=False),
            }
            plan = _plan_in(written) if last.finish_reason else None
            if plan is not None:
                findings = [str(finding) for finding in validate(plan, settings.tools)[1]]
                clipped = last.budget.clipped if last.budget else ()
                done |= {plan_view: render_plan(plan, clipped, findings), plan_json: plan}
            elif wish == "plan" and trouble is None:
                trouble = "there is no plan in the answer"
            if trouble is not None:
                done[alert] = gr.HTML(
                    _alert("No answer" if not written else "The answer is not whole", trouble), visible=True
                )
            yield done

        async def answer(
            prompt: str,
            output: Output = "plan",
            max_new_tokens: int = settings.max_new_tokens,
            temperature: float = settings.default_temperature,
            top_p: float = settings.default_top_p,
        ) -> AsyncIterator[str]:
            """The text so far, until it is whole."""
            written, shown = "", time.monotonic()
            try:
                request = _request(prompt, output, max_new_tokens, temperature, top_p)
                async with aclosing(service.generate(request)) as chunks:
                    async for chunk in chunks:
                        written += chunk.text
                        if time.monotonic() - shown >= _SECONDS_BETWEEN_UPDATES:
                            shown = time.monotonic()
                            yield written
            except RouterError as error:
                raise gr.Error(error.message, print_exception=False) from error
            yield written

        def on_stop() -> dict[Any, Any]:
            return {
                alert: gr.HTML(_alert("Stopped", "What was written until then stays.", "note"), visible=True),
                sums: _line(),
                generate: gr.Button(interactive=True),
                stop: gr.Button(interactive=False),
            }

        def on_tick() -> tuple[str, Any]:
            now = service.health()
            return _head(now), gr.Timer(active=now.status != "ok")

        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        running = generate.click(
            on_generate,
            inputs=[prompt, output, budget, temperature, top_p],
            outputs=[alert, sums, live, plan_view, plan_json, status, generate, stop],
            concurrency_limit=None,  # the service has the queue
            **hidden,
        )
        stop.click(on_stop, outputs=[alert, sums, generate, stop], cancels=[running], queue=False, **hidden)
        ticker.tick(on_tick, outputs=[status, ticker], queue=False, **hidden)
        gr.api(answer, api_name="generate", concurrency_limit=None)  # for programs that speak Gradio's protocol
    return page


def _request(text: str, output: Output, limit: float | None, temperature: float, top_p: float) -> GenerateRequest:
    if is_blank(text):
        raise InvalidRequest("write a request first", param="prompt")
    if "\x00" in text:
        raise InvalidRequest("the request must not hold a NUL character", param="prompt")
    if limit is None or not 1 <= limit <= 131_072:
        raise InvalidRequest("the budget must be from 1 to 131072 tokens", param="max_new_tokens")
    return GenerateRequest(
        f"ui-{secrets.token_hex(8)}",
        text if output == "text" else router_prompt(text),
        SamplingParams(int(limit), float(temperature), float(top_p), secrets.randbits(32)),
        output=output,
    )


def _plan_in(text: str) -> dict[str, object] | None:
    """The plan in an answer. Raw text may hold one too, with prose around it."""
    try:
        found = parse(text)
    except NoPlanFound:
        return None
    return found if "route_plan" in found else None


def _head(now: Health) -> str:
    title, _, why = now.reason.partition(": ")
    note = _alert(title.capitalize(), f"It is {why}.", "note") if now.stand_in else ""
    return f"<h1>Router</h1>{_status(now)}{note}"


def _status(now: Health) -> str:
    if now.status == "ok" and now.info is not None:
        info = now.info
        facts = [
            f"<b>{html.escape(info.model)}</b>",
            f"strategy {html.escape(info.strategy)}",
            f"engine {html.escape(info.engine)}",
            f"{info.slots} slot{'s' * (info.slots != 1)}",
            f"context {info.context_length} tokens",
        ]
        if now.smallest_budget:
            facts.append(f"plans from {now.smallest_budget} tokens")
        if now.gpu and now.gpu.seconds_per_plan is not None:
            facts.append(f"{now.gpu.seconds_per_plan:.1f} GPU seconds per plan ({now.gpu.size})")
        return _status_line("ok", " · ".join(facts))
    if now.status == "loading":
        return _status_line("loading", f"<b>Loading</b> · {html.escape(now.phase)} · {now.elapsed_seconds:.0f} s")
    if now.status == "idle":
        return _status_line("idle", "<b>Idle</b> · the model is loaded on the first request")
    return _status_line("failed", f"<b>{now.status.capitalize()}</b> · {html.escape(now.reason)}")


def _status_line(style: str, content: str) -> str:
    return f'<p class="rb-status"><span class="rb-dot {style}" aria-hidden="true"></span><span>{content}</span></p>'


def _waiting_for(now: Health) -> str:
    if now.status == "ok":
        return "Waiting for a free slot…" if now.info and now.running >= now.info.slots else "Reading the request…"
    return "The model is loading; the request waits for it…"


def _line(*facts: str) -> str:
    return f'<p class="rb-sums" role="status">{"".join(f"<span>{fact}</span>" for fact in facts)}</p>'


def _sums(last: Chunk, seconds: float) -> str:
    limit, used = (last.budget.limit, last.budget.used) if last.budget else (None, last.usage.completion_tokens)
    facts = [
        f"used <b>{used}</b> of <b>{limit}</b> tokens" if limit is not None else f"<b>{used}</b> tokens",
        f"<b>{seconds:.1f} s</b>",
        f"prompt <b>{last.usage.prompt_tokens}</b> tokens, {last.usage.cached_tokens} of them cached",
        f"finish: {last.finish_reason}",
    ]
    if last.timings.gpu_seconds:
        facts.insert(2, f"<b>{last.timings.gpu_seconds:.1f}</b> GPU seconds")
    if last.budget and last.budget.clipped:
        facts.append(f"{len(last.budget.clipped)} clipped: {html.escape(', '.join(last.budget.clipped))}")
    if last.budget and last.budget.retries:
        facts.append(f"{last.budget.retries} asked again")
    return _line(*facts)


def _alert(title: str, message: str, style: str = "") -> str:
    role = "status" if style else "alert"
    return f'<div class="rb-alert {style}" role="{role}"><b>{html.escape(title)}</b>{html.escape(message)}</div>'
