"""What becomes of router data before anything is learned from it: checked, mended, split, shortened."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_backend.errors import InvalidRequest
from router_backend.plan.budget import Costs
from router_backend.plan.prompt import router_prompt, with_budget
from router_backend.plan.rules import validate
from router_tools.train.rows import Row, note_of, read_rows, split
from router_tools.train.shorten import balanced, shorten, shorter, shorter_call, shorter_note

to_text = partial(json.dumps, ensure_ascii=False)

pytestmark = pytest.mark.torch  # which the package asks for
TOOLS = ("/general-search", "/math", "/code")
WORDS = (
    "derive",
    "bound",
    "kernel",
    "the spectrum",
    "of a matrix",
    "under noise",
    "with care",
    "and plot it",
    "for review",
)


def count(text: str) -> int:
    """Tokens as common checkpoints have them, roughly: (parts of) words, and runs of marks."""
    return len(re.findall(r"\w{1,8}|[^\w\s]+", text))


COSTS = Costs(count, TOOLS)


def reference_plan(seed: int = 0) -> dict[str, Any]:
    """A plan as long as the reference plans are, about a random subject."""
    chance = random.Random(seed)

    def sentence(words: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(words)).capitalize() + "."

    def text(sentences: int, words: int = 6) -> str:
        return " ".join(sentence(words) for _ in range(sentences))

    route = chance.choice([("/general-search", "/math", "/code"), ("/math", "/code"), ("/math", "/code", "/math")])
    query = " ".join(chance.choice(WORDS) for _ in range(8))
    steps = [
        f'{tool}(query="{query}", mode=web)' if tool == "/general-search" else f"{tool}({text(3)})" for tool in route
    ]
    return {
        "route_plan": steps,
        "route_rationale": text(4),
        "expected_artifacts": [text(1, 8) for _ in range(5)],
        "thinking_outline": [f"{number}. {text(2)}" for number in range(1, 7)],
        "handoff_plan": f"{' -> '.join(route)} -> router QA ({text(3).removesuffix('.')})",
        "todo_list": [f"- [ ] {tool}: {text(1, 7)}" for tool in (*route, *route)] + ["- [ ] router QA: " + text(1, 5)],
        "difficulty": "advanced",
        "tags": ["linear-algebra", "norms", f"topic-{seed}"],
        "acceptance_criteria": [text(1, 9) for _ in range(4)],
        "metrics": {"primary": [text(1, 8)], "secondary": [text(1, 8)], "guidance": text(2)},
    }


def row(seed: int) -> Row:
    plan = reference_plan(seed)
    return Row(router_prompt(f"Request {seed}"), plan, to_text(plan))


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in rows), "utf-8")
    return path


# Rows


def test_bad_rows_are_counted_and_left_out_with_the_reason(tmp_path: Path) -> None:
    good, no_tool = reference_plan(), reference_plan()
    no_tool["route_plan"] = ["/cook(soup)"]
    rows = [
        {"prompt": "p", "completion": to_text(good)},
        {"prompt": "p", "completion": to_text(no_tool)},
        {"prompt": "p", "completion": "{}"},
        {"prompt": "p"},
        "no JSON",
        "",
    ]
    kept, refused = read_rows(write(tmp_path / "rows", *rows), TOOLS)
    assert [each.plan for each in kept] == [good]
    assert not kept[0].mended
    assert refused == Counter(
        {
            "no prompt and completion, or no JSON": 2,
            "schema: route_plan": 1,
            "rule 1: calls /cook, which is none of /general-search, /math, /code": 1,
        }
    )


def test_what_the_house_form_decides_is_mended(tmp_path: Path) -> None:
    plan = reference_plan()
    route = [step.partition("(")[0] for step in plan["route_plan"]]
    plan["handoff_plan"] = "The router starts, then all is checked"
    plan["tags"] = ["Linear Algebra", "linear-algebra", "L2"]
    plan["todo_list"][-1] = "- [ ] Submit all for router QA."
    (mended,), _ = read_rows(write(tmp_path / "rows", {"prompt": "p", "completion": to_text(plan)}), TOOLS)
    assert mended.mended
    assert validate(mended.plan, TOOLS)[1] == []
    assert mended.plan["tags"] == ["linear-algebra", "l2"]
    assert mended.plan["handoff_plan"].startswith(" -> ".join([*route, "router QA"]))
    assert mended.plan["todo_list"][-1] == "- [ ] router QA: Submit all for router QA."
    assert json.loads(mended.completion) == plan


@pytest.mark.parametrize(
    ("handoff", "note"),
    [
        ("/a -> /b -> router QA (verification: it holds, twice)", "(verification: it holds, twice)"),
        ("/a -> /b -> router QA. All that was found is checked.", "(All that was found is checked.)"),
        ("/a (derivation) -> /b (implementation) -> router QA.", "(/a: derivation; /b: implementation)"),
        ("/a -> /b -> router QA", ""),
    ],
)
def test_a_note_is_what_a_handoff_says_besides_its_chain(handoff: str, note: str) -> None:
    assert note_of(handoff) == note


def test_a_file_without_one_usable_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no row to train on"):
        read_rows(write(tmp_path / "rows", "{}"), TOOLS)
    with pytest.raises(InvalidRequest, match="No such file"):
        read_rows(tmp_path / "none", TOOLS)


def test_the_split_is_fixed_and_has_every_common_route() -> None:
    rows = [row(seed) for seed in range(60)]
    training, held_out = split(rows, 12)
    assert (len(training), len(held_out)) == (48, 12)
    assert {each.prompt for each in training}.isdisjoint(each.prompt for each in held_out)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert split(shuffled, 12) == (training, held_out)
    shares = Counter(each.route for each in rows)
    for route, times in Counter(each.route for each in held_out).items():
        assert abs(times - shares[route] / 5) <= 1


# Shorter plans


@given(seed=st.integers(0, 10_000), budget=st.integers(250, 1200))
@settings(max_examples=60, deadline=None)
def test_a_shorter_plan_keeps_the_rules_the_budget_and_whole_words(seed: int, budget: int) -> None:
    plan = reference_plan(seed)
    text = shorten(plan, budget, COSTS, count)
    if text is None:
        assert budget < 600
        return
    assert count(text) <= budget
    short = json.loads(text)
    assert validate(short, TOOLS)[1] == []
    assert "…" not in text
    for step, whole in zip(short["route_plan"], plan["route_plan"], strict=True):
        said, could = (re.findall(r"\w+", each.partition('", ')[0]) for each in (step, whole))
        assert said == could[: len(said)]


def test_more_budget_gives_more_items_and_at_last_the_whole_plan() -> None:
    plan = reference_plan()
    plans = [json.loads(shorten(plan, budget, COSTS, count) or "{}") for budget in (450, 700, 2000)]
    sizes = [sum(len(each[key]) for key in ("expected_artifacts", "thinking_outline", "todo_list")) for each in plans]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2]
    assert plans[2] == plan


def test_no_shorter_plan_where_words_would_have_to_be_cut() -> None:
    plan = reference_plan()
    assert shorten(plan, 300, COSTS, count) is not None
    plan["route_plan"][0] = f"/math({'kernel ' * 60}bound)"
    assert shorten(plan, 300, COSTS, count) is None


def test_a_plan_without_an_item_that_is_forced_gives_none() -> None:
    plan = reference_plan()
    plan["todo_list"] = plan["todo_list"][:-1]
    assert shorten(plan, 900, COSTS, count) is None


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "Prove the bound. Plot it, using Python.",
            ["Prove the bound. Plot it, using Python.", "Prove the bound."],
        ),
        (
            "Write a script (Python) that plots f, and save it.",
            ["Write a script (Python) that plots f, and save it.", "Write a script (Python) that plots f.",
             "Write a script (Python).", "Write a script."],
        ),
        ("Compare the two and the rest", ["Compare the two and the rest", "Compare the two"]),
        ("Run it with the code of the paper.", ["Run it with the code of the paper.", "Run it with the code."]),
    ],
)  # fmt: skip
def test_sentences_go_first_then_phrases(text: str, left: list[str]) -> None:
    assert list(shorter(text)) == left


def test_a_search_loses_words_and_keeps_its_options() -> None:
    call = "query=\"site:arxiv.org 'low rank' bounds of noise\", mode=rag, includes numpy"
    assert list(shorter_call(call)) == [
        call,
        "query=\"site:arxiv.org 'low rank' bounds of noise\", mode=rag",
        "query=\"site:arxiv.org 'low rank' bounds\", mode=rag",
        "query=\"site:arxiv.org 'low rank'\", mode=rag",
    ]


def test_a_note_stays_in_its_parentheses_and_may_go_altogether() -> None:
    notes = list(shorter_note("(verification: the code agrees; fallback: ask again)"))
    assert notes[0] == "(verification: the code agrees; fallback: ask again)"
    assert "(verification: the code agrees)" in notes
    assert notes[-1] == ""


@pytest.mark.parametrize("text", ["a (b", "$x", "the 'first", 'say "a', "`f", "[1, 2"])
def test_what_is_left_open_is_seen(text: str) -> None:
    assert not balanced(text)
    assert balanced("it's (a) [b] 'c' $d$ `e` \"f\"")


def test_the_budget_line_is_the_last_line_of_the_prompt() -> None:
    prompt = router_prompt("What is 2 + 2?", context="None.")
    assert with_budget(prompt, 600) == prompt.rstrip("\n") + "\n\nToken budget: 600\n"
