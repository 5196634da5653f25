"""How a predicted plan compares with the gold one: pure functions, figures from 0 to 1, means over buckets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from router_backend.jsonl import refuse
from router_backend.plan.parse import NoPlanFound, parse
from router_backend.plan.rules import QA, names, tool_of, validate

BUCKETS = ("overall", "math_first", "four_step", "has_guidance", "has_computation", "advanced")
RETAINED = ("primary_guidance", "secondary_guidance", "primary_computation", "secondary_computation")
LESS_IS_BETTER = ("length_ratio_gt_1.1", "length_ratio_gt_1.25")
DEEPEST = 64
_NAME = re.compile(r"(?<![\w/.:])/[A-Za-z][\w-]*(?![\w/-])")
_ROUTER = re.compile(r"(- \[[ xX]\] )?\s*/?router\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BucketScores:
    """The means over a bucket's rows. A metric that no row has is left out."""

    rows: int
    scores: dict[str, float]


def read_plan(text: str, *, lenient: bool = False) -> dict[str, Any] | None:
    """The JSON object that a text is; with `lenient` also the one that it holds. None where there is none."""
    try:
        value: object = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        value = None
    if lenient and not isinstance(value, dict):
        try:
            value = parse(text)
        except NoPlanFound:
            return None
    return value if isinstance(value, dict) and _within(value, DEEPEST) else None


def score_row(
    gold: dict[str, Any], predicted: dict[str, Any] | None, text: str, tools: Sequence[str]
) -> dict[str, float]:
    """All figures of one row; `*_retained` only where the gold plan has that key.

    Args:
        predicted: the plan that the text holds; without one every figure is 0.
        text: what came back, which alone decides `json_valid`.
        tools: the specialists that `rules_ok` knows.
    """
    if predicted is None:
        return dict.fromkeys(score_row(gold, {}, text, tools), 0.0)
    plan, findings = validate(predicted, tools)
    gold_metrics, metrics = part(gold, "metrics"), part(predicted, "metrics")
    gold_route, route = route_of(gold), route_of(predicted)
    wanted, used = set(filter(None, gold_route)), set(filter(None, route))
    both = len(wanted & used)
    todo, handoff = _texts(predicted, "todo_list"), predicted.get("handoff_plan")
    ratio = len(json.dumps(predicted)) / len(json.dumps(gold))
    figures: dict[str, float] = {
        "json_valid": read_plan(text) is not None,
        "plan_valid": plan is not None,
        "rules_ok": plan is not None and not findings,
        "route_tools_exact": route == gold_route,
        "route_plan_exact": predicted.get("route_plan") == gold.get("route_plan"),
        "route_tool_precision": both / len(used) if used else 0.0,
        "route_tool_recall": both / len(wanted) if wanted else 0.0,
        "todo_tool_alignment": sum(_aligned(item, wanted) for item in todo) / len(todo) if todo else 0.0,
        "todo_covers_all_tools": all(any(names(item, tool) for item in todo) for tool in wanted),
        "handoff_tools_covered": isinstance(handoff, str) and all(names(handoff, tool) for tool in wanted),
        "metrics_keys_match": isinstance(predicted.get("metrics"), dict) and metrics.keys() == gold_metrics.keys(),
        "metrics_primary_nonempty": _non_empty(metrics, "primary"),
        "metrics_secondary_nonempty": _non_empty(metrics, "secondary"),
        "expected_artifacts_nonempty": _non_empty(predicted, "expected_artifacts"),
        "acceptance_criteria_nonempty": _non_empty(predicted, "acceptance_criteria"),
        "length_ratio_gt_1.1": ratio > 1.1,
        "length_ratio_gt_1.25": ratio > 1.25,
    }
    for key in filter(gold_metrics.__contains__, RETAINED):
        figures[f"{key}_retained"] = key in metrics and _json_type(metrics[key]) == _json_type(gold_metrics[key])
    return {name: float(figure) for name, figure in figures.items()}


def buckets_of(gold: dict[str, Any]) -> tuple[str, ...]:
    keys = part(gold, "metrics").keys()
    route = route_of(gold)
    belongs = {
        "overall": True,
        "math_first": route[:1] == ["/math"],
        "four_step": len(route) >= 4,
        "has_guidance": any("guidance" in key for key in keys),
        "has_computation": any("computation" in key for key in keys),
        "advanced": gold.get("difficulty") == "advanced",
    }
    return tuple(bucket for bucket in BUCKETS if belongs[bucket])


def aggregate(rows: Iterable[tuple[dict[str, Any], dict[str, float]]]) -> dict[str, BucketScores]:
    """Gold plans with their figures → the means of every bucket, empty ones too."""
    members: dict[str, list[dict[str, float]]] = {bucket: [] for bucket in BUCKETS}
    for gold, scores in rows:
        for bucket in buckets_of(gold):
            members[bucket].append(scores)
    found: dict[str, BucketScores] = {}
    for bucket, scored in members.items():
        columns = {name: [scores[name] for scores in scored if name in scores] for name in METRICS}
        found[bucket] = BucketScores(len(scored), {name: fmean(each) for name, each in columns.items() if each})
    return found


def quality(scores: dict[str, float]) -> float:
    """One figure to order rows by: the mean of all but `route_plan_exact`, which free text never meets."""
    good = {**scores, **{name: 1 - scores[name] for name in LESS_IS_BETTER}}
    # An unreadable answer is not too long either; that must not lift it above a readable one.
    return fmean(good[name] for name in good if name != "route_plan_exact") if any(scores.values()) else 0.0


def route_of(plan: dict[str, Any]) -> list[str | None]:
    """The tool of every step; None for a step without the form of a call."""
    steps = plan.get("route_plan")
    if not isinstance(steps, list):
        return []
    return [tool_of(step) if isinstance(step, str) else None for step in steps]


def _aligned(item: str, wanted: set[str]) -> bool:
    """Whether an item of the to-do list is for a tool of the gold route, or the router's own."""
    if _ROUTER.match(item):
        return True
    first = _NAME.search(item)
    return first[0] in wanted if first else QA.lower() in item.lower()


def part(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object in an object; an empty one where there is none."""
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _texts(value: dict[str, Any], key: str) -> list[str]:
    """A list as texts: an item that is none counts as an empty one."""
    found = value.get(key)
    return [item if isinstance(item, str) else "" for item in found] if isinstance(found, list) else []


def _non_empty(value: dict[str, Any], key: str) -> bool:
    return any(item.strip() for item in _texts(value, key))


def _json_type(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


def _within(value: object, levels: int) -> bool:
    """Whether no value is nested deeper."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_within(each, levels - 1) for each in inner)


FOR_ALL = tuple(score_row({}, {}, "", ()))
METRICS = tuple(score_row({"metrics": dict.fromkeys(RETAINED)}, {}, "", ()))
