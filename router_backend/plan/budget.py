"""How a plan's token budget is shared out: pure arithmetic over what is forced and what texts usually take.

A plan is a row of free texts with forced tokens before each one. The budget must always hold what is still forced and
the least of every text; the rest is shared by what the reference plans' texts take. Where it is tight there are fewer
items and the longest texts are shorter; where it is tighter still all texts are. Whatever a text leaves over goes to
the later ones, since the shares are worked out anew, from the tokens that are really left, before every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from router_backend.plan.rules import QA, TODO
from router_backend.plan.schema import DIFFICULTIES, OPTIONAL_METRICS
from router_backend.writing.stages import JOIN, Count

STEPS_MOST = 8
# Further steps than these are for budgets that can pay for their to-dos too.
STEPS_CHEAP, LEVEL_FOR_MORE = 4, 6
LEVELS = 12
# A list is planned with an item more only where all texts can have this much of their length at that level.
FULL = 0.7
# A text that is being written may have so many times its length, or one part in so many of what can be spared.
STRETCH, PARTS = 1.75, 6


@dataclass(frozen=True, slots=True)
class Shape:
    """What a field's texts take.

    Attributes:
        usual: tokens of one text in the reference plans (median).
        least: tokens that a text gets at least.
        items: texts in the reference plans (median), which is what a list is planned with at the richest level.
        most: items that a list may have where there is budget left over.
        short: tokens of one text at the poorest level, of those texts that say much in little; 0 is as usual.
    """

    usual: int
    least: int
    items: int = 1
    most: int = 1
    short: int = 0

    def length(self, level: int) -> int:
        """Tokens of one text at a level of richness."""
        short = self.short or self.usual
        return short + _scaled(self.usual - short, level)


SHAPES = {
    "route_plan": Shape(usual=42, least=8, items=3, most=STEPS_MOST, short=16),
    "route_rationale": Shape(usual=72, least=10, short=20),
    "expected_artifacts": Shape(usual=20, least=6, items=5, most=8),
    "thinking_outline": Shape(usual=30, least=6, items=6, most=9),
    "handoff_plan": Shape(usual=74, least=0, short=10),
    "todo_list": Shape(usual=17, least=6, items=8, most=12),
    "tags": Shape(usual=5, least=3, items=3, most=4),
    "acceptance_criteria": Shape(usual=24, least=6, items=4, most=7),
    "metrics.primary": Shape(usual=15, least=6, items=1, most=4),
    "metrics.secondary": Shape(usual=15, least=6, items=1, most=4),
    "metrics.optional": Shape(usual=25, least=10),
}
OPENING = {
    "route_plan": '{"route_plan": ["',
    "route_rationale": '"], "route_rationale": "',
    "expected_artifacts": '", "expected_artifacts": ["',
    "thinking_outline": '"], "thinking_outline": ["1.',
    "handoff_plan": '"], "handoff_plan": "',
    "todo_list": '", "todo_list": ["- [ ]',
    "difficulty": '"], "difficulty": "',
    "tags": '", "tags": ["',
    "acceptance_criteria": '"], "acceptance_criteria": ["',
    "metrics.primary": '"], "metrics": {"primary": ["',
    "metrics.secondary": '"], "secondary": ["',
}
CLOSING = '"]}}'
FIELDS = tuple(field for field in OPENING if field in SHAPES)


def opening_of_metric(key: str, *, first: bool) -> str:
    """What is forced before an optional metric's text."""
    return f'{"]" if first else ""}, "{key}": "'


@dataclass(frozen=True, slots=True)
class Pending:
    """A free text that is still to be written, and the forced tokens before it."""

    field: str
    forced: int
    usual: int
    least: int


