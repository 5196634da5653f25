"""The five business rules, each a function that returns findings a person understands."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from router_backend.plan.schema import Metrics, Plan

QA = "router QA"
TODO = "- [ ] "
TAG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_STEP = re.compile(r"(/[\w-]+)\((.*)\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong: the rule's number (0: the schema), where, and a sentence."""

    rule: int
    where: str
    message: str

    def __str__(self) -> str:
        return f"rule {self.rule}, {self.where}: {self.message}" if self.rule else f"{self.where}: {self.message}"


def tool_of(step: str) -> str | None:
    """The tool that a step of the route calls, known or not; None where it has not the form of a call."""
    match = _STEP.fullmatch(step)
    return match[1] if match else None


def tools_of(plan: Plan) -> list[str]:
    """The route's tools in order, steps without the form of a call left out."""
    return [tool for step in plan.route_plan if (tool := tool_of(step))]


def names(text: str, tool: str) -> bool:
    """Whether a text names a tool, as a word of its own."""
    return re.search(rf"(?<![\w/]){re.escape(tool)}(?![\w-])", text) is not None


def check_route(plan: Plan, tools: Sequence[str]) -> Iterator[Finding]:
    """Rule 1: every step is `/tool(…)` with a known tool and a non-blank argument."""
    for index, step in enumerate(plan.route_plan):
        where = f"route_plan[{index}]"
        match = _STEP.fullmatch(step)
        if match is None:
            yield Finding(1, where, "is not of the form /tool(arguments)")
        elif match[1] not in tools:
            yield Finding(1, where, f"calls {match[1]}, which is none of {', '.join(tools)}")
        elif not match[2].strip():
            yield Finding(1, where, "has no argument")


def check_handoff(plan: Plan, tools: Sequence[str]) -> Iterator[Finding]:
    """Rule 2: the hand-off opens with the route's first tool, names its tools in order, then goes on to router QA."""
    chain = plan.handoff_plan
    route = tools_of(plan)
    if route and not re.match(rf"{re.escape(route[0])}(?![\w-])", chain):
        yield Finding(2, "handoff_plan", f"does not open with {route[0]}, the first tool of the route")
        return
    at = 0
    for index, tool in enumerate(route):
        arrow = r".*?->\s*" if index else ""
        match = re.compile(rf"{arrow}{re.escape(tool)}(?![\w-])", re.DOTALL).match(chain, at)
        if match is None:
            yield Finding(2, "handoff_plan", f"does not go on to {tool} where the route does")
            return
        at = match.end()
    if not re.search(re.escape(QA), chain[at:], re.IGNORECASE):
        yield Finding(2, "handoff_plan", f"does not go on to {QA}")


def check_todo(plan: Plan, tools: Sequence[str]) -> Iterator[Finding]:
    """Rule 3: `- [ ] ` items, every tool of the route named, none outside it, the router's own item last."""
    route = set(tools_of(plan))
    for index, item in enumerate(plan.todo_list):
        where = f"todo_list[{index}]"
        if not item.startswith(TODO):
            yield Finding(3, where, "does not start with '- [ ] '")
        for tool in tools:
            if tool not in route and names(item, tool):
                yield Finding(3, where, f"names {tool}, which the route does not use")
    for tool in sorted(route):
        if not any(names(item, tool) for item in plan.todo_list):
            yield Finding(3, "todo_list", f"has nothing to do for {tool}")
    if not plan.todo_list[-1].lower().startswith(f"{TODO}{QA}:".lower()):
        yield Finding(3, f"todo_list[{len(plan.todo_list) - 1}]", f"is not the router's own item '{TODO}{QA}: …'")


def check_form(plan: Plan, tools: Sequence[str]) -> Iterator[Finding]:
    """Rule 4: the outline is numbered from 1, tags are kebab-case and unique, no control characters."""
    for index, item in enumerate(plan.thinking_outline):
        if not re.match(rf"{index + 1}\.\s*\S", item):
            yield Finding(4, f"thinking_outline[{index}]", f"is not numbered '{index + 1}. …'")
    for index, tag in enumerate(plan.tags):
        if not TAG.fullmatch(tag):
            yield Finding(4, f"tags[{index}]", f"{tag!r} is not kebab-case")
        if tag in plan.tags[:index]:
            yield Finding(4, f"tags[{index}]", f"{tag!r} is there twice")
    for where, text in texts_of(plan.model_dump(exclude_none=True)):
        if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
            yield Finding(4, where, "holds a control character")


def check_metrics(plan: Plan, tools: Sequence[str]) -> Iterator[Finding]:
    """Rule 5: the schema keeps the keys and the non-empty lists; an optional text must say something too."""
    for key, value in plan.metrics.model_dump(exclude_none=True).items():
        for where, each in _empty(value, f"metrics.{key}"):
            yield Finding(5, where, "is blank" if isinstance(each, str) else "is empty")


def _empty(value: object, where: str) -> Iterator[tuple[str, object]]:
    """Every blank text and every list or object with nothing in it."""
    if value in ([], {}) or (isinstance(value, str) and not value.strip()):
        yield where, value
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from _empty(item, f"{where}.{key}")
    for index, item in enumerate(value) if isinstance(value, list) else ():
        yield from _empty(item, f"{where}[{index}]")


# Each rule, and the fields of a plan that it is about.
RULES: dict[Callable[[Plan, Sequence[str]], Iterator[Finding]], set[str]] = {
    check_route: {"route_plan"},
    check_handoff: {"route_plan", "handoff_plan"},
    check_todo: {"route_plan", "todo_list"},
    check_form: {"thinking_outline", "tags"},
    check_metrics: {"metrics"},
}


def texts_of(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value with its path."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            place = f"{where}.{key}" if where else str(key)
            if any(unicodedata.category(char) in ("Cc", "Cs") for char in str(key)):
                yield place, str(key)
            yield from texts_of(item, place)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from texts_of(item, f"{where}[{index}]")


def check(plan: Plan, tools: Sequence[str]) -> list[Finding]:
    """All that the five rules find."""
    return [finding for rule in RULES for finding in rule(plan, tools)]


def validate(value: Any, tools: Sequence[str]) -> tuple[Plan | None, list[Finding]]:  # noqa: ANN401 - any JSON value
    """Schema, then rules. The plan is None where the schema does not hold."""
    try:
        plan = Plan.model_validate(value)
    except ValidationError as error:
        return None, [
            Finding(0, ".".join(map(str, item["loc"])) or "plan", str(item["msg"]).removeprefix("Value error, "))
            for item in error.errors(include_url=False, include_input=False)
        ]
    return plan, check(plan, tools)


def findings_of(value: Mapping[str, Any], fields: Iterable[str], tools: Sequence[str]) -> list[Finding]:
    """What those rules find that are about these fields of a plan, the metrics' as `metrics.primary`."""
    keys = {name.partition(".")[0] for name in fields}
    held = {key: each for key, each in value.items() if key in keys}
    if "metrics" in held:
        held["metrics"] = Metrics.model_construct(**held["metrics"])
    plan = Plan.model_construct(**held)
    return [finding for rule, needed in RULES.items() if needed <= keys for finding in rule(plan, tools)]
