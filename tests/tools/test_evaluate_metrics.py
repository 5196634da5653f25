from __future__ import annotations

import json
from typing import Any

import pytest

from router_tools.evaluate.metrics import (
    BUCKETS,
    FOR_ALL,
    LESS_IS_BETTER,
    METRICS,
    RETAINED,
    aggregate,
    buckets_of,
    quality,
    read_plan,
    route_of,
    score_row,
)

TOOLS = ("/general-search", "/math", "/code")
GOLD: dict[str, Any] = {
    "route_plan": ["/math(derive it)", "/code(write it)", "/general-search(look it up)", "/math(check it)"],
    "route_rationale": "Theory first.",
    "expected_artifacts": ["A proof.", "A script."],
    "thinking_outline": ["1. Derive.", "2. Write."],
    "handoff_plan": "/math -> /code -> /general-search -> /math -> router QA",
    "todo_list": ["- [ ] /math: prove", "- [ ] /code: write", "- [ ] /general-search: look", "- [ ] router QA: review"],
    "difficulty": "advanced",
    "tags": ["proof"],
    "acceptance_criteria": ["It holds."],
    "metrics": {
        "primary": ["proof"],
        "secondary": ["speed"],
        "primary_guidance": "Check each lemma.",
        "secondary_guidance": {"speed": "in seconds"},
        "primary_computation": "count",
        "secondary_computation": "time",
    },
}
PERFECT = {name: float(name not in LESS_IS_BETTER) for name in METRICS}


def figures(gold: dict[str, Any] = GOLD, /, **changes: object) -> dict[str, float]:
    """The figures of GOLD with some keys changed, or dropped where the change is None."""
    predicted = {key: value for key, value in {**GOLD, **changes}.items() if value is not None}
    return score_row(gold, predicted, json.dumps(predicted), TOOLS)


def differing(scores: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if value != PERFECT[name]}


def metrics_with(**changes: object) -> dict[str, Any]:
    return {key: value for key, value in {**GOLD["metrics"], **changes}.items() if value is not None}


def test_gold_against_gold_is_perfect() -> None:
    assert figures() == PERFECT
    assert list(PERFECT) == [*FOR_ALL, *(f"{key}_retained" for key in RETAINED)]


def test_no_plan_scores_nothing() -> None:
    assert score_row(GOLD, None, "no", TOOLS) == dict.fromkeys(METRICS, 0.0)


def test_retained_stands_only_where_the_gold_plan_has_the_key() -> None:
    gold = {**GOLD, "metrics": {"primary": ["a"], "secondary": ["b"]}}
    assert set(score_row(gold, gold, "", TOOLS)) == set(score_row(gold, None, "", TOOLS)) == set(FOR_ALL)


