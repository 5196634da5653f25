"""The tab where one plan is asked for, read while it is written, and taken along."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from router_backend.errors import InvalidRequest, RouterError
from router_backend.plan.rules import validate
from router_backend.plan.schema import DIFFICULTIES
from router_backend.server.native import PlanBody, Sampling
from router_backend.ui.backend import Backend, body_of, paced
from router_backend.ui.plan_view import copies, handoffs, render_budget, render_plan, so_far
from router_backend.ui.status import alert, away, head, line, plan_in, sums, trouble_of, waiting_for

# What comes is checked by our own bodies: Gradio's checks tell what was sent, and print it.
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
NO_PLAN_YET = '<p class="rb-empty">The plan appears here while it is written.</p>'
_NOTHING_YET = '<p class="rb-empty">What the plan cost, its hand-offs and its texts to copy.</p>'
_RAW = '<p class="rb-empty">Raw text. If there is a plan in it, it is checked and shown here.</p>'
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


@dataclass(frozen=True)
class PlanTab:
    """What other parts of the page hang on: `done` comes after an answer, and `record` is then its row of history."""

    prompt: gr.Textbox
    record: gr.Textbox
    done: Any


def plan_tab(backend: Backend, status: gr.HTML, here: gr.Textbox) -> PlanTab:
    """Builds the tab. `here` holds the address of the API as the browser knows it."""
    settings = backend.settings
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
    with gr.Accordion("Context, criteria, guidance, difficulty, tags", open=False, elem_id="more"):
        with gr.Row():
            context = gr.Textbox(label="Context", lines=2, info="What is known already")
            acceptance = gr.Textbox(label="Acceptance criteria", lines=2, info="What an answer must do")
            guidance = gr.Textbox(label="Guidance", lines=2, info="How to go about it")
        with gr.Row():
            difficulty = gr.Radio(
                [("any", ""), *((each, each) for each in DIFFICULTIES)], value="", label="Difficulty", scale=2
            )
            tags = gr.Textbox(label="Tags", info="Separated by commas")
    with gr.Row(elem_classes="knobs"):
        output = gr.Radio(
            [("Plan", "plan"), ("Text", "text")],
            value="plan",
            label="Output",
            info="A plan, or raw text",
            min_width=150,
        )
        budget = gr.Number(
            value=settings.max_new_tokens,
            precision=0,
            label="Budget (tokens)",
            info="The answer is written to fit",
            min_width=150,
            elem_id="budget",
        )
        temperature = gr.Slider(
            0, 2, value=settings.default_temperature, step=0.05, label="Temperature", info="0 is greedy"
        )
        top_p = gr.Slider(0.01, 1, value=settings.default_top_p, step=0.01, label="Top-p", info="1 keeps all")
        seed = gr.Textbox(label="Seed", info="Empty: a new one each time", min_width=150)
    with gr.Row(elem_id="buttons"):
        generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
        stop = gr.Button("Stop", interactive=False, elem_id="stop", scale=1, min_width=110)
    notice = gr.HTML(visible=False, elem_id="alert")
    result = gr.HTML(line(), elem_id="sums")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            view = gr.HTML(NO_PLAN_YET, elem_id="plan", elem_classes="rb-card")
        with gr.Column(scale=2, min_width=320):
            aside = gr.HTML(_NOTHING_YET, elem_id="aside", elem_classes="rb-card")
            live = gr.Textbox(
                label="Text as it comes",
                lines=6,
                max_lines=16,
                interactive=False,
                buttons=["copy"],
                elem_id="live",
            )
    record = gr.Textbox(visible="hidden", label="The last answer", elem_id="record")

    async def on_generate(
        query: str, more: str, good: str, how: str, level: str, names: str, wish: str, *knobs: float | None
    ) -> AsyncIterator[dict[Any, Any]]:
        *sampling, address = knobs
        begun: dict[Any, Any] = {
            notice: gr.HTML(visible=False),
            result: line("Asking…"),
            live: "",
            view: render_plan({}, waits=True) if wish == "plan" else _RAW,
            aside: _NOTHING_YET,
            record: "",
            generate: gr.Button(interactive=False),
            stop: gr.Button(interactive=True),
        }
        yield begun
        written, told, began, trouble = "", None, time.monotonic(), None
        try:
            names_of = (
                "context",
                "acceptance",
                "guidance",
                "difficulty",
                "max_new_tokens",
                "temperature",
                "top_p",
                "seed",
            )
            fields = dict(zip(names_of, (more, good, how, level, *sampling), strict=True))
            body = body_of(query, wish, names, **fields)
            yield {result: line(waiting_for(await backend.health()))}
            async with aclosing(paced(backend.answer(body))) as answer:
                async for written, told in answer:  # noqa: B007 - what the last one told
                    news = {live: written, result: line(f"Writing… <b>{time.monotonic() - began:.0f} s</b>")}
                    yield news | ({view: render_plan(so_far(written), waits=True)} if wish == "plan" else {})
        except Exception as error:
            trouble = trouble_of(error)
        done: dict[Any, Any] = {
            live: written,
            result: sums(told, time.monotonic() - began) if told else line(),
            status: await status_of(backend),
            generate: gr.Button(interactive=True),
            stop: gr.Button(interactive=False),
        }
        plan = plan_in(written) if told else None
        if plan is not None and told is not None:
            found = validate(plan, settings.tools)[1]
            clipped = (told.get("budget") or {}).get("clipped", ())
            done[view] = render_plan(plan, clipped, list(map(str, found)), odds=odds_of(told))
            done[aside] = aside_of(plan, told, body, str(address), not found)
            done[record] = _row(body, written, told)
        elif wish == "plan":
            trouble = trouble or "there is no plan in the answer"
            done[view] = render_plan(so_far(written)) if so_far(written) else NO_PLAN_YET
        if trouble is not None:
            done[notice] = gr.HTML(
                alert("No answer" if not written else "The answer is not complete", trouble), visible=True
            )
        yield done

    def on_example(index: int) -> str:
        if not isinstance(index, int) or not 0 <= index < len(_EXAMPLES):
            raise InvalidRequest("there is no such example")
        return _EXAMPLES[index][1]

    def on_stop() -> dict[Any, Any]:
        return {
            notice: gr.HTML(alert("Stopped", "What was written until then stays.", "note"), visible=True),
            result: line(),
            generate: gr.Button(interactive=True),
            stop: gr.Button(interactive=False),
        }

    examples.click(on_example, inputs=[examples], outputs=[prompt], **HIDDEN)
    fields_in = [
        prompt,
        context,
        acceptance,
        guidance,
        difficulty,
        tags,
        output,
        budget,
        temperature,
        top_p,
        seed,
        here,
    ]
    shown = [notice, result, live, view, aside, record, status, generate, stop]
    running = generate.click(on_generate, inputs=fields_in, outputs=shown, **HIDDEN)
    stop.click(on_stop, outputs=[notice, result, generate, stop], cancels=[running], **HIDDEN)
    return PlanTab(prompt, record, running)


async def status_of(backend: Backend) -> str:
    try:
        return head(await backend.health())
    except RouterError as error:
        return away(error)


def odds_of(details: Mapping[str, Any]) -> list[float | None]:
    """The probability of each step's tool, where the report tells it; of a backend elsewhere it may be anything."""
    steps = details.get("route")
    found = [each.get("probabilities") if isinstance(each, dict) else None for each in steps or ()]
    odds = [
        odd.get(step.get("tool")) if isinstance(odd, dict) else None
        for odd, step in zip(found, steps or (), strict=True)
    ]
    return [each if isinstance(each, float) else None for each in odds]


