"""What to say of errors, of a request that waits, and of an answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from router_backend.errors import RouterError
from router_backend.plan.parse import NoPlanFound, parse
from router_backend.plan.rules import validate

_log = logging.getLogger(__name__)


def waiting_for(now: Mapping[str, Any]) -> str:
    if now["status"] == "ok":
        full = now["queue"]["slots"] and now["queue"]["running"] >= now["queue"]["slots"]
        return "Waiting for a free slot…" if full else "Reading the request…"
    return "The model is loading; the request waits for it…"


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
