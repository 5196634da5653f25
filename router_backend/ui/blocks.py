"""The Gradio UI over `GenerationService`: a request, the text as it comes, and the plan to read."""

from __future__ import annotations

import html
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from router_backend.errors import InvalidRequest, RouterError
from router_backend.plan.parse import NoPlanFound, parse
from router_backend.plan.prompt import router_prompt
from router_backend.plan.rules import validate
from router_backend.server.body import Body, Text, checked
from router_backend.server.native import GenerateBody, PlanBody, Sampling, sampling_params
from router_backend.service.caller import caller
from router_backend.service.health import Health
from router_backend.service.service import GenerationService
from router_backend.settings import split_list
from router_backend.types import Chunk, GenerateRequest, Output, is_blank
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
        examples = gr.Dataset(
            components=[gr.Textbox(visible=False)],
            samples=[[text] for _, text in _EXAMPLES],
            sample_labels=[label for label, _ in _EXAMPLES],
            type="index",
            label="Examples",
            elem_id="examples",
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
            written, last = "", Chunk()
            began = time.monotonic()
            trouble: str | None = None
            try:
                async with aclosing(_written(service, _request(service, text, wish, limit, heat, nucleus))) as texts:
                    async for so_far in texts:
                        written, last = so_far
                        yield {live: written, sums: _line(f"Writing… <b>{time.monotonic() - began:.0f} s</b>")}
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
            request = _request(service, prompt, output, max_new_tokens, temperature, top_p)
            async with aclosing(_written(service, request)) as texts:
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
            body = checked(
                PlanBody,
                query=user_task,
                context=context,
                acceptance=acceptance,
                guidance=extra_guidance,
                difficulty=difficulty or None,
                tags=list(split_list(checked(_Tags, tags=tags).tags)),
                max_new_tokens=_whole(max_new_tokens),
                temperature=temperature,
                top_p=top_p,
            )
            request = _wish(service, body, body.prompt(), "plan")
            async with aclosing(_written(service, request)) as texts:
                async for written, last in texts:
                    plan = (_plan_in(written) if last.finish_reason else None) or {}
                    verdict = _verdict(plan, settings.tools) if last.finish_reason else "⏳ The plan is being written."
                    yield written, plan, verdict, request.prompt

        def clear_outputs() -> tuple[str, dict[str, Any], str, str]:
            """Four empty values. Nothing is kept here that could be cleared."""
            return "", {}, "", ""

        def on_example(index: int) -> str:
            if not isinstance(index, int) or not 0 <= index < len(_EXAMPLES):
                raise InvalidRequest("there is no such example")
            return _EXAMPLES[index][1]

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

        # What comes is checked by our own bodies: Gradio's checks tell what was sent, and print it.
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
        examples.click(on_example, inputs=[examples], outputs=[prompt], **hidden)
        running = generate.click(
            on_generate,
            inputs=[prompt, output, budget, temperature, top_p],
            outputs=[alert, sums, live, plan_view, plan_json, status, generate, stop],
            **hidden,
        )
        stop.click(on_stop, outputs=[alert, sums, generate, stop], cancels=[running], **hidden)
        ticker.tick(on_tick, outputs=[status, ticker], **hidden)
        # For programs that speak Gradio's protocol. It takes a tuple for several values where it sees one, not a name.
        for function in (plan_of_task, clear_outputs):
            function.__annotations__["return"] = tuple[str, dict[str, Any], str, str]
        gr.api(answer, api_name="generate")
        for slash in ("", "/"):  # an older Space had names that began with a slash of their own
            gr.api(plan_of_task, api_name=f"{slash}generate_router_plan_streaming")
            gr.api(clear_outputs, api_name=f"{slash}clear_outputs")
    return page


class _Tags(Body):
    tags: Text


async def _written(service: GenerationService, request: GenerateRequest) -> AsyncGenerator[tuple[str, Chunk], None]:
    """The text so far and the last chunk of it, a few times a second and at the end."""
    written, shown = "", time.monotonic()
    last = Chunk()
    async with aclosing(service.generate(request)) as chunks:
        try:
            async for last in chunks:
                written += last.text
                if time.monotonic() - shown >= _SECONDS_BETWEEN_UPDATES:
                    shown = time.monotonic()
                    yield written, last
        except RouterError:
            if written:
                yield written, last
            raise
    yield written, last


def _request(
    service: GenerationService, text: str, output: Output, limit: float | None, temperature: float, top_p: float
) -> GenerateRequest:
    if isinstance(text, str) and is_blank(text):
        raise InvalidRequest("write a request first", param="prompt")
    body = checked(
        GenerateBody,
        prompt=text,
        output=output,
        max_new_tokens=_whole(limit),
        temperature=temperature,
        top_p=top_p,
    )
    prompt = body.prompt if body.output == "text" else router_prompt(body.prompt)
    return _wish(service, body, prompt, body.output)


def _wish(service: GenerationService, body: Sampling, prompt: str, output: Output) -> GenerateRequest:
    return GenerateRequest(caller.get().request_id, prompt, sampling_params(body, service), output=output)


def _whole(limit: float | None) -> float | None:
    """What JavaScript and Python send for the same whole number."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _verdict(plan: dict[str, Any], tools: Sequence[str]) -> str:
    if not plan:
        return "❌ The answer holds no plan."
    valid, findings = validate(plan, tools)
    if valid is not None and not findings:
        return "✅ The plan is valid."
    return "❌ The plan is not valid: " + "; ".join(map(str, findings))


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
