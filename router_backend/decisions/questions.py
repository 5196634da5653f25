"""What a checkpoint reads of a question, and how it would write each of the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from router_backend.decisions.decide import ANSWERS
from router_backend.types import Question

# What an answer may be: a text, or a truth value, which is another than the text of its name.
Value = str | bool


def asks(instructions: str, answers: Mapping[Value, str | None]) -> Question:
    """A question with these answers, each with what it means.

    The answers are shown in the order that they have here, and their odds come in it.
    """
    spelt = {json.dumps(value, ensure_ascii=False): means for value, means in answers.items()}
    shown = [f"- {value}: {means}" if means else f"- {value}" for value, means in spelt.items()]
    text = "\n".join([instructions, "", f"Answer with {ANSWERS} …}}, where … is one of these:", *shown])
    return Question(text, tuple(f" {value}}}" for value in spelt))


def states(statement: str) -> Question:
    """Whether a statement about the input is true: the odds are those of true and of false."""
    return asks(f"Is this true of the text above?\n{statement}", {True: None, False: None})


def chooses(instructions: str, choices: Mapping[Value, str | None], tools: Sequence[str], budget: int) -> Question:
    """Which of the choices it is, asked in the one order that they have by name, whichever the client has them in.

    Where all of them are tools of the router (as `/name` or `name`), it is asked as a plan of this budget begins.
    """
    named = {f"/{value.removeprefix('/')}" for value in choices if isinstance(value, str)}
    if len(named) == len(choices) and named <= set(tools):
        return Question(instructions, tuple(sorted(named)), plan_budget=budget)
    return asks(instructions, {value: choices[value] for value in ordered(choices)})


def ordered(choices: Mapping[Value, str | None]) -> list[Value]:
    """The choices in the order that the odds of `chooses` are in."""
    return sorted(choices, key=lambda value: (isinstance(value, bool), str(value).removeprefix("/"), str(value)))