def aside_of(plan: dict[str, Any], details: dict[str, Any], body: Sampling, address: str, valid: bool) -> str:
    """What stands beside a plan: its verdict, its budget, its hand-offs, and itself and its request to copy."""
    verdict = "Keeps all five rules" if valid else "Breaks rules: see the findings"
    asked = {**body.model_dump(exclude_none=True, exclude={"stream", "details"}), "seed": details["seed"]}
    url = f"{address}/v1/{'plan' if isinstance(body, PlanBody) else 'generate'}"
    text = json.dumps(asked, ensure_ascii=False)
    curl = f"curl {url} -H 'Content-Type: application/json' -d {shlex.quote(text)}"
    python = f"import httpx\n\nanswer = httpx.post({url!r}, json={asked!r}, timeout=300)\nprint(answer.json())"
    taken = [("JSON", json.dumps(plan, ensure_ascii=False, indent=2)), ("curl", curl), ("Python", python)]
    return (
        f'<p class="rb-verdict {"yes" if valid else "no"}">{verdict}</p>'
        f"{render_budget(details['budget']) if details.get('budget') else ''}"
        f"<h2>Hand-offs</h2>{copies(handoffs(plan))}<h2>Copy as</h2>{copies(taken)}"
    )


def _row(body: Sampling, text: str, details: dict[str, Any]) -> str:
    """A row of history: what was asked, what came, what it cost."""
    prompt = body.prompt() if isinstance(body, PlanBody) else body.model_dump()["prompt"]
    query = body.query if isinstance(body, PlanBody) else prompt
    tokens = details["usage"]["completion_tokens"]
    row = {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "query": query, "prompt": prompt, "text": text, "tokens": tokens}
    return json.dumps({**row, "model": details["model"], "seed": details["seed"]}, ensure_ascii=False)