class Costs:
    """Tokens of everything that is forced, counted once by the checkpoint's own tokenizer."""

    def __init__(self, count: Count, tools: Sequence[str]) -> None:
        self.tools = tuple(tools)
        self._count = count
        self.opening = {field: count(text) + JOIN for field, text in OPENING.items()}
        self.opening["difficulty"] += max(count(word) for word in DIFFICULTIES) + JOIN
        self.item = count('", "') + JOIN
        self.number = max(count(f"{number}.") for number in range(1, 10)) + JOIN
        self.closing = count(CLOSING) + JOIN
        self.step = {tool: count(f"{tool}(") + count(")") + 2 * JOIN for tool in tools}
        self.todo = {who: count(f"{TODO}{who}:") + JOIN for who in (*tools, QA)}
        self.link = {who: count(f" -> {who}") + JOIN for who in (*tools, QA)}
        self.metric = {key: count('"' + opening_of_metric(key, first=True)) + JOIN for key in OPTIONAL_METRICS}

    @cached_property
    def smallest(self) -> int:
        """The smallest budget: one step with the tool that takes most, every text at its least."""
        return max(self.step[tool] + self.route_floor() + self.floor_after_route([tool]) for tool in self.tools)

    def route_floor(self) -> int:
        """Before the first step's tool: the opening and the least argument."""
        return self.opening["route_plan"] + SHAPES["route_plan"].least

    def floor_after_route(self, route: Sequence[str]) -> int:
        """The least that everything after the route's last argument takes."""
        return floor(self.after("route_plan", route, 0)) + self.closing

    def after(self, field: str, route: Sequence[str], level: int) -> list[Pending]:
        """The texts of all fields after `field`."""
        later = FIELDS[FIELDS.index(field) + 1 :] if field in FIELDS else ()
        return list(chain.from_iterable(self.texts(name, route, level) for name in later))

    def texts(self, field: str, route: Sequence[str], level: int) -> list[Pending]:
        """A field's texts at a level of richness: 0 is one item, `LEVELS` as many as the reference plans have.

        The route always has as many: how many steps a task takes is not for the budget to say.
        """
        shape = SHAPES[field]
        opening = self.opening[field] + (self.opening["difficulty"] if field == "tags" else 0)
        if field == "handoff_plan":
            opening += sum(self.link[who] for who in (*route, QA))
        if field == "todo_list":
            tools = list(dict.fromkeys(route)) or [max(self.todo, key=self.todo.__getitem__)]
            wanted = len(tools) + 1 + _scaled(max(0, shape.items - len(tools) - 1), level)
            dearest = max(tools, key=self.todo.__getitem__)
            whos = [*tools, *[dearest] * (wanted - len(tools) - 1), QA]
            forced = [self.item + self.todo[who] for who in whos]
        elif field == "route_plan":
            forced = [self.item + max(self.step.values())] * shape.items
        else:
            each = self.item + (self.number if field == "thinking_outline" else 0)
            forced = [each] * (1 + _scaled(shape.items - 1, level))
        forced[0] += opening - self.item
        return [Pending(field, tokens, shape.length(level), shape.least) for tokens in forced]


def floor(texts: Sequence[Pending]) -> int:
    """The least that these texts take, with what is forced before them."""
    return sum(text.forced + text.least for text in texts)


def usual(texts: Sequence[Pending]) -> int:
    return sum(text.forced + text.usual for text in texts)


def level_for(budget: int, costs: Costs, field: str, route: Sequence[str], written: int = 0) -> int:
    """The richest level at which `field`, of which some texts are `written`, and all after it fit.

    They fit with texts of `FULL` their length at that level: a tight budget takes away items before words.
    """
    for level in range(LEVELS, 0, -1):
        own = costs.texts(field, route, level)[written:] if field in FIELDS else []
        texts = [*own, *costs.after(field, route, level)]
        if sum(text.forced + FULL * text.usual for text in texts) + costs.closing <= budget:
            return level
    return 0


def allot(budget: int, text: Pending, later: Sequence[Pending], few: Sequence[Pending], closing: int) -> int:
    """Tokens for a text whose forced tokens are written already.

    Its share by length among `later`, all that is planned after it; or more than that, as long as `few`, what there
    must be after it, can have its length.
    """
    free = budget - closing - sum(each.forced for each in later)
    fair = free * text.usual // (text.usual + sum(each.usual for each in later))
    spare = budget - closing - usual(few)
    more = min(spare, max(int(STRETCH * text.usual), spare // PARTS))
    room = budget - closing - floor(few)
    return max(0, min(room, max(text.least, fair, more)))


def _scaled(items: int, level: int) -> int:
    return (items * level + LEVELS // 2) // LEVELS
