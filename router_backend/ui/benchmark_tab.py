"""The tab where a file of gold plans is run against the backend and judged as `router-backend evaluate` judges."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import gradio as gr
from pydantic import Field

from router_backend.server.body import Body, Text, checked
from router_backend.server.native import GenerateBody
from router_backend.server.sse import merged
from router_backend.ui.backend import Backend, whole
from router_backend.ui.history_tab import download
from router_backend.ui.plan_view import parts
from router_backend.ui.running import News, Running, trouble_of

if TYPE_CHECKING:
    from router_tools.evaluate import Prediction
    from router_tools.evaluate.results import Evaluation

_GOLD, _ANSWERS = Path("the gold rows"), Path("the answers")
_WORDS = {True: "pass", False: "FAIL", None: "no row"}
_HEADS = ("bucket", "rows", "figure", "value", "threshold", "")


def benchmark_tab(backend: Backend) -> None:
    if importlib.util.find_spec("router_tools") is None:
        gr.HTML(parts.empty("Benchmarks need the package router_tools, which a Space does not have."))
        return
    gr.HTML(
        '<p class="rb-intro">Asks for the plans of 24 requests from twelve fields, and compares them with gold ones as '
        "<code>router-backend evaluate</code> does.</p>"
    )
    most = backend.settings.max_body_bytes // 3
    with gr.Accordion("Rows of your own, or answers to judge", open=False):
        gold = _file("Gold rows: prompt, completion (JSONL). Empty: the 24 bundled ones", "gold", most)
        kept = _file("Answers: prompt, text (JSONL). What is here is not asked again", "answers", most)
    with gr.Row(elem_classes="knobs"):
        limit = gr.Number(24, precision=0, label="Rows", minimum=1, min_width=110)
        budget = gr.Number(backend.settings.max_new_tokens, precision=0, label="Budget of a row", min_width=110)
        heat = gr.Number(0, label="Temperature of all", step=0.1, min_width=110)
        begin = gr.Button("Run, or go on", variant="primary", elem_id="run", scale=2)
        stop = gr.Button("Stop the run", interactive=False, min_width=110)
    run = Running(begin, stop, gr.HTML(visible=False))
    progress = gr.HTML(parts.line(), elem_id="progress")
    report = gr.HTML("", elem_id="report")

    async def on_run(
        rows: str | None, answers: str | None, first: float, tokens: float, temperature: float
    ) -> AsyncIterator[News]:
        from router_tools.evaluate.results import Evaluation, load_thresholds, score
        from router_tools.evaluate.rows import BUNDLED, read_gold
        from router_tools.evaluate.run import MISSING

        yield run.begun()
        try:
            with backend.charged():
                said = checked(_Wish, gold=rows or "", answers=answers or "", rows=whole(first))
            own = said.gold.encode() if said.gold.strip() else None
            wanted = read_gold(_GOLD if own else BUNDLED, said.rows, own)
            found = _answers(said.answers)
            knobs: dict[str, object] = {"max_new_tokens": whole(tokens), "temperature": temperature, "seed": 0}
            bodies = {row.prompt: checked(GenerateBody, prompt=row.prompt, **knobs) for row in wanted}
            began, had = time.monotonic(), len(found)
            async with aclosing(_predicted(backend, bodies, found)) as steps:
                async for prompt, answer in steps:
                    found[prompt] = answer
                    told = sum(row.prompt in found for row in wanted)
                    pace = (time.monotonic() - began) / max(1, len(found) - had)
                    yield {progress: _progress(told, len(wanted), pace), kept: _lines(found)}
            scored = [score(row, found.get(row.prompt, MISSING), backend.settings.tools) for row in wanted]
            name = (await backend.health())["model"] or "the backend"
            judged = Evaluation.of(scored, load_thresholds(), source=name, sampling=knobs)
            yield {progress: _progress(len(wanted), len(wanted), 0), report: _report(judged), **run.ended()}
        except Exception as error:
            yield run.ended("The run ended", trouble_of(error))

    def on_stop() -> News:
        return run.ended("Stopped", "Run again to go on: what was answered is kept under the answers.", "note")

    run.ask(on_run, [gold, kept, limit, budget, heat], [progress, report, kept], on_stop)


class _Wish(Body):
    gold: Text
    answers: Text
    rows: Annotated[int, Field(ge=1)]


def _file(label: str, name: str, most: int) -> gr.Textbox:
    """A text that is typed, or read from a file by the browser: nothing is uploaded but the text itself."""
    with gr.Row(equal_height=True):
        text = gr.Textbox(label=label, lines=2, max_lines=4, elem_id=name, scale=3)
        gr.HTML(parts.from_file(name, most), min_width=200)
    return text


def _answers(text: str) -> dict[str, Prediction]:
    from router_tools.evaluate.predictions import read_predictions

    if not text.strip():
        return {}
    read = read_predictions(_ANSWERS, text.encode())
    return {prompt: answer for prompt, answer in read.items() if answer.error is None}


async def _predicted(
    backend: Backend, bodies: dict[str, GenerateBody], found: dict[str, Prediction]
) -> AsyncGenerator[tuple[str, Prediction], None]:
    """Answers to what is not answered yet, as they come; as many at once as there are slots. Closing it ends all."""
    room = asyncio.Semaphore(max(1, int((await backend.health())["queue"]["slots"])))
    asked = [prompt for prompt in bodies if prompt not in found]
    async with aclosing(merged([_predict(backend, bodies[prompt], room) for prompt in asked])) as answers:
        async for at, answer in answers:
            yield asked[at], answer


async def _predict(backend: Backend, body: GenerateBody, room: asyncio.Semaphore) -> AsyncGenerator[Prediction, None]:
    from router_tools.evaluate import Prediction

    async with room:
        began, text, told = time.monotonic(), "", None
        try:
            async with aclosing(backend.answer(body)) as answer:
                async for text, told in answer:  # noqa: B007 - the last one is the answer
                    pass
        except Exception as error:
            found = Prediction(error=trouble_of(error))
        else:
            known = told or {}
            tokens, clipped = (
                known.get("usage", {}).get("completion_tokens"),
                (known.get("budget") or {}).get("clipped"),
            )
            first = next((step.get("probabilities") for step in known.get("route") or ()), None)
            found = Prediction(text, time.monotonic() - began, tokens, tuple(clipped or ()), first=first)
    yield found


def _lines(found: dict[str, Prediction]) -> str:
    return "".join(json.dumps({"prompt": prompt, **asdict(each)}) + "\n" for prompt, each in found.items())


def _progress(done: int, all_of_them: int, pace: float) -> str:
    left = f"{(all_of_them - done) * pace / 60:.1f} minutes left" if done < all_of_them else "done"
    return str(parts.progress(done, all_of_them, left))


def _report(judged: Evaluation) -> str:
    from router_tools.evaluate.report import as_html, as_json

    rows = []
    for verdict in judged.verdicts:
        of, value = verdict.threshold, "–" if verdict.value is None else f"{verdict.value:.2f}"
        rows.append((of.bucket, judged.buckets[of.bucket].rows, of.metric, value, of, _WORDS[verdict.passed]))
    page, scores = as_html(judged), json.dumps(as_json(judged), indent=2)
    files = [
        download("report.html", page, "all figures, routes that differ, worst rows", "text/html"),
        download("scores.json", scores, "for programs", "application/json"),
    ]
    failed = sum(verdict.passed is False for verdict in judged.verdicts)
    return str(parts.report(failed, files, _HEADS, rows, page))
