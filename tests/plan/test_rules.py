from collections.abc import Callable
from typing import Any

import pytest

from router_backend.plan.rules import QA, TODO, Finding, check, names, texts_of, tool_of, tools_of, validate
from router_backend.plan.schema import OPTIONAL_METRICS, Plan

TOOLS = ("/general-search", "/math", "/code")
EIGHT = ("/a", "/b", "/c", "/d", "/e", "/f", "/g", "/h")
Change = Callable[[dict[str, Any]], object]


def good_plan() -> dict[str, Any]:
    return {
        "route_plan": ['/general-search(query="norms", mode=web)', "/math(prove the bound)", "/math(check it)"],
        "route_rationale": "Search first, then prove.",
        "expected_artifacts": ["a proof"],
        "thinking_outline": ["1. Search", "2. Prove", "3. Check"],
        "handoff_plan": "/general-search -> /math -> /math -> router QA",
        "todo_list": ["- [ ] /general-search: find it", "- [ ] /math: prove it", "- [ ] router QA: check all"],
        "difficulty": "advanced",
        "tags": ["linear-algebra", "norms"],
        "acceptance_criteria": ["the proof holds"],
        "metrics": {"primary": ["steps that hold"], "secondary": ["length"]},
    }


def findings(change: Change, tools: tuple[str, ...] = TOOLS) -> list[Finding]:
    value = good_plan()
    change(value)
    plan, found = validate(value, tools)
    assert plan is not None, found
    assert found == check(plan, tools)
    return found


def put(key: str, value: object) -> Change:
    return lambda plan: plan.__setitem__(key, value)


def told(change: Change) -> list[str]:
    return [str(finding) for finding in findings(change)]


def test_a_good_plan_has_no_findings() -> None:
    assert findings(lambda plan: None) == []


# Rule 1


@pytest.mark.parametrize(
    "step",
    [
        "math(x)",
        "/math",
        "/math x",
        "/math(x",
        "/math x)",
        " /math(x)",
        "/math(x) ",
        "/math (x)",
        "then /math(x)",
        "(x)",
        "/(x)",
        "//math(x)",
        "/math/code(x)",
    ],
)
def test_a_step_has_the_form_of_a_call(step: str) -> None:
    plan = good_plan()
    plan["route_plan"][1] = step
    parsed, found = validate(plan, TOOLS)
    assert parsed is not None
    assert Finding(1, "route_plan[1]", "is not of the form /tool(arguments)") in found
    assert tool_of(step) is None


@pytest.mark.parametrize("step", ["/maths(x)", "/Math(x)", "/web(x)", "/math-2(x)"])
def test_a_step_calls_a_known_tool(step: str) -> None:
    found = told(lambda plan: plan["route_plan"].append(step))
    tool = step.partition("(")[0]
    assert f"rule 1, route_plan[3]: calls {tool}, which is none of /general-search, /math, /code" in found


@pytest.mark.parametrize("step", ["/math()", "/math( )", "/math(\u00a0)"])
def test_a_step_has_an_argument(step: str) -> None:
    found = findings(lambda plan: plan["route_plan"].__setitem__(2, step))
    assert found == [Finding(1, "route_plan[2]", "has no argument")]


@pytest.mark.parametrize("step", ["/math(x)", "/math(f(x))", "/math())", "/math(a\u2028b)", '/math("日本", mode=rag)'])
def test_arguments_may_hold_anything(step: str) -> None:
    assert findings(lambda plan: plan["route_plan"].__setitem__(2, step)) == []
    assert tool_of(step) == "/math"


def test_tools_of_a_plan_keep_order_and_repetition() -> None:
    plan = Plan.model_validate({**good_plan(), "route_plan": ["/math(a)", "no call", "/web(b)", "/math(c)"]})
    assert tools_of(plan) == ["/math", "/web", "/math"]


# Rule 2


@pytest.mark.parametrize(
    "chain",
    [
        "/general-search -> /math -> /math -> router QA",
        "/general-search -> /math -> /math -> Router QA.",
        "/general-search (finds) -> /math (derives) -> /math (checks) -> router QA; then done",
        "/general-search finds, it hands on -> /math -> some notes -> /math -> final router QA",
        "/general-search -> /math -> /math\u2028-> router QA",
    ],
)
def test_good_hand_offs(chain: str) -> None:
    assert findings(put("handoff_plan", chain)) == []


