"""The three hand-off tools of an orchestrator: sixteen required arguments each, nearly a plan."""

from __future__ import annotations

from typing import Any

NAMES = ("general_agent_handoff", "code_agent_handoff", "math_agent_handoff")
_TEXT: dict[str, Any] = {"type": "string"}
_TEXTS: dict[str, Any] = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_OBJECT: dict[str, Any] = {"anyOf": [_TEXT, {"type": "object"}]}
_ARGUMENTS: dict[str, Any] = {
    "task_summary": _TEXT,
    "thinking_outline": _TEXTS,
    "route_plan": _TEXTS,
    "route_rationale": _TEXT,
    "handoff_plan": _TEXT,
    "todo_list": _TEXTS,
    "acceptance_criteria": _TEXTS,
    "expected_artifacts": _TEXTS,
    "difficulty": _TEXT,
    "tags": _TEXTS,
    "metrics": _OBJECT,
    "compute_budget": _OBJECT,
    "repro": _TEXT,
    "citation_policy": _TEXT,
    "io_schema": _OBJECT,
    "requires_browse": {"type": "boolean"},
}
HANDOFFS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Hand the task to the {name.partition('_')[0]} agent.",
            "parameters": {"type": "object", "properties": _ARGUMENTS, "required": list(_ARGUMENTS)},
        },
    }
    for name in NAMES
]
