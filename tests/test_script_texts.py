"""Two forms that tuned checkpoints write all the time: quotes inside an argument, notes after the hand-off's chain."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher

from router_backend.plan import grammar
from router_backend.plan.budget import Costs
from router_backend.plan.script import Ask, PlanScript, Reply

TOOLS = ("/search", "/math")


def count(text: str) -> int:
    return len(text.split())


def written(answers: dict[str, list[str]]) -> tuple[dict[str, object], list[Ask]]:
    """A plan with these replies for some fields and a word for the others, and what was asked."""
    script = PlanScript(2000, Costs(count, TOOLS), count)
    asked: list[Ask] = []
    stages = script.stages()
    ask = next(stages)
    try:
        while True:
            asked.append(ask)
            mine = answers.get(ask.field.partition("[")[0])
            if "CHOICE" in ask.grammar:
                reply = Reply(str(json.loads(ask.grammar.partition("CHOICE: ")[2].split(" | ")[0])), ended=True)
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


@pytest.mark.parametrize("tail", [" (verification of both)", ". The router checks both.", ""])
def test_the_hand_off_goes_on_as_reference_plans_do(tail: str) -> None:
    plan, _ = written({"handoff_plan": [f'{tail}"']})
    assert plan["handoff_plan"] == f"/search -> router QA{tail}"
