"""What a checkpoint reads of a question, and how it would write each of the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from router_backend.decisions.decide import ANSWERS
from router_backend.types import Question

# What an answer may be: a text, or a truth value, which is another than the text of its name.
Value = str | bool
# Of a choice, at the most: each costs a pass over the question.
LISTINGS = 8


def asks(instructions: str, answers: Mapping[Value, str | None], *, ranked: bool = False) -> Question:
    """A question with these answers, each with what it means. Their odds come in the order that they have here.

    Small checkpoints love a place in a list more than any answer. So each answer is listed in each place once, up to
    `LISTINGS` of them; `ranked` ones upwards and downwards.
    """
    spelt = {json.dumps(value, ensure_ascii=False): means for value, means in answers.items()}
    lines = [f"- {value}: {means}" if means else f"- {value}" for value, means in spelt.items()]
    firsts = range(0, len(lines), -(-len(lines) // LISTINGS))
    listings = [lines, lines[::-1]] if ranked else [lines[first:] + lines[:first] for first in firsts]
    head = f"{instructions}\n\nAnswer with {ANSWERS} …}}, where … is one of these:"
    texts = tuple("\n".join([head, *listing]) for listing in listings)
    return Question(texts, tuple(f" {value}}}" for value in spelt))


def states(statement: str) -> Question:
    """Whether a statement about the input is true: the odds are those of true and of false."""
    return asks(f"Is this true of the text above?\n{statement}", {True: None, False: None})


def chooses(instructions: str, choices: Mapping[Value, str | None], tools: Sequence[str], budget: int) -> Question:
    """Which of the choices it is, asked in the one order that they have by name, whichever the client has them in.

    Where all of them are tools of the router (as `/name` or `name`), it is asked as a plan of this budget begins.
    """
    named = {f"/{value.removeprefix('/')}" for value in choices if isinstance(value, str)}
    if len(named) == len(choices) and named <= set(tools):
        return Question(("",), tuple(sorted(named)), plan_budget=budget)
    return asks(instructions, {value: choices[value] for value in ordered(choices)})


def ordered(choices: Mapping[Value, str | None]) -> list[Value]:
    """The choices in the order that the odds of `chooses` are in."""
    return sorted(choices, key=lambda value: (isinstance(value, bool), str(value).removeprefix("/"), str(value)))