@pytest.mark.parametrize(
    "chain",
    [
        "/math -> /general-search -> /math -> router QA",
        "First /general-search -> /math -> /math -> router QA",
        " /general-search -> /math -> /math -> router QA",
        "/general-search-2 -> /math -> /math -> router QA",
        "router QA",
    ],
)
def test_the_hand_off_opens_with_the_first_tool(chain: str) -> None:
    assert findings(put("handoff_plan", chain)) == [
        Finding(2, "handoff_plan", "does not open with /general-search, the first tool of the route")
    ]


@pytest.mark.parametrize(
    "chain",
    [
        "/general-search -> router QA",
        "/general-search -> /math -> router QA",
        "/general-search, /math, /math -> router QA",
        "/general-search -> maths -> /mathematics -> router QA",
        "/general-search -> /math-2 -> /math -> router QA",
        "/general-search -> /math and /math -> router QA",
    ],
)
def test_the_hand_off_names_the_tools_in_order(chain: str) -> None:
    assert findings(put("handoff_plan", chain)) == [
        Finding(2, "handoff_plan", "does not go on to /math where the route does")
    ]


@pytest.mark.parametrize("end", ["", " -> done", " -> QA", " -> router", " -> routerQA"])
def test_the_hand_off_goes_on_to_router_qa(end: str) -> None:
    chain = f"/general-search -> /math -> /math{end}"
    assert findings(put("handoff_plan", chain)) == [Finding(2, "handoff_plan", "does not go on to router QA")]


def test_router_qa_before_the_last_tool_is_too_early() -> None:
    chain = "/general-search -> router QA -> /math -> /math"
    assert findings(put("handoff_plan", chain)) == [Finding(2, "handoff_plan", "does not go on to router QA")]


# Rule 3


def test_items_are_open_boxes() -> None:
    for item in ("/math: prove", "- /math: prove", "- [x] /math: prove", "-[ ] /math: prove", "* [ ] /math: prove"):
        items = good_plan()["todo_list"]
        found = findings(put("todo_list", [items[0], item, items[2]]))
        assert found == [Finding(3, "todo_list[1]", "does not start with '- [ ] '")]


def test_every_tool_of_the_route_has_something_to_do() -> None:
    found = told(lambda plan: plan["todo_list"].__setitem__(1, "- [ ] somebody: prove it"))
    assert found == ["rule 3, todo_list: has nothing to do for /math"]


@pytest.mark.parametrize("item", ["/code: run it", "/math: then ask /code.", "/math: (/code)", "/math: /code"])
def test_no_item_names_a_known_tool_outside_the_route(item: str) -> None:
    found = findings(lambda plan: plan["todo_list"].insert(1, f"{TODO}{item}"))
    assert found == [Finding(3, "todo_list[1]", "names /code, which the route does not use")]


@pytest.mark.parametrize(
    "item", ["/math: src/code", "/math: /coder", "/math: /code-review", "/math: code", "/math: /web"]
)
def test_what_only_looks_like_a_tool(item: str) -> None:
    assert findings(lambda plan: plan["todo_list"].insert(1, f"{TODO}{item}")) == []


@pytest.mark.parametrize(
    "last", ["- [ ] /math: check", "- [ ] QA: check", "- [ ] the router QA: check", "- [ ] router QA"]
)
def test_the_last_item_is_the_routers_own(last: str) -> None:
    found = findings(lambda plan: plan["todo_list"].__setitem__(2, last))
    assert found == [Finding(3, "todo_list[2]", "is not the router's own item '- [ ] router QA: …'")]


def test_the_routers_item_may_be_written_with_a_capital() -> None:
    assert findings(lambda plan: plan["todo_list"].__setitem__(2, "- [ ] Router QA: check")) == []


def test_the_routers_item_has_to_be_the_last() -> None:
    found = findings(lambda plan: plan["todo_list"].reverse())
    assert [(finding.rule, finding.where) for finding in found] == [(3, "todo_list[2]")]


