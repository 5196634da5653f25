import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_backend.plan.parse import NoPlanFound, parse

PLAN: dict[str, Any] = {"route_plan": ['/math(solve "x", {y}, [z])'], "tags": ["a", "b"], "metrics": {"primary": ["p"]}}
TEXT = json.dumps(PLAN)
# A tame parser needs a few milliseconds for each of the traps, a quadratic one minutes.
trap = pytest.mark.timeout(60)


# Where a plan may stand


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"  \n{TEXT}\n ",
        json.dumps(PLAN, indent=4),
        f"Here is the plan:\n\n{TEXT}\n\nI hope this helps.",
        f"```json\n{TEXT}\n```",
        f"```\n{TEXT}\n```",
        f"```JSON {TEXT}```",
        f"Sure!\n```json\n{json.dumps(PLAN, indent=2)}\n```\nAnything else?",
        f"```json\n{TEXT}",
        f"```python\nprint('hello')\n```\nand\n```json\n{TEXT}\n```",
        f"<think>Let me see {{}}.</think>{TEXT}",
        f"<think>\nFirst {{\n</think>\n\n```json\n{TEXT}\n```",
        f"<thinking>a</thinking>{TEXT}",
        f"<reasoning>a</reasoning>{TEXT}",
        f"<THINK>a</Think>{TEXT}",
        f"the template opened the block already: {{x</think>{TEXT}",
        f"<think>one</think><think>two</think>{TEXT}",
        f"{TEXT}<think>and now?</think>",
        f"<think>never closed, and still {TEXT}",
        f"\ufeff{TEXT}",
        f"{TEXT}}}}}",
        f"]]{TEXT}",
        f"{{{{ braces }} first }} {TEXT}",
        f"an open {{ brace first, {TEXT}",
        f'an open " quote first, {TEXT}',
        f"{TEXT[:40]}\n\nLet me start again.\n{TEXT}",
    ],
)
def test_the_plan_is_found(text: str) -> None:
    assert parse(text) == PLAN


def test_a_draft_in_the_thoughts_is_not_the_answer() -> None:
    draft = json.dumps({"route_plan": ["draft"]})
    for said in (
        f"<think>{draft}</think>{TEXT}",
        f"<reasoning>{draft}</reasoning>\n{TEXT}",
        f"{draft}</think>{TEXT}",
        f"{draft}<think>hm</think>{draft}</think>{TEXT}",
    ):
        assert parse(said) == PLAN


def test_an_answer_that_is_all_thoughts_is_searched_after_all() -> None:
    assert parse(f"<think>{TEXT}</think>") == PLAN


def test_a_plan_in_a_fence_comes_before_one_in_the_prose() -> None:
    other = json.dumps({"route_plan": ["other"]})
    assert parse(f"Unlike {other} I say\n```json\n{TEXT}\n```") == PLAN


def test_strings_that_look_like_marks() -> None:
    plan = {
        "route_plan": ["} ] { [ \\", 'a "quoted }" text', "```json {} ```", ",}", ", ]", "//", "<think>", "é😀\u2028"]
    }
    for text in (json.dumps(plan), json.dumps(plan, ensure_ascii=False), f"before {json.dumps(plan)} after {{}}"):
        assert parse(text) == plan


# Several objects


def test_the_first_object_with_a_plans_first_key_wins() -> None:
    assert parse(f'{{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}} {TEXT} {{"route_plan": []}}') == PLAN


def test_else_the_largest_object_wins() -> None:
    assert parse('{"a": 1} {"b": 2, "c": 3} {"d": 4}') == {"b": 2, "c": 3}
    assert parse("{}") == {}


def test_a_plan_inside_another_object_is_not_taken_apart() -> None:
    assert parse(f'{{"plan": {TEXT}}}') == {"plan": PLAN}


def test_a_plan_after_many_small_objects_is_still_found() -> None:
    assert parse("{} " * 200 + TEXT) == PLAN


@pytest.mark.parametrize("prose", ["$\\frac{a}{b}$ ", "{x} ", "a set {1, 2} ", "f'{name}' "])
def test_a_plan_after_much_prose_with_braces_is_still_found(prose: str) -> None:
    assert parse(prose * 300 + TEXT) == PLAN


@pytest.mark.parametrize(
    "text", ["", " ", "no object", "[1, 2]", "null", '"route_plan"', "{", "}", "{'a': 1}", "{a: 1}", '{"a": }', '{"a"}']
)
def test_no_object_no_plan(text: str) -> None:
    with pytest.raises(NoPlanFound):
        parse(text)


def test_a_plan_that_was_cut_is_not_made_up() -> None:
    for end in range(1, len(TEXT)):
        try:
            found = parse(TEXT[:end])
        except NoPlanFound:
            continue
        assert found == PLAN["metrics"]


# Trailing commas


