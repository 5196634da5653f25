"""Lines that say how things stand: the page's head, alerts, and what an answer came to."""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from router_backend.errors import RouterError
from router_backend.plan.parse import NoPlanFound, parse
from router_backend.plan.rules import validate

_log = logging.getLogger(__name__)


def head(now: Mapping[str, Any]) -> str:
    """What `/health` says, in a line; with what people ought to know of a stand-in."""
    title, _, why = str(now["reason"]).partition(": ")
    note = alert(title.capitalize(), f"It is {why}.", "note") if now.get("stand_in") else ""
    return f"<h1>Router</h1>{_status(now)}{note}"


def away(error: RouterError) -> str:
    """The head while a backend elsewhere cannot be asked."""
    return f"<h1>Router</h1>{_status_line('failed', f'<b>Away</b> · {html.escape(error.message)}')}"


def _status(now: Mapping[str, Any]) -> str:
    state, queue = now["status"], now["queue"]
    if state == "ok":
        facts = [
            f"<b>{html.escape(str(now['model']))}</b>",
            f"strategy {html.escape(now['strategy'])}",
            f"engine {html.escape(str(now['engine']))}",
            f"{queue['slots']} slot{'s' * (queue['slots'] != 1)}",
            f"context {now['context_length']} tokens",
        ]
        if now["smallest_budget"]:
            facts.append(f"plans from {now['smallest_budget']} tokens")
        gpu = now.get("gpu") or {}
        if gpu.get("seconds_per_plan") is not None:
            facts.append(f"{gpu['seconds_per_plan']:.1f} GPU seconds per plan ({gpu['size']}, quota {gpu['quota']})")
        return _status_line("ok", " · ".join(facts))
    if state == "loading":
        since = f" · {now['elapsed_seconds']:.0f} s" if "elapsed_seconds" in now else ""
        phase = html.escape(now.get("phase", now["reason"]))
        return _status_line("loading", f"<b>Loading</b> · {phase}{since}")
    if state == "idle":
        return _status_line("idle", "<b>Idle</b> · the model is loaded on the first request")
    return _status_line("failed", f"<b>{html.escape(state.capitalize())}</b> · {html.escape(now['reason'])}")


def _status_line(style: str, content: str) -> str:
    return f'<p class="rb-status"><span class="rb-dot {style}" aria-hidden="true"></span><span>{content}</span></p>'


def waiting_for(now: Mapping[str, Any]) -> str:
    if now["status"] == "ok":
        full = now["queue"]["slots"] and now["queue"]["running"] >= now["queue"]["slots"]
        return "Waiting for a free slot…" if full else "Reading the request…"
    return "The model is loading; the request waits for it…"


def line(*facts: str) -> str:
    return f'<p class="rb-sums" role="status">{"".join(f"<span>{fact}</span>" for fact in facts)}</p>'


def sums(details: Mapping[str, Any], seconds: float) -> str:
    budget, usage = details.get("budget"), details["usage"]
    tokens, cached = usage["completion_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
    facts = [
        f"used <b>{budget['used']}</b> of <b>{budget['limit']}</b> tokens" if budget else f"<b>{tokens}</b> tokens",
        f"<b>{seconds:.1f} s</b>",
        f"prompt <b>{usage['prompt_tokens']}</b> tokens, {cached} of them cached",
        f"seed {details['seed']}",
        f"finish: {html.escape(str(details['finish_reason']))}",
    ]
    if gpu := details["timings"].get("gpu_seconds"):
        facts.insert(2, f"<b>{gpu:.1f}</b> GPU seconds")
    if budget and budget["clipped"]:
        facts.append(f"{len(budget['clipped'])} truncated")
    if budget and budget["retries"]:
        facts.append(f"{budget['retries']} asked again")
    return line(*facts)


def alert(title: str, message: str, style: str = "") -> str:
    role = "status" if style else "alert"
    return f'<div class="rb-alert {style}" role="{role}"><b>{html.escape(title)}</b>{html.escape(message)}</div>'


def trouble_of(error: Exception) -> str:
    """What went wrong and what to do; of a defect of ours the log says more."""
    if not isinstance(error, RouterError):
        _log.exception("unhandled error in the UI")
        return "internal error; the server's log says more"
    later = f" Try again in {error.retry_after:.0f} s." if error.retry_after else ""
    return error.message + later


def plan_in(text: str) -> dict[str, Any] | None:
    """The plan in an answer. Raw text may hold one too, with prose around it."""
    try:
        found = parse(text)
    except NoPlanFound:
        return None
    return found if "route_plan" in found else None


def verdict(plan: object, tools: Sequence[str]) -> str:
    if not plan:
        return "❌ The answer holds no plan."
    valid, findings = validate(plan, tools)
    if valid is not None and not findings:
        return "✅ The plan is valid."
    return "❌ The plan is not valid: " + "; ".join(map(str, findings))