STEPS = GOLD["route_plan"]
TODO = GOLD["todo_list"]
CASES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "other words in the route": (
        {"route_plan": ["/math(prove it)", *STEPS[1:]]},
        {"route_plan_exact": 0},
    ),
    "another order": (
        {"route_plan": [STEPS[1], STEPS[0], *STEPS[2:]]},
        {"route_plan_exact": 0, "route_tools_exact": 0, "rules_ok": 0},
    ),
    "a tool missing": (
        {"route_plan": ["/math(derive it)", "/code(write it)"]},
        {"route_plan_exact": 0, "route_tools_exact": 0, "route_tool_recall": 2 / 3, "rules_ok": 0},
    ),
    "an unknown tool": (
        {"route_plan": ["/poetry(rhyme)", *STEPS]},
        {"route_plan_exact": 0, "route_tools_exact": 0, "route_tool_precision": 3 / 4, "rules_ok": 0},
    ),
    "a step that is no call": (
        {"route_plan": [*STEPS, "then rest"]},
        {"route_plan_exact": 0, "route_tools_exact": 0, "rules_ok": 0},
    ),
    "no call at all": (
        {"route_plan": ["rest"]},
        {
            "route_plan_exact": 0,
            "route_tools_exact": 0,
            "route_tool_precision": 0,
            "route_tool_recall": 0,
            "rules_ok": 0,
        },
    ),
    "no route": (
        {"route_plan": None},
        {
            "plan_valid": 0,
            "route_plan_exact": 0,
            "route_tools_exact": 0,
            "route_tool_precision": 0,
            "route_tool_recall": 0,
            "rules_ok": 0,
        },
    ),
    "an item for a foreign tool": (
        {"todo_list": ["- [ ] /poetry: rhyme", *TODO[:-1], "- [ ] router QA: review it"]},
        {"todo_tool_alignment": 4 / 5},
    ),
    "an item for no tool": (
        {"todo_list": ["- [ ] Verify the winning/losing ratio in /data/out.csv", *TODO]},
        {"todo_tool_alignment": 4 / 5},
    ),
    "a list that names none of the tools": (
        {"todo_list": ["- [ ] rest"]},
        {"todo_tool_alignment": 0, "todo_covers_all_tools": 0, "rules_ok": 0},
    ),
    "items of no text": (
        {"todo_list": [1, "- [ ] /math: prove"]},
        {"todo_tool_alignment": 1 / 2, "todo_covers_all_tools": 0, "plan_valid": 0, "rules_ok": 0},
    ),
    "no list": (
        {"todo_list": "- [ ] /math, /code, /general-search"},
        {"todo_tool_alignment": 0, "todo_covers_all_tools": 0, "plan_valid": 0, "rules_ok": 0},
    ),
    "a tool missing in the hand-off": (
        {"handoff_plan": "/math -> /codex -> /general-search -> /math -> router QA"},
        {"handoff_tools_covered": 0, "rules_ok": 0},
    ),
    "a hand-off of another type": (
        {"handoff_plan": ["/math", "/code", "/general-search"]},
        {"handoff_tools_covered": 0, "plan_valid": 0, "rules_ok": 0},
    ),
    "a metrics key too many": (
        {"metrics": metrics_with(guidance="More.")},
        {"metrics_keys_match": 0},
    ),
    "no metrics": (
        {"metrics": None},
        {
            "metrics_keys_match": 0,
            "metrics_primary_nonempty": 0,
            "metrics_secondary_nonempty": 0,
            **{f"{key}_retained": 0 for key in RETAINED},
            "plan_valid": 0,
            "rules_ok": 0,
        },
    ),
    "blank and empty lists": (
        {
            "metrics": metrics_with(primary=[], secondary=[" "]),
            "expected_artifacts": [],
            "acceptance_criteria": "It holds.",
        },
        {
            "metrics_primary_nonempty": 0,
            "metrics_secondary_nonempty": 0,
            "expected_artifacts_nonempty": 0,
            "acceptance_criteria_nonempty": 0,
            "plan_valid": 0,
            "rules_ok": 0,
        },
    ),
    "guidance of another type": (
        {"metrics": metrics_with(primary_guidance={"proof": "lemmas"}, secondary_guidance="in seconds")},
        {"primary_guidance_retained": 0, "secondary_guidance_retained": 0},
    ),
    "computation lost": (
        {"metrics": metrics_with(primary_computation=None, secondary_computation=7)},
        {
            "metrics_keys_match": 0,
            "primary_computation_retained": 0,
            "secondary_computation_retained": 0,
            "plan_valid": 0,
            "rules_ok": 0,
        },
    ),
    "a broken rule": ({"tags": ["Not Kebab"]}, {"rules_ok": 0}),
    "a key too many": ({"mood": "fine"}, {"plan_valid": 0, "rules_ok": 0}),
}


@pytest.mark.parametrize("name", CASES)
def test_each_figure(name: str) -> None:
    changes, expected = CASES[name]
    assert differing(figures(**changes)) == pytest.approx(expected)


@pytest.mark.parametrize(("share", "over"), [(1.09, (0, 0)), (1.11, (1, 0)), (1.24, (1, 0)), (1.26, (1, 1))])
def test_length_ratios(share: float, over: tuple[int, int]) -> None:
    more = "x" * round((share - 1) * len(json.dumps(GOLD, sort_keys=True)))
    scores = figures(route_rationale=GOLD["route_rationale"] + more)
    assert (scores["length_ratio_gt_1.1"], scores["length_ratio_gt_1.25"]) == over