# Rule 4


@pytest.mark.parametrize("outline", [["1. a"], ["1.a", "2. b"], [f"{n}. item" for n in range(1, 12)]])
def test_good_outlines(outline: list[str]) -> None:
    assert findings(put("thinking_outline", outline)) == []


@pytest.mark.parametrize(
    ("outline", "wrong"),
    [
        (["2. a"], [0]),
        (["1. a", "3. b"], [1]),
        (["1. a", "1. b", "3. c"], [1]),
        (["a", "2. b"], [0]),
        (["1) a"], [0]),
        (["1 a"], [0]),
        (["1."], [0]),
        (["1. ", "2. b"], [0]),
        ([" 1. a"], [0]),
        (["01. a"], [0]),
        (["10. a"], [0]),
        (["0. a", "1. b"], [0, 1]),
    ],
)
def test_the_outline_is_numbered(outline: list[str], wrong: list[int]) -> None:
    assert findings(put("thinking_outline", outline)) == [
        Finding(4, f"thinking_outline[{index}]", f"is not numbered '{index + 1}. …'") for index in wrong
    ]


@pytest.mark.parametrize("tag", ["A", "a b", "a_b", "-a", "a-", "a--b", "é", "a.", "a\n", " a"])
def test_tags_are_kebab_case(tag: str) -> None:
    found = findings(put("tags", ["fine", tag]))
    assert Finding(4, "tags[1]", f"{tag!r} is not kebab-case") in found


def test_tags_are_unique() -> None:
    assert findings(put("tags", ["a", "b", "a"])) == [Finding(4, "tags[2]", "'a' is there twice")]
    assert findings(put("tags", ["a", "a-b", "2d", "b2-c3-4"])) == []


@pytest.mark.parametrize("char", ["\x00", "\n", "\t", "\x1b", "\x7f", "\x85", "\ud800"])
def test_no_control_characters(char: str) -> None:
    message = "holds a control character"
    assert findings(put("route_rationale", f"a{char}b")) == [Finding(4, "route_rationale", message)]
    assert findings(put("expected_artifacts", ["a", f"b{char}"])) == [Finding(4, "expected_artifacts[1]", message)]
    metrics = {"primary": ["a"], "secondary": ["b"], "guidance": {"x": [f"{char}y"]}}
    assert findings(put("metrics", metrics)) == [Finding(4, "metrics.guidance.x[0]", message)]


def test_no_control_characters_in_keys_either() -> None:
    found = findings(put("metrics", {"primary": ["a"], "secondary": ["b"], "guidance": {"x\n": "y"}}))
    assert [finding.rule for finding in found] == [4]


@pytest.mark.parametrize("text", ["日本語", "emoji 😀", "a\u2028b", "a\u200bb", "\u00a0a", "<b>&amp;</b>"])
def test_any_other_character_is_fine(text: str) -> None:
    assert findings(put("route_rationale", text)) == []


# Rule 5


@pytest.mark.parametrize("key", OPTIONAL_METRICS)
def test_optional_metrics(key: str) -> None:
    for value in ("as told", {"x": "y"}, {"x": {"y": [1, "z"]}}):
        assert findings(put("metrics", {**good_plan()["metrics"], key: value})) == []
    assert told(lambda plan: plan["metrics"].__setitem__(key, {})) == [f"rule 5, metrics.{key}: is empty"]


@pytest.mark.parametrize("inside", [{"x": " "}, {"x": []}, {"x": {}}, {"x": ["a", ""]}, {"x": {"y": [""]}}])
def test_no_text_is_blank_and_no_list_empty_inside_an_optional_metric(inside: dict[str, Any]) -> None:
    assert findings(lambda plan: plan["metrics"].__setitem__("guidance", inside)) != []


# The set of tools


def plan_for(*route: str) -> dict[str, Any]:
    plan = good_plan()
    plan["route_plan"] = [f"{tool}(x)" for tool in route]
    plan["handoff_plan"] = " -> ".join([*route, QA])
    plan["todo_list"] = [*(f"{TODO}{tool}: do" for tool in route), f"{TODO}{QA}: check"]
    return plan


