import pytest

from router_backend.plan.prompt import INSTRUCTIONS, router_prompt
from router_backend.plan.schema import KEYS

CANONICAL = """\
You are the Router Agent coordinating Math, Code, and General-Search specialists.
Given the user query, respond with a JSON object describing the full routing plan.

Requirements:
- STRICT JSON with double quotes and no extra commentary.
- Keys: route_plan, route_rationale, expected_artifacts, thinking_outline,
  handoff_plan, todo_list, difficulty, tags, acceptance_criteria, metrics.
- route_plan must be an ordered list of tool invocations.
- Use the original phrasing when possible.

User query:
Prove that 2 is prime.
"""


def test_the_canonical_prompt_to_the_byte() -> None:
    assert router_prompt("Prove that 2 is prime.") == CANONICAL


def test_the_prompt_names_every_key_of_a_plan_in_order() -> None:
    places = [INSTRUCTIONS.index(key) for key in KEYS]
    assert places == sorted(places)


def test_blanks_around_a_query_do_not_count_and_those_inside_do() -> None:
    assert router_prompt("\n  Prove that 2 is prime.\t\n") == CANONICAL
    assert router_prompt("a\n\n b").endswith("User query:\na\n\n b\n")


def test_the_optional_parts_follow_the_query_in_one_order() -> None:
    prompt = router_prompt(
        "Q",
        tags=("algebra", "norms"),
        difficulty="advanced",
        guidance=" G ",
        acceptance="A\n",
        context="C1\nC2",
    )
    assert prompt == (
        f"{INSTRUCTIONS}Q\n\nContext:\nC1\nC2\n\nAcceptance criteria:\nA\n\nGuidance:\nG\n\n"
        "Difficulty:\nadvanced\n\nTags:\nalgebra, norms\n"
    )


@pytest.mark.parametrize("part", ["context", "acceptance", "guidance", "difficulty"])
def test_parts_that_say_nothing_are_left_out(part: str) -> None:
    for nothing in (None, "", "  \n"):
        assert router_prompt("Prove that 2 is prime.", **{part: nothing}) == CANONICAL  # type: ignore[arg-type]
    assert router_prompt("Prove that 2 is prime.", **{part: "something"}) != CANONICAL  # type: ignore[arg-type]


def test_no_tags_no_part() -> None:
    assert router_prompt("Prove that 2 is prime.", tags=()) == CANONICAL


def test_all_prompts_share_their_beginning() -> None:
    for prompt in (router_prompt("Q"), router_prompt("Q", context="C"), router_prompt("other", tags=("a",))):
        assert prompt.startswith(INSTRUCTIONS)
        assert prompt.endswith("\n")


def test_the_query_is_text_and_nothing_else() -> None:
    query = "{query} %s <|im_end|> \\n \"quoted\" {{'x'}} 日本 😀"
    assert router_prompt(query) == f"{INSTRUCTIONS}{query}\n"
