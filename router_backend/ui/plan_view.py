"""HTML of the page, from templates that escape every text: its parts, and a plan as a person wants to read it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic_core import from_json

from router_backend.plan.parse import NoPlanFound, parse
from router_backend.plan.rules import QA

_STEP = re.compile(r"\s*(/[\w-]+)\((.*?)\)?\s*", re.DOTALL)
_TODO = re.compile(r"\s*- \[( |x|X)\] (?:(/[\w-]+|router QA):\s*)?(.*)", re.DOTALL)
_NUMBERED = re.compile(r"\s*(\d+)\.\s+(.*)", re.DOTALL)
_BULLET = re.compile(r"\s*-\s+(?!\[)")
_HUES = 6
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
parts: Any = _TEMPLATES.get_template("parts.html").module  # each a function that gives safe HTML


def render_plan(
    plan: Mapping[str, object],
    clipped: Collection[str] = (),
    findings: Sequence[str] = (),
    *,
    differs: Collection[str] = (),
    odds: Sequence[float | None] = (),
    waits: bool = False,
) -> str:
    """The plan as HTML. It may lack keys or hold wrong types: what is there is shown.

    `clipped` and `differs` have names such as `route_rationale` and `todo_list[2]`; `findings` is what a check of the
    plan said; `odds` are the probabilities of the steps' tools; `waits` keeps the place of what is not written yet.
    """
    shown = _TEMPLATES.get_template("plan.html").render(
        texts=lambda key: _texts(plan.get(key)),
        texts_of=_texts,
        metrics=plan.get("metrics"),
        clipped=clipped,
        findings=findings,
        differs=differs,
        odds=odds,
        waits=waits,
        STEP=_STEP,
        TODO=_TODO,
        NUMBERED=_NUMBERED,
        without_bullet=lambda text: _BULLET.sub("", text, count=1),
        hue=lambda tool: zlib.crc32(tool.encode()) % _HUES,  # by name: a tool looks the same in every plan
    )
    return shown.strip()


def so_far(text: str) -> dict[str, object]:
    """The fields of a plan whose text is not complete yet."""
    try:
        found = from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def plan_in(text: str) -> dict[str, Any] | None:
    """The plan in an answer. Raw text may hold one too, with prose around it."""
    try:
        found = parse(text)
    except NoPlanFound:
        return None
    return found if "route_plan" in found else None


def render_budget(budget: Mapping[str, Any]) -> str:
    """A bar for each field: the tokens that it was given, those that it used, and what was truncated in it."""
    fields: dict[str, Any] = budget.get("fields") or {}
    most = max((max(each["given"], each["used"]) for each in fields.values()), default=0) or 1
    clipped = [name.partition("[")[0] for name in budget.get("clipped", ())]
    shown: str = parts.budget(fields, clipped, most)
    return shown


def handoffs(plan: Mapping[str, object]) -> list[tuple[str, str]]:
    """For each step of the route a title, and what its specialist is told: task, to-dos, and from whom it comes."""
    steps = [match for text in _texts(plan.get("route_plan")) if (match := _STEP.fullmatch(text))]
    todos = [match for text in _texts(plan.get("todo_list")) if (match := _TODO.fullmatch(text))]
    found = []
    for at, step in enumerate(steps):
        before = f"{steps[at - 1][1]}: {steps[at - 1][2]}" if at else "the request itself"
        after = steps[at + 1][1] if at + 1 < len(steps) else QA
        mine = [f"- [ ] {todo[3]}" for todo in todos if todo[2] == step[1]]
        told = [f"You are {step[1]}, step {at + 1} of {len(steps)}.", f"Task: {step[2]}", f"You get: {before}"]
        told += ["To do:", *mine] if mine else []
        found.append((f"{at + 1}. {step[1]}", "\n".join([*told, f"Hand over to: {after}"])))
    return found


def _texts(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    if isinstance(value, Mapping):
        return [f"{key}: {item}" for key, item in value.items()]
    return [str(value)]
