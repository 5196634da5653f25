"""Router data: rows with `prompt` and `completion`, checked, mended where the house's form says how, and split."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_backend.errors import InvalidRequest
from router_backend.jsonl import read_lines
from router_backend.plan.rules import QA, TODO, tool_of, tools_of, validate

_LITTLE = 20


@dataclass(frozen=True, slots=True)
class Row:
    """A request with its plan.

    Attributes:
        prompt: the whole canonical prompt.
        plan: the reference plan, mended where it broke a rule that can be mended.
        completion: the reference plan's own text.
        mended: whether `plan` says something else than `completion`.
    """

    prompt: str
    plan: dict[str, Any]
    completion: str
    mended: bool = False

    @property
    def route(self) -> tuple[str, ...]:
        return tuple(tool for step in self.plan["route_plan"] if (tool := tool_of(step)))


def read_rows(path: Path, tools: Sequence[str]) -> tuple[list[Row], Counter[str]]:
    """The rows of a JSON-lines file with `prompt` and `completion`, and how many were left out for which reason.

    Raises:
        InvalidRequest: the file cannot be read, or not one row of it can be used.
    """
    read = [_row(line, tools) for _, line in read_lines(path)]
    rows = [row for row in read if isinstance(row, Row)]
    refused = Counter(reason for reason in read if isinstance(reason, str))
    if not rows:
        raise InvalidRequest(f"{path} has no row to train on: {dict(refused)}")
    return rows, refused


def split(rows: Sequence[Row], validation: int) -> tuple[list[Row], list[Row]]:
    """Training and validation rows: the same for the same rows in any order, stratified by route.

    Every n-th row in the order of route and of the prompt's hash goes to the validation.
    """
    ordered = sorted(rows, key=lambda row: (row.route, hashlib.sha256(row.prompt.encode()).digest()))
    validation = min(validation, len(rows) // 2)
    chosen = {index * len(rows) // validation for index in range(validation)}
    return (
        [row for index, row in enumerate(ordered) if index not in chosen],
        [row for index, row in enumerate(ordered) if index in chosen],
    )


def note_of(handoff: str) -> str:
    """What a hand-off says besides its chain: the text after `router QA`, or else the notes between the arrows."""
    tail = handoff.rpartition(" -> ")[2]
    tail = (tail.partition(QA)[2] if QA in tail else tail).strip().lstrip(".:;,").strip()
    if len(tail) < _LITTLE:
        tail = "; ".join(re.findall(r"(/[\w-]+ \([^()]+)\)", handoff)).replace(" (", ": ")
    if tail and not (tail.startswith("(") and tail.endswith((")", ").")) and tail.count("(") == tail.count(")")):
        tail = f"({tail})"
    return tail


def _row(line: bytes, tools: Sequence[str]) -> Row | str:
    """The row, or why it is left out."""
    try:
        row = json.loads(line)
        prompt, completion = row["prompt"], row["completion"]
        plan = json.loads(completion)
    except (ValueError, KeyError, TypeError):
        return "no prompt and completion, or no JSON"
    if not isinstance(prompt, str) or not isinstance(completion, str) or not prompt.strip():
        return "no prompt and completion, or no JSON"
    first, findings = validate(plan, tools)
    if first is None:
        return f"schema: {findings[0].where}"
    if not findings:
        return Row(prompt, plan, completion)
    _mend(plan, tools_of(first))
    _, findings = validate(plan, tools)
    if findings:
        return f"rule {findings[0].rule}: {findings[0].message}"
    return Row(prompt, plan, completion, mended=True)


def _mend(plan: dict[str, Any], route: Sequence[str]) -> None:
    """Writes the hand-off's chain, the tags and the router's own item as `PlanScript` would force them."""
    note = note_of(plan["handoff_plan"])
    plan["handoff_plan"] = " -> ".join([*route, QA]) + (f" {note}" if note else "")
    tags = ("-".join(re.findall("[a-z0-9]+", tag.lower())) for tag in plan["tags"])
    plan["tags"] = list(dict.fromkeys(filter(None, tags)))
    last = plan["todo_list"][-1].removeprefix(TODO)
    if QA in last and not last.lower().startswith(QA.lower()):
        plan["todo_list"][-1] = f"{TODO}{QA}: {last}"
