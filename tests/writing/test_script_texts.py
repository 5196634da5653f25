"""Two forms that tuned checkpoints write all the time: quotes inside an argument, notes after the hand-off's chain."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher

from router_backend.plan import grammar
from router_backend.plan.budget import Costs
from router_backend.plan.script import PlanScript
from router_backend.writing.stages import Ask, Reply

TOOLS = ("/search", "/math")


def count(text: str) -> int:
    return len(text.split())


def said(text: str, ask: Ask) -> Reply:
    """Spelled a character a token, cut at the limit."""
    return Reply(text[: ask.max_tokens], ended=len(text) <= ask.max_tokens)


def written(answers: dict[str, list[str]]) -> tuple[dict[str, object], list[Ask]]:
    """A plan with these replies for some fields and a word for the others, and what was asked."""
    script = PlanScript(2000, count, Costs(count, TOOLS))
    asked: list[Ask] = []
    stages = script.stages()
    ask = next(stages)
    try:
        while True:
            asked.append(ask)
            mine = answers.get(ask.field.partition("[")[0])
            if "CHOICE" in ask.grammar:
                options = ask.grammar.partition("CHOICE: ")[2].split(" | ")
                reply = said(str(json.loads(options[0])), ask)
            elif mine:
                reply = Reply(mine.pop(0), ended=True)
            else:
                reply = Reply('word"]', ended=True)
            ask = stages.send(reply)
    except StopIteration:
        return json.loads(script.text), asked


def test_an_argument_goes_on_after_a_quote_and_a_comma() -> None:
    """The stop text came inside the text; what follows it may begin with a blank."""
    plan, asked = written({"route_plan": [r"query=\"a b\\"[:-1], ' mode=web)"]']})
    assert plan["route_plan"] == ['/search(query="a b", mode=web)']
    again = [ask for ask in asked if ask.said]
    assert [ask.said for ask in again] == [r"query=\"a b\","]
    assert again[0].grammar == grammar.rest() and not LLMatcher.validate_grammar(again[0].grammar)


def test_a_choice_may_be_spelled_in_small_tokens() -> None:
    plan, _ = written({})
    assert plan["difficulty"] == "introductory"


@pytest.mark.parametrize("tail", [" (verification of both)", ". The router checks both.", ""])
def test_the_hand_off_goes_on_as_reference_plans_do(tail: str) -> None:
    plan, _ = written({"handoff_plan": [f'{tail}"']})
    assert plan["handoff_plan"] == f"/search -> router QA{tail}"


def test_a_choice_may_be_spelled_in_the_smallest_tokens() -> None:
    """A mask allows any spelling: a byte a token at worst. What counts against the budget is the text."""
    _, asked = written({})
    choices = [ask for ask in asked if "CHOICE" in ask.grammar]
    assert {ask.field for ask in choices} >= {"route_plan", "todo_list", "difficulty"}
    for ask in choices:
        options = [json.loads(each) for each in ask.grammar.partition("CHOICE: ")[2].split(" | ")]
        assert ask.max_tokens >= max(len(option.encode()) for option in options)
