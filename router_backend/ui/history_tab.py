"""The tab of earlier plans. They are kept in the browser alone: what is done with them comes and goes as one text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import gradio as gr

from router_backend.errors import InvalidRequest
from router_backend.jsonl import value_of
from router_backend.plan.rules import validate
from router_backend.ui.backend import Backend
from router_backend.ui.plan_view import parts, plan_in, render_plan
from router_backend.ui.running import HIDDEN, News

_MOST = 100
_KEPT = {**HIDDEN, "js": "readHistory"}  # what the browser keeps is the first value of a function
_THUMBS = [("Good", "good"), ("Bad", "bad")]


def history_tab(backend: Backend, page: gr.Blocks, record: gr.Textbox, answered: Any) -> None:  # noqa: ANN401 - an event
    """Its history gets what `record` holds after `answered`."""
    settings = backend.settings
    kept = gr.Textbox(visible="hidden", label="History", elem_id="history")
    pick = gr.Dropdown([], label="Earlier plans", info="Type to search", elem_id="pick")
    with gr.Row(equal_height=False):
        none_yet = parts.empty("Choose one of the earlier plans. They are kept in this browser alone.")
        view = gr.HTML(none_yet, elem_id="earlier", elem_classes="rb-card")
        with gr.Column():
            thumb = gr.Radio(_THUMBS, label="Judgement")
            correction = gr.Textbox(label="Corrected plan (JSON)", lines=12, max_lines=24, elem_id="correction")
            checked = gr.HTML("", elem_id="checked")
            save = gr.Button("Save judgement and correction", variant="primary")
            told = gr.HTML("", elem_id="saved")
            links = gr.HTML("", elem_id="export")

    def on_kept(text: str, new: str = "") -> News:
        """The list and its exports, with a new row where there is one."""
        rows = _rows(text)
        if new:
            rows = [*_rows(f"[{new}]"), *rows][:_MOST]
        packed = _packed(rows, settings.max_body_bytes // 2)
        return {kept: packed, pick: gr.Dropdown(list(map(_name, rows))), links: _export(rows)}

    def on_pick(text: str, chosen: str) -> News:
        row = _find(_rows(text), chosen)
        plan = plan_in(_plan_text(row)) or {}
        pretty = json.dumps(plan, ensure_ascii=False, indent=2)
        shown = render_plan(plan, findings=_findings(plan))
        return {view: shown, thumb: row.get("thumb"), correction: pretty, told: ""}

    def on_edit(text: str) -> str:
        found = _findings(value_of(text))
        return str(parts.alert("Not a plan yet" if found else "Keeps the rules", "; ".join(found), "note"))

    def on_save(text: str, chosen: str, judged: str | None, corrected: str) -> News:
        rows = _rows(text)
        row = _find(rows, chosen)
        value = value_of(corrected)
        if found := _findings(value):
            return {told: parts.alert("Not saved", "; ".join(found))}
        row["thumb"] = judged if judged in ("good", "bad") else None
        if value != plan_in(row["text"]):
            row["correction"] = json.dumps(value, ensure_ascii=False)
        packed = _packed(rows, settings.max_body_bytes // 2)
        done = parts.alert("Saved", "It is in the export for training.", "note")
        return {kept: packed, links: _export(rows), told: done}

    def _findings(plan: object) -> list[str]:
        return [str(each) for each in validate(plan, settings.tools)[1]]

    page.load(on_kept, inputs=[kept], outputs=[kept, pick, links], **_KEPT)
    remembered = answered.then(on_kept, inputs=[kept, record], outputs=[kept, pick, links], **_KEPT)
    saved = save.click(on_save, inputs=[kept, pick, thumb, correction], outputs=[kept, links, told], **_KEPT)
    for event in (remembered, saved):
        event.then(None, inputs=[kept], js="writeHistory", api_visibility="private")
    # `input` comes twice of a choice, and again when the field is left: it would put the plan over what was corrected.
    pick.change(on_pick, inputs=[kept, pick], outputs=[view, thumb, correction, told], **_KEPT)
    correction.change(on_edit, inputs=[correction], outputs=[checked], trigger_mode="always_last", **HIDDEN)


def _rows(text: str) -> list[dict[str, Any]]:
    """The rows that a browser kept; what is not one of ours is left out."""
    texts, found = ("at", "query", "prompt", "text"), value_of(text or "[]")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return [row for row in rows if all(isinstance(row.get(key), str) for key in texts)]


def _packed(rows: list[dict[str, Any]], most: int) -> str:
    """The rows as one text, without the oldest where it would be too long to be sent."""
    while len((text := json.dumps(rows, ensure_ascii=False)).encode()) > most and rows:
        rows.pop()
    return text


def _find(rows: list[dict[str, Any]], chosen: object) -> dict[str, Any]:
    for row in rows:
        if _name(row) == chosen:
            return row
    raise InvalidRequest("choose one of the earlier plans first")


def _name(row: dict[str, Any]) -> str:
    return f"{row['at']} · {' '.join(row['query'].split())[:90]}"


def _plan_text(row: dict[str, Any]) -> str:
    return str(row.get("correction") or row["text"])


def _export(rows: list[dict[str, Any]]) -> str:
    """Two files: all that is kept, and what `router-backend train` reads: corrections, and plans that were good."""
    good = [row for row in rows if row.get("correction") or row.get("thumb") == "good"]
    trains = [{"prompt": row["prompt"], "completion": _plan_text(row)} for row in good]
    kept = download("history.jsonl", _lines(rows), f"{len(rows)} plans")
    return kept + download("training.jsonl", _lines(trains), f"{len(trains)} rows for router-backend train")


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def download(name: str, text: str, what: str, kind: str = "application/jsonl") -> str:
    """A link to a file that the page holds itself: none is kept on the server."""
    held = base64.b64encode(text.encode("utf-8", "replace")).decode()
    link: str = parts.file(name, kind, held, what)
    return link
