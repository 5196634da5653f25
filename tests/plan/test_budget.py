"""The arithmetic of a budget, apart from any plan; and what 600 tokens buy."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_backend.plan.budget import Costs, Pending, allot, floor, level_for
from router_backend.plan.form import LEVELS, SHAPES

TOOLS = ("/general-search", "/math", "/code")
ROUTE = ("/general-search", "/math", "/code")
QUICK = settings(max_examples=150, deadline=None)
TEXTS = st.lists(
    st.builds(Pending, st.just("f"), st.integers(0, 40), st.integers(10, 80), st.integers(0, 10)), max_size=9
)


def count(text: str) -> int:
    """Tokens as common checkpoints have them, roughly: (parts of) words, and runs of marks."""
    return len(re.findall(r"\w{1,8}|[^\w\s]+", text))


COSTS = Costs(count, TOOLS)


@given(extra=st.integers(0, 500), text=TEXTS.filter(bool), later=TEXTS, few=TEXTS, closing=st.integers(1, 5))
@QUICK
def test_a_text_never_takes_what_must_still_come(
    extra: int, text: list[Pending], later: list[Pending], few: list[Pending], closing: int
) -> None:
    budget = floor(few) + closing + text[0].least + extra
    tokens = allot(budget, text[0], [*few, *later], few, closing)
    assert text[0].least <= tokens <= budget - floor(few) - closing


@given(st.integers(0, 2048), st.integers(0, 300), st.sampled_from(sorted(SHAPES)))
@QUICK
def test_more_budget_is_never_a_poorer_plan(budget: int, more: int, field: str) -> None:
    assert level_for(budget, COSTS, field, ROUTE) <= level_for(budget + more, COSTS, field, ROUTE)


@given(st.integers(0, 2048), st.integers(0, 5), st.sampled_from(sorted(SHAPES)))
@QUICK
def test_what_is_written_needs_no_more_room(budget: int, written: int, field: str) -> None:
    assert level_for(budget, COSTS, field, ROUTE, written) <= level_for(budget, COSTS, field, ROUTE, written + 1)


@pytest.mark.parametrize("field", SHAPES)
def test_levels_go_from_few_and_short_to_what_reference_plans_have(field: str) -> None:
    shape = SHAPES[field]
    sizes = [len(COSTS.texts(field, ROUTE, level)) for level in range(LEVELS + 1)]
    lengths = [shape.length(level) for level in range(LEVELS + 1)]
    assert sizes == sorted(sizes) and lengths == sorted(lengths)
    assert sizes[-1] == shape.items and lengths[-1] == shape.usual
    assert shape.least <= lengths[0] and shape.items <= shape.most


@pytest.mark.parametrize(("budget", "least"), [(600, 2), (1400, 5)])
def test_lists_are_planned_with_more_than_one_item(budget: int, least: int) -> None:
    level = level_for(budget, COSTS, "route_plan", ROUTE)
    for field in ("expected_artifacts", "thinking_outline", "todo_list"):
        assert len(COSTS.texts(field, ROUTE, level)) >= least
