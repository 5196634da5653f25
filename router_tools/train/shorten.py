"""Shorter plans from a reference plan: what `PlanScript` would offer at a budget, filled by whole phrases.

The script itself decides, as when it serves, how many items a list has and how many tokens a text may take; here its
asks are answered from the reference plan, with each text brought under its limit by leaving out whole sentences first,
then whole phrases from the end. So a plan that a checkpoint learns is one that its writer would have let through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from router_backend.plan.budget import Costs, level_for
from router_backend.plan.form import LEVELS, OPTIONAL, SHAPES
from router_backend.plan.rules import tool_of, validate
from router_backend.plan.script import PlanScript
from router_backend.writing.clip import escape
from router_backend.writing.stages import Ask, Count, Reply
from router_tools.train.rows import note_of

# A checkpoint does not hit a length to the token, so a text aims at what is planned for it at its level, not at the
# limit up to which it would be let through; and where whole phrases do not get it there, it stays below that limit.
PLANNED, LIMIT = 1.2, 0.85
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
# Where a phrase begins that can go without leaving the rest broken.
_PHRASE = re.compile(
    r"\s*[;—–]\s|,\s+|\s+(?=\()|\s+(?=(?:and|or|but|with|without|for|using|by|via|under|from|in|across|through|against|"
    r"that|which|who|where|when|while|so|as|if|because|to|including|ensuring|focusing|showing|covering|such|"
    r"specifically|particularly|referencing|highlighting|demonstrating|verifying|based|derived|between|of|on)\b)"
)
_DANGLING = re.compile(
    r"(?:^|\W)(?:a|an|the|and|or|but|nor|with|without|for|using|by|via|under|from|in|into|on|of|at|to|as|if|than|that|"
    r"which|who|where|when|while|because|so|such|both|either|between|including|ensuring|is|are|be|was|must|should|will|"
    r"can|may|all|any|each|its|their|this|these|focusing|based|compared|respect|least|using|not|only|e\.g|i\.e|vs)\W*$",
    re.IGNORECASE,
)
_QUERY = re.compile(r'(query=")([^"]*)(".*)', re.DOTALL)
_FEWEST = 12


class CannotShorten(Exception):
    """A text has no whole phrase that fits."""


def shorten(plan: dict[str, Any], budget: int, costs: Costs, count: Count) -> str | None:
    """The plan's text within `budget` tokens as `count` counts them; None where that takes more than whole phrases."""
    script = PlanScript(budget, count, costs)
    teacher = _Teacher(plan, script)
    stages = script.stages()
    try:
        ask = next(stages)
        while True:
            ask = stages.send(teacher.reply(ask))
    except StopIteration:
        pass
    except CannotShorten:
        return None
    whole = not script.clipped and count(script.text) <= budget
    return script.text if whole and not validate(json.loads(script.text), costs.tools)[1] else None


def shorter(text: str) -> Iterator[str]:
    """The text, then what is left of it without its last sentences, then without its last phrases."""
    yield text
    sentences = _SENTENCE.split(text)
    for kept in range(len(sentences) - 1, 0, -1):
        yield " ".join(sentences[:kept])
    first = sentences[0]
    end = first[-1] if first[-1:] in ".!?" else ""
    for match in reversed(list(_PHRASE.finditer(first))):
        phrase = first[: match.start()].rstrip(" ,;:—–")
        if len(phrase) >= _FEWEST and balanced(phrase) and not _DANGLING.search(phrase):
            yield phrase + end


def shorter_call(argument: str) -> Iterator[str]:
    """As `shorter`, for a step's argument: a search's query loses words from its end, its options stay."""
    match = _QUERY.fullmatch(argument)
    if match is None:
        yield from shorter(argument)
        return
    yield argument
    options = re.sub(r", includes [^,]*", "", match[3])
    words = match[2].split()
    for kept in range(len(words), 2, -1):
        query = " ".join(words[:kept])
        if balanced(query) and not _DANGLING.search(query):
            yield match[1] + query + options


def shorter_note(note: str) -> Iterator[str]:
    """As `shorter`, for what stands in parentheses after the hand-off's chain; "" at last."""
    inner = note.removesuffix(".")[1:-1] if note.startswith("(") else note
    for text in shorter(inner):
        yield f"({text})" if note.startswith("(") else text
    yield ""


def balanced(text: str) -> bool:
    """Whether no bracket, quote or formula is left open."""
    pairs = all(text.count(left) == text.count(right) for left, right in ("()", "[]", "{}", "“”"))
    quotes = len(re.findall(r"(?<!\w)'|'(?!\w)", text))
    return pairs and not any(text.count(mark) % 2 for mark in '"`$') and not quotes % 2


