"""What a plan is to look like for one client: which keys, how many items, how long, and what is forced between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from router_backend.plan.schema import DIFFICULTIES, OPTIONAL_METRICS

STEPS_MOST = 8
LEVELS = 12
METRICS = "metrics."


@dataclass(frozen=True, slots=True)
class Shape:
    """What a field's texts take.

    Attributes:
        usual: tokens of one text in the reference plans (median).
        least: tokens that a text gets at least.
        items: texts in the reference plans (median), which is what a list is planned with at the richest level.
        most: items that a list may have where there is budget left over, and `fewest` those that it must have.
        short: tokens of one text at the poorest level, of those texts that say much in little; 0 is as usual.
        shortest: characters that a text must have, and `longest` those that it may; None for no limit.
        words: what a text must be one of; none for a free text.
    """

    usual: int
    least: int
    items: int = 1
    most: int = 1
    short: int = 0
    fewest: int = 1
    shortest: int = 1
    longest: int | None = None
    words: tuple[str, ...] = ()

    def length(self, level: int) -> int:
        """Tokens of one text at a level of richness."""
        short = self.short or self.usual
        return short + scaled(self.usual - short, level)

    def count(self, level: int) -> int:
        """Items at a level of richness."""
        return self.fewest + scaled(self.items - self.fewest, level)


SHAPES = {
    "route_plan": Shape(usual=42, least=8, items=3, most=STEPS_MOST, short=16),
    "route_rationale": Shape(usual=72, least=10, short=20),
    "expected_artifacts": Shape(usual=20, least=6, items=5, most=8),
    "thinking_outline": Shape(usual=30, least=6, items=6, most=9),
    "handoff_plan": Shape(usual=74, least=0, short=10),
    "todo_list": Shape(usual=17, least=6, items=8, most=12),
    "difficulty": Shape(usual=0, least=0, words=DIFFICULTIES),
    "tags": Shape(usual=5, least=3, items=3, most=4),
    "acceptance_criteria": Shape(usual=24, least=6, items=4, most=7),
    "metrics.primary": Shape(usual=15, least=6, items=1, most=4),
    "metrics.secondary": Shape(usual=15, least=6, items=1, most=4),
}
OPTIONAL = Shape(usual=25, least=10)
# What the first item of a list begins with.
_BEGINNINGS = {"thinking_outline": "1.", "todo_list": "- [ ]"}


@dataclass(frozen=True, eq=False)
class Form:
    """The fields that are written, in their order, and what each takes; by default all of a plan.

    Attributes:
        offered: the optional metrics that may follow.
        alone: whether the plan has the object for itself; else it is some fields of a larger one.
    """

    shapes: Mapping[str, Shape] = field(default_factory=lambda: SHAPES)
    offered: tuple[str, ...] = OPTIONAL_METRICS
    alone: bool = True

    @cached_property
    def openings(self) -> dict[str, str]:
        """What is forced before each field's first text."""
        said: dict[str, str] = {}
        before, in_metrics = "{" if self.alone else "", False
        for name in self.shapes:
            key = name.removeprefix(METRICS)
            if key != name and not in_metrics:
                before, in_metrics = f'{before}"metrics": {{', True
            said[name] = f'{before}"{key}": {"[" * is_list(name)}"{_BEGINNINGS.get(name, "")}'
            before = f"{closed(name)}, "
        return said

    @property
    def ends(self) -> str:
        """What closes all that is open, once the last field's mark is closed."""
        return "}" * (self.last.startswith(METRICS) + self.alone)

    @property
    def closing(self) -> str:
        """What follows the last field's last text."""
        return closed(self.last) + self.ends

    @property
    def last(self) -> str:
        return list(self.shapes)[-1]


def is_list(name: str) -> bool:
    return SHAPES.get(name, OPTIONAL).most > 1


def closed(name: str) -> str:
    """What closes a field."""
    return '"]' if is_list(name) else '"'


def scaled(items: int, level: int) -> int:
    return (items * level + LEVELS // 2) // LEVELS


WHOLE = Form()
# What a whole plan begins with: a tool is next.
BEGINS = WHOLE.openings["route_plan"]