@pytest.mark.parametrize(
    ("item", "aligned"),
    [
        ("- [ ] /math: prove", 1),
        ("- [x] Use /math to prove", 1),
        ("- [ ] /poetry: ask /math", 0),
        ("- [ ] Router QA: check /poetry", 1),
        ("- [ ] /router: final QA", 1),
        ("- [ ] /router-qa: final", 1),
        ("- [ ] router: final", 1),
        ("- [ ] Submit all to router QA", 1),
        ("- [ ] /poetry: hand over to router QA", 0),
        ("- [ ] see https://h/math", 0),
        ("", 0),
    ],
)
def test_whose_item_it_is(item: str, aligned: int) -> None:
    assert figures(todo_list=[item])["todo_tool_alignment"] == aligned


def gold_with(route: list[str], metrics: dict[str, Any], difficulty: str = "introductory") -> dict[str, Any]:
    plan = {**GOLD, "route_plan": route, "difficulty": difficulty}
    return {**plan, "metrics": {"primary": ["a"], "secondary": ["b"], **metrics}}


@pytest.mark.parametrize(
    ("gold", "buckets"),
    [
        (gold_with(["/code(a)"], {}), {"overall"}),
        (gold_with(["/math(a)", "/code(b)"], {}), {"overall", "math_first"}),
        (gold_with(["/code(a)"] * 4, {}), {"overall", "four_step"}),
        (gold_with(["/code(a)"], {"diagnostic": "d"}, "advanced"), {"overall", "advanced"}),
        (gold_with(["/code(a)"], {"guidance": "g"}), {"overall", "has_guidance"}),
        (gold_with(["/code(a)"], {"secondary_computation": "g"}), {"overall", "has_computation"}),
        (gold_with(["/code(a)"], {"computation_guidance": "g"}), {"overall", "has_guidance", "has_computation"}),
        (GOLD, set(BUCKETS)),
    ],
)
def test_buckets(gold: dict[str, Any], buckets: set[str]) -> None:
    assert set(buckets_of(gold)) == buckets


def test_means_are_over_the_rows_that_have_the_figure() -> None:
    plain = gold_with(["/code(a)"], {})
    means = aggregate([(GOLD, score_row(GOLD, GOLD, "{}", TOOLS)), (plain, score_row(plain, None, "", TOOLS))])
    assert means["overall"].rows == 2
    assert means["overall"].scores["route_tools_exact"] == 0.5
    assert means["overall"].scores["primary_guidance_retained"] == 1.0
    assert means["advanced"].rows == 1
    assert means["advanced"].scores["route_tools_exact"] == 1.0
    assert aggregate([(plain, score_row(plain, plain, "", TOOLS))])["math_first"].scores == {}


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ('{"a": 1}', True, True),
        ('  {"a": 1}\n', True, True),
        ('```json\n{"a": 1}\n```', False, True),
        ('Sure! {"a": 1,}', False, True),
        ("[1]", False, False),
        ('"text"', False, False),
        ("", False, False),
        ('{"a": NaN}', False, False),
        ('{"a": 1', False, False),
        ('{"a": ' * 100 + "1" + "}" * 100, False, False),
    ],
)
def test_reading_a_plan(text: str, strict: bool, lenient: bool) -> None:
    assert (read_plan(text) is not None) is strict
    assert (read_plan(text, lenient=True) is not None) is lenient


def test_an_absurdly_nested_text_is_no_plan() -> None:
    assert read_plan('{"a": ' * 100_000) is None


def test_json_valid_looks_at_the_text_alone() -> None:
    assert score_row(GOLD, GOLD, f"Sure: {json.dumps(GOLD)}", TOOLS) == {**PERFECT, "json_valid": 0.0}


def test_route_of_anything() -> None:
    assert route_of({"route_plan": ["/math(a)", "b", 1]}) == ["/math", None, None]
    assert route_of({"route_plan": "/math(a)"}) == []
    assert route_of({}) == []


def test_quality_orders_rows() -> None:
    nothing = score_row(GOLD, None, "", TOOLS)
    assert quality(nothing) == 0.0 < quality(figures(tags=["Not Kebab"])) < quality(figures()) == 1.0
    assert quality(figures(route_plan=["/math(other words)", *STEPS[1:]])) == 1.0