@pytest.mark.parametrize(
    "text",
    [
        '{"route_plan": ["a", "b",], "tags": ["c"],}',
        '{"route_plan": ["a", "b" ,\n ],\n"tags": ["c"\t,\n],\n}\n',
        'so: {"route_plan": ["a", "b",], "tags": ["c"]} there',
        '```json\n{"route_plan": ["a", "b"], "tags": ["c",],}\n```',
    ],
)
def test_trailing_commas_are_forgiven(text: str) -> None:
    assert parse(text) == {"route_plan": ["a", "b"], "tags": ["c"]}


def test_commas_in_strings_are_kept() -> None:
    assert parse('{"route_plan": ["a,]", "b, }", "\\",]", "\\\\",], "x": ",}",}') == {
        "route_plan": ["a,]", "b, }", '",]', "\\"],
        "x": ",}",
    }


@pytest.mark.parametrize("text", ['{"a": 1,,}', "{,}", '{"a": [1,,]}'])
def test_other_stray_commas_are_not(text: str) -> None:
    with pytest.raises(NoPlanFound):
        parse(text)


# Numbers that JSON does not have


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("tail", ["", ","])
def test_numbers_that_json_does_not_have_are_refused(number: str, tail: str) -> None:
    with pytest.raises(NoPlanFound):
        parse(f'{{"route_plan": [{number}{tail}]}}')


def test_a_number_of_ten_thousand_digits_is_refused_quietly() -> None:
    with pytest.raises(NoPlanFound):
        parse(f'{{"route_plan": [{"9" * 10_000}]}}')


# Traps


@trap
@pytest.mark.parametrize("opening", ["[", "{", '{"a":', '{"a":[', '[{"a":'])
@pytest.mark.parametrize("closing", ["", "]", "}", "}]"])
def test_deep_nesting_is_refused_quickly(opening: str, closing: str) -> None:
    text = opening * 100_000 + closing * 100_000
    try:
        found = parse(text)
    except NoPlanFound:
        pass
    else:
        assert "route_plan" not in found


def test_deep_nesting_with_nothing_in_it_is_no_plan() -> None:
    for text in ("[" * 100_000, "{" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000):
        with pytest.raises(NoPlanFound):
            parse(text)


@trap
@pytest.mark.parametrize(
    "piece",
    [
        "{",
        "{ ",
        '{"',
        '{"a',
        '{"a":1,',
        '{"a":1,}',
        "{]",
        "{a}",
        "{}",
        "{[",
        '"',
        '\\"',
        '{\\"',
        "\\",
        ",",
        ", ",
        "{,",
        "{}}",
        "<think>",
        "</think>",
        "<think></reasoning>",
        "<thinking><reasoning>",
        "```",
        "```json",
        "``` ",
        "```json\n{",
        "``",
        " ",
        "\n",
        "\u00a0",
        "<",
    ],
)
def test_no_piece_said_again_and_again_takes_long(piece: str) -> None:
    with contextlib.suppress(NoPlanFound):
        parse(piece * 500_000)


@trap
@pytest.mark.parametrize(
    ("before", "piece"),
    [("```", " "), ("```json", "\n"), ('{"', '\\"'), ('{"a', '"{'), ("{,", " "), ('{"a":[1', " ,"), ("<think>", "{")],
)
def test_no_opening_makes_a_repeated_piece_take_long(before: str, piece: str) -> None:
    with contextlib.suppress(NoPlanFound):
        parse(before + piece * 500_000)


@trap
def test_a_plan_before_a_trap_is_still_found() -> None:
    assert parse(TEXT + "{" * 500_000) == PLAN


def test_huge_texts() -> None:
    assert parse("word " * 100_000 + TEXT) == PLAN
    long = {"route_plan": ["x" * 500_000]}
    assert parse(f"Look: {json.dumps(long)}") == long
    with pytest.raises(NoPlanFound, match="characters"):
        parse(TEXT + " " * 10_000_000)


# Any JSON object, any text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.sampled_from([None, 1]))
@settings(max_examples=100, deadline=None)
def test_every_object_comes_back(value: dict[str, Any], indent: int | None) -> None:
    plan = {"route_plan": ["x"], **value}
    text = json.dumps(plan, ensure_ascii=False, indent=indent)
    if "think" not in text and "reasoning" not in text and "```" not in text:
        assert parse(f"So:\n{text}\nDone.") == plan


@given(st.text(st.sampled_from('{}[]",:\\ \n1aé`<>/t') | st.characters(), max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_gives_an_object_of_json_or_no_plan(text: str) -> None:
    try:
        found = parse(text)
    except NoPlanFound:
        return
    assert isinstance(found, dict)
    json.dumps(found, allow_nan=False)


def test_floats_stay_numbers() -> None:
    assert parse('{"route_plan": [0.5, -1e3, 1e-400]}') == {"route_plan": [0.5, -1000.0, 0.0]}
    assert math.isfinite(parse('{"route_plan": 1e308}')["route_plan"])