class _Teacher:
    """Answers the script's asks out of the reference plan."""

    def __init__(self, plan: dict[str, Any], script: PlanScript) -> None:
        self._plan = plan
        self._script = script
        self._todo: list[str] = list(plan["todo_list"])
        self._chosen: list[str] = []

    def reply(self, ask: Ask) -> Reply:
        if ask.options:
            return Reply(self._choose(ask.field, ask.options), ended=True)
        field, _, index = ask.field.removesuffix("]").partition("[")
        text, more = self._text(field, int(index or 0), ask.max_tokens)
        return Reply(escape(text) + ('",' if more else '"]'), ended=True)

    def _text(self, field: str, index: int, limit: int) -> tuple[str, bool]:
        """A text and whether the list goes on."""
        fitting = partial(self._fitting, field, index, limit)
        if field == "route_plan":
            steps = self._plan[field]
            argument = steps[index].partition("(")[2].removesuffix(")")
            return fitting(shorter_call(argument), lead="(") + ")", index + 1 < len(steps)
        if field == "todo_list":
            return fitting(shorter(self._next_todo()), lead=" "), True
        if field == "handoff_plan":
            return fitting(shorter_note(note_of(self._plan[field])), lead=" ").rstrip(), False
        value = self._plan["metrics"][field[8:]] if field.startswith("metrics.") else self._plan[field]
        if isinstance(value, str):
            return fitting(shorter(value)), False
        if field == "tags":
            return str(value[index]), index + 1 < len(value)
        if field == "thinking_outline":
            if not index:
                self._chosen = self._outline(value)
            step = re.sub(r"^\d+\.\s*", "", self._chosen[index])
            return fitting(shorter(step), lead=" "), index + 1 < len(self._chosen)
        return fitting(shorter(value[index])), index + 1 < len(value)

    def _fitting(self, field: str, index: int, limit: int, texts: Iterator[str], *, lead: str = "") -> str:
        """The longest text that is as long as planned, or else the shortest, if that is below the limit."""
        count, shape = self._script.count, SHAPES.get(field, OPTIONAL)
        level = self._level(field, index)
        planned = min(PLANNED * shape.length(level) if level < LEVELS else limit, LIMIT * limit)
        text, tokens = "", 0
        for text in texts:
            tokens = count(escape(lead + text))
            if tokens <= planned:
                return lead + text
        if not text or tokens > LIMIT * limit:
            raise CannotShorten(field)
        return lead + text

    def _outline(self, steps: list[str]) -> list[str]:
        """As many steps as the budget is planned with, spread over the whole outline."""
        name, script = "thinking_outline", self._script
        wanted = min(len(steps), len(script.costs.texts(name, script.route, self._level(name, 0))))
        return [steps[(2 * index + 1) * len(steps) // (2 * wanted)] for index in range(wanted)]

    def _level(self, field: str, index: int) -> int:
        """How rich the rest of the plan can be."""
        script = self._script
        return level_for(script.limit - script.count(script.text), script.costs, field, script.route, index)

    def _next_todo(self) -> str:
        who = self._script.text.rpartition("- [ ] ")[2].removesuffix(":")
        item = next((item for item in self._todo if _who(item) == who), None)
        if item is None:
            raise CannotShorten
        self._todo.remove(item)
        return item.partition(":")[2].strip()

    def _choose(self, field: str, options: Sequence[str]) -> str:
        if field == "difficulty":
            return str(self._plan["difficulty"])
        if field == "metrics":  # the next text that the reference has, in its order; the end where there is none
            ends = [f'"{key}": "' for key, value in self._plan["metrics"].items() if isinstance(value, str)]
            return next((option for end in ends for option in options if option.endswith(end)), options[0])
        if field == "todo_list":
            wanted = [who for item in self._todo if (who := _who(item))]
            return min(options, key=lambda option: wanted.index(option[1:-1]) if option[1:-1] in wanted else 99)
        steps, done = self._plan["route_plan"], len(self._script.route)
        if options[0] == '",':
            return '",' if done < len(steps) else '"]'
        call = f"{tool_of(steps[done])}("
        found = next((option for option in options if option.lstrip(' "') == call), None)
        if found is None:
            raise CannotShorten
        return found


def _who(item: str) -> str | None:
    match = re.match(r"- \[ \] ([^:]+):\s*\S", item)
    return match[1].replace("Router", "router") if match else None