@pytest.mark.parametrize(
    ("tools", "route"),
    [
        (("/only",), ("/only",)),
        (("/only",), ("/only", "/only")),
        (EIGHT, EIGHT),
        (EIGHT, ("/h", "/a", "/h")),
        (("/code", "/code-review"), ("/code",)),
        (("/code", "/code-review"), ("/code-review",)),
        (("/code", "/code-review"), ("/code-review", "/code")),
        (("/code-review", "/code"), ("/code", "/code-review", "/code")),
        (("/a", "/a-a", "/a-a-a"), ("/a-a", "/a-a-a", "/a")),
    ],
)
def test_any_set_of_tools(tools: tuple[str, ...], route: tuple[str, ...]) -> None:
    plan, found = validate(plan_for(*route), tools)
    assert found == []
    assert plan is not None
    assert tools_of(plan) == list(route)


@pytest.mark.parametrize(("short", "long"), [("/code", "/code-review"), ("/a", "/ab"), ("/a", "/a2")])
def test_tools_that_begin_each_other_are_told_apart(short: str, long: str) -> None:
    plan = plan_for(long)
    plan["handoff_plan"] = f"{short} -> router QA"
    assert [finding.rule for finding in validate(plan, (short, long))[1]] == [2]
    plan = plan_for(short)
    plan["handoff_plan"] = f"{long} -> router QA"
    assert [finding.rule for finding in validate(plan, (short, long))[1]] == [2]
    plan = plan_for(short)
    plan["todo_list"].insert(0, f"{TODO}{long}: do")
    assert [str(finding) for finding in validate(plan, (short, long))[1]] == [
        f"rule 3, todo_list[0]: names {long}, which the route does not use"
    ]
    plan = plan_for(short, long)
    del plan["todo_list"][0]
    assert [str(finding) for finding in validate(plan, (short, long))[1]] == [
        f"rule 3, todo_list: has nothing to do for {short}"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/code", True),
        ("ask /code.", True),
        ("(/code)", True),
        ("/code: x", True),
        ("/code/code", True),
        ("/codes", False),
        ("/code-review", False),
        ("a/code", False),
        ("//code", False),
        ("code", False),
        ("/code-review and /code", True),
    ],
)
def test_names(text: str, expected: bool) -> None:
    assert names(text, "/code") is expected


# Schema first, then rules; and findings for people


def test_a_wrong_schema_is_told_with_its_place() -> None:
    value = good_plan()
    value["metrics"]["extra"] = "x"
    value["tags"][1] = " "
    del value["route_rationale"]
    plan, found = validate(value, TOOLS)
    assert plan is None
    assert {(finding.rule, finding.where) for finding in found} == {
        (0, "metrics.extra"),
        (0, "tags.1"),
        (0, "route_rationale"),
    }
    assert "tags.1: must not be blank" in map(str, found)


@pytest.mark.parametrize("value", [None, [], "plan", 1, True, {}])
def test_what_is_no_plan_at_all(value: object) -> None:
    plan, found = validate(value, TOOLS)
    assert plan is None
    assert found
    assert all(finding.rule == 0 and finding.where and finding.message for finding in found)


def test_the_schemas_findings_do_not_repeat_the_input() -> None:
    _, found = validate({**good_plan(), "difficulty": "SECRET " * 1000}, TOOLS)
    assert "SECRET" not in "".join(map(str, found))


def test_every_broken_rule_is_told_and_readable() -> None:
    value = good_plan()
    value["route_plan"].append("/web()")
    value["handoff_plan"] = "router QA"
    value["todo_list"].append("more")
    value["thinking_outline"] = ["first"]
    value["metrics"]["guidance"] = {}
    _, found = validate(value, TOOLS)
    assert {finding.rule for finding in found} == {1, 2, 3, 4, 5}
    for finding in found:
        assert str(finding) == f"rule {finding.rule}, {finding.where}: {finding.message}"


def test_texts_of_a_value() -> None:
    value = {"a": "x", "b": ["y", {"c": "z"}], "d": 1, "e": None}
    assert list(texts_of(value)) == [("a", "x"), ("b[0]", "y"), ("b[1].c", "z")]
