from typing import Any

import pytest
from pydantic import ValidationError

from router_backend.plan.schema import DIFFICULTIES, KEYS, OPTIONAL_METRICS, Metrics, Plan

LISTS = ("route_plan", "expected_artifacts", "thinking_outline", "todo_list", "tags", "acceptance_criteria")
TEXTS = ("route_rationale", "handoff_plan")


def plan() -> dict[str, Any]:
    return {
        "route_plan": ["/math(x)"],
        "route_rationale": "why",
        "expected_artifacts": ["a"],
        "thinking_outline": ["1. a"],
        "handoff_plan": "/math -> router QA",
        "todo_list": ["- [ ] /math: do", "- [ ] router QA: check"],
        "difficulty": "advanced",
        "tags": ["a"],
        "acceptance_criteria": ["a"],
        "metrics": {"primary": ["a"], "secondary": ["b"]},
    }


def refused_at(value: object) -> set[tuple[int | str, ...]]:
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate(value)
    return {tuple(error["loc"]) for error in caught.value.errors()}


def test_ten_keys_in_the_order_of_the_reference() -> None:
    assert KEYS == (
        "route_plan",
        "route_rationale",
        "expected_artifacts",
        "thinking_outline",
        "handoff_plan",
        "todo_list",
        "difficulty",
        "tags",
        "acceptance_criteria",
        "metrics",
    )
    assert tuple(plan()) == KEYS


def test_the_optional_metrics() -> None:
    assert OPTIONAL_METRICS == (
        "primary_guidance",
        "secondary_guidance",
        "primary_computation",
        "secondary_computation",
        "computation_guidance",
        "guidance",
        "diagnostic",
    )


def test_a_plan_comes_back_as_it_was() -> None:
    assert Plan.model_validate(plan()).model_dump(exclude_none=True) == plan()


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_needed(key: str) -> None:
    value = plan()
    del value[key]
    assert refused_at(value) == {(key,)}


@pytest.mark.parametrize("key", ["notes", "Route_plan", "", "metrics "])
def test_unknown_keys_are_refused(key: str) -> None:
    assert refused_at({**plan(), key: "x"}) == {(key,)}
    assert refused_at({**plan(), "metrics": {**plan()["metrics"], key: "x"}}) == {("metrics", key)}


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize("wrong", [[], "text", None, {}, 1, ("a",)])
def test_lists_are_lists_with_something_in_them(key: str, wrong: object) -> None:
    assert refused_at({**plan(), key: wrong}) == {(key,)}


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize("wrong", ["", " ", "\n\t", "\u00a0\u2003", None, 1, True, ["a"]])
def test_items_are_texts_that_say_something(key: str, wrong: object) -> None:
    assert refused_at({**plan(), key: ["fine", wrong]}) == {(key, 1)}


@pytest.mark.parametrize("key", TEXTS)
@pytest.mark.parametrize("wrong", ["", "  ", None, 1, False, ["a"], b"bytes"])
def test_texts_say_something(key: str, wrong: object) -> None:
    assert refused_at({**plan(), key: wrong}) == {(key,)}


def test_difficulties() -> None:
    assert DIFFICULTIES == ("introductory", "intermediate", "advanced")
    for difficulty in DIFFICULTIES:
        assert Plan.model_validate({**plan(), "difficulty": difficulty}).difficulty == difficulty
    for wrong in ("Advanced", "hard", "", None, 3):
        assert refused_at({**plan(), "difficulty": wrong}) == {("difficulty",)}


@pytest.mark.parametrize("key", ["primary", "secondary"])
@pytest.mark.parametrize("wrong", [[], "text", None, {}, 1])
def test_metrics_are_lists_with_something_in_them(key: str, wrong: object) -> None:
    assert refused_at({**plan(), "metrics": {**plan()["metrics"], key: wrong}}) == {("metrics", key)}
    assert refused_at({**plan(), "metrics": {**plan()["metrics"], key: ["a", " "]}}) == {("metrics", key, 1)}


@pytest.mark.parametrize("key", OPTIONAL_METRICS)
def test_an_optional_metric_is_a_text_or_an_object(key: str) -> None:
    for fine in ("x", {"a": 1}, {"a": {"b": ["c"]}}):
        metrics = Metrics.model_validate({**plan()["metrics"], key: fine})
        assert metrics.model_dump(exclude_none=True)[key] == fine
    for wrong in ("", " ", 1, True, ["x"], []):
        assert {place[:2] for place in refused_at({**plan(), "metrics": {**plan()["metrics"], key: wrong}})} == {
            ("metrics", key)
        }


@pytest.mark.parametrize("key", OPTIONAL_METRICS)
def test_an_optional_metric_is_there_or_is_not_but_never_null(key: str) -> None:
    assert refused_at({**plan(), "metrics": {**plan()["metrics"], key: None}})
