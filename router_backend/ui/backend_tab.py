"""The tab that shows what is loaded and why, how busy it is, and what was asked last."""

from __future__ import annotations

import html
import importlib.metadata
import platform
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from prometheus_client.parser import text_string_to_metric_families

from router_backend.service.metrics import Recent
from router_backend.ui.backend import Backend
from router_backend.ui.plan_tab import HIDDEN
from router_backend.ui.plan_view import table
from router_backend.ui.status import alert, trouble_of

_EXCERPT = 160
# The guard alone judges the key, and counts wrong ones: the browser asks the API itself, at the page's own address.
_RELOAD = """async (key, here) => {
  const said = (title, text) => `<div class="rb-alert note" role="status"><b>${title}</b>${text}</div>`;
  const answer = await fetch(`${here}/admin/reload`, {method: "POST", headers: {Authorization: `Bearer ${key}`}});
  const body = await answer.json().catch(() => ({}));
  const told = document.createElement("i");
  told.textContent = answer.ok ? `${body.model}, ${body.strategy}, serves now.` : body.error?.message ?? answer.status;
  return ["", said(answer.ok ? "Reloaded" : "Not reloaded", told.innerHTML)];
}"""


def backend_tab(backend: Backend, tab: gr.Tab, here: gr.Textbox) -> gr.Timer:
    """Returns the timer that renews it, which runs while the tab is open."""
    facts = gr.HTML("", elem_id="backend")
    if backend.settings.admin_key and backend.recent() is not None:
        with gr.Row(elem_classes="knobs"):
            key = gr.Textbox(label="Admin key", type="password", scale=3, info="Loads what the settings name by now")
            reload = gr.Button("Reload", scale=1, min_width=110)
        told = gr.HTML("", elem_id="reload")
        reload.click(None, inputs=[key, here], outputs=[key, told], js=_RELOAD, api_visibility="private")
    timer = gr.Timer(2.0, active=False)

    async def on_tick() -> tuple[str, Any]:
        try:
            return await _facts(backend), gr.Timer(active=True)
        except Exception as error:
            return alert("Away", trouble_of(error)), gr.Timer(active=True)

    tab.select(on_tick, outputs=[facts, timer], **HIDDEN)
    timer.tick(on_tick, outputs=[facts, timer], **HIDDEN)
    return timer


async def _facts(backend: Backend) -> str:
    now = await backend.health()
    values = dict(_values(await backend.metrics()))
    queue, recent = now["queue"], backend.recent()
    why = [f"<h2>Why this one</h2><p>{html.escape(now['reason'])}</p>"]
    why += [alert("Warning", each, "note") for each in now["warnings"]]
    steps = [(each["candidate"], each["strategy"], each["outcome"], each["reason"], f"{each['seconds']:.1f}")
             for each in now["attempts"]]  # fmt: skip
    tiles = {
        "running": f"{queue['running']} of {queue['slots']} slots",
        "waiting": str(queue["waiting"]),
        "decoding": _rate(values, "vllm:inter_token_latency_seconds", "tokens/s"),
        "answer": _mean(values, "vllm:e2e_request_latency_seconds", "s on average"),
        "plans": f"{values.get('router_plans_total{valid}', 0):.0f} valid, "
        f"{values.get('router_plans_total{invalid}', 0):.0f} not",
        "memory": _memory(values.get("router_process_resident_memory_bytes")),
        "router-backend": now["version"],
    }
    if recent is not None:
        tiles["Python"] = f"{platform.python_version()}, Gradio {importlib.metadata.version('gradio')}"
    if gpu := now["gpu"]:
        tiles["GPU"] = f"{gpu['size']}, {gpu['seconds']:.0f} s used, quota {gpu['quota']}"
    shown = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in tiles.items())
    return (
        f'<dl class="rb-tiles">{shown}</dl>{"".join(why)}'
        f"{table('The ladder: what was tried, in order', ('checkpoint', 'precision', 'outcome', 'why', 's'), steps)}"
        f"{_recent(recent)}"
    )


def _recent(recent: list[Recent] | None) -> str:
    if recent is None:
        return "<p>The last requests are shown at the backend's own page.</p>"
    heads = ("at", "key", "outcome", "seconds", "tokens", "request")
    rows = []
    for each in recent:
        at, asked = time.strftime("%H:%M:%S", time.localtime(each.at)), (each.prompt or "")[-_EXCERPT:]
        figures = each.key or "–", each.outcome, f"{each.seconds:.1f}", each.tokens
        rows.append((at, *figures, "not kept (LOG_PROMPTS)" if each.prompt is None else asked))
    return table("The last requests", heads, rows)


def _values(text: str) -> Iterator[tuple[str, float]]:
    """Each figure of `/metrics` by its name; of one with an `outcome`, by that too."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            outcome = sample.labels.get("outcome")
            yield f"{sample.name}{{{outcome}}}" if outcome else sample.name, sample.value


def _mean(values: dict[str, float], name: str, unit: str) -> str:
    count = values.get(f"{name}_count", 0)
    return f"{values[f'{name}_sum'] / count:.1f} {unit}" if count else "–"


def _rate(values: dict[str, float], name: str, unit: str) -> str:
    total = values.get(f"{name}_sum", 0)
    return f"{values[f'{name}_count'] / total:.1f} {unit} a slot" if total else "–"


def _memory(resident: float | None) -> str:
    return f"{resident / 1e9:.2f} GB in this process" if resident else "–"
