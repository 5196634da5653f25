"""The drafter file: plans that the drafts of a fresh process begin with, one in a line.

It holds texts, not tokens, so one file serves every checkpoint; better are a checkpoint's own answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from router_backend.errors import InvalidRequest, SettingsError
from router_backend.jsonl import read_values
from router_backend.plan.rules import validate


def build(source: Path, out: Path, tools: Sequence[str]) -> tuple[int, int]:
    """Writes the valid plans of a JSONL file, each once: rows with `completion` or `text`, or plans themselves.

    Returns how many were written and how many rows were left out.

    Raises:
        InvalidRequest: no such file, a line that is no JSON, or not one valid plan in it.
    """
    plans: dict[str, None] = {}
    left_out = 0
    for _, value in read_values(source):
        plan = _plan_of(value)
        if plan is None or validate(plan, tools)[1]:
            left_out += 1
        else:
            plans[json.dumps(plan, ensure_ascii=False)] = None
    if not plans:
        raise InvalidRequest(f"{source} has no valid plan ({left_out} rows looked at)")
    out.write_text("".join(f"{plan}\n" for plan in plans), encoding="utf-8")
    return len(plans), left_out


def read(path: Path) -> Iterator[str]:
    """The plans of a drafter file, in the form in which they are served. Raises SettingsError."""
    try:
        for _, plan in read_values(path):
            yield json.dumps(plan, ensure_ascii=False)
    except InvalidRequest as error:
        raise SettingsError(f"DRAFTER={str(path)!r} is wrong: {error.message}") from None


def _plan_of(value: object) -> object | None:
    """The plan in a row, whichever way it is written."""
    if not isinstance(value, dict):
        return None
    said = value.get("completion", value.get("text", value))
    if not isinstance(said, str):
        return said
    try:
        plan: object = json.loads(said)
    except ValueError:
        return None
    return plan
