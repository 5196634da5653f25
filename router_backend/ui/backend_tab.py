"""The tab that shows what is loaded and why, how busy it is, and what was asked last."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from prometheus_client.parser import text_string_to_metric_families

from router_backend.service.metrics import Recent
from router_backend.ui.backend import Backend
from router_backend.ui.plan_view import parts
from router_backend.ui.running import HIDDEN, trouble_of

_EXCERPT = 160


def backend_tab(backend: Backend, tab: gr.Tab, here: gr.Textbox) -> gr.Timer:
    """Returns the timer that renews it, which runs while the tab is open."""
    facts = gr.HTML("", elem_id="backend")
    if backend.settings.admin_key and backend.recent() is not None:
        with gr.Row(elem_classes="knobs"):
            key = gr.Textbox(label="Admin key", type="password", scale=3, info="Loads what the settings name by now")
            reload = gr.Button("Reload", scale=1, min_width=110)
        told = gr.HTML("", elem_id="reload")
        # The guard alone judges the key, and counts wrong ones: the browser asks the API itself.
        reload.click(None, inputs=[key, here], outputs=[key, told], js="reloadRouter", api_visibility="private")
    timer = gr.Timer(2.0, active=False)

    async def on_tick() -> tuple[str, Any]:
        try:
            return await _facts(backend), gr.Timer(active=True)
        except Exception as error:
            return parts.alert("Away", trouble_of(error)), gr.Timer(active=True)

    for event in (tab.select, timer.tick):
        event(on_tick, outputs=[facts, timer], **HIDDEN)
    return timer


async def _facts(backend: Backend) -> str:
    now = await backend.health()
    values = dict(_values(await backend.metrics()))
    queue, recent = now["queue"], backend.recent()
    memory = values.get("router_process_resident_memory_bytes")
    valid, invalid = (values.get(f"router_plans_total{{{each}}}", 0) for each in ("valid", "invalid"))
    tiles = {
        "running": f"{queue['running']} of {queue['slots']} slots",
        "waiting": queue["waiting"],
        "decoding": _mean(values, "vllm:inter_token_latency_seconds", "count", "sum", "tokens/s a slot"),
        "answer": _mean(values, "vllm:e2e_request_latency_seconds", "sum", "count", "s on average"),
        "plans": f"{valid:.0f} valid, {invalid:.0f} not",
        "memory": f"{memory / 1e9:.2f} GB in this process" if memory else "–",
        "router-backend": now["version"],
    }
    if recent is not None:
        tiles["Python"] = f"{platform.python_version()}, Gradio {importlib.metadata.version('gradio')}"
    if gpu := now["gpu"]:
        tiles["GPU"] = f"{gpu['size']}, {gpu['seconds']:.0f} s used, quota {gpu['quota']}"
    return str(parts.backend(now, tiles, None if recent is None else list(map(_row, recent))))


def _row(of: Recent) -> tuple[object, ...]:
    asked = "not kept (LOG_PROMPTS)" if of.prompt is None else of.prompt[-_EXCERPT:]
    at = time.strftime("%H:%M:%S", time.localtime(of.at))
    return at, of.key or "–", of.outcome, f"{of.seconds:.1f}", of.tokens, asked


def _values(text: str) -> Iterator[tuple[str, float]]:
    """Each figure of `/metrics` by its name; of one with an `outcome`, by that too."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            outcome = sample.labels.get("outcome")
            yield f"{sample.name}{{{outcome}}}" if outcome else sample.name, sample.value


def _mean(values: dict[str, float], name: str, upper: str, lower: str, unit: str) -> str:
    below = values.get(f"{name}_{lower}", 0)
    return f"{values[f'{name}_{upper}'] / below:.1f} {unit}" if below else "–"
