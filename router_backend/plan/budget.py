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

from router_backend.plan.form import LEVELS, WHOLE, Form, closed, scaled
from router_backend.plan.rules import QA, TODO
from router_backend.writing.stages import JOIN, Count

# Further steps than these are for budgets that can pay for their to-dos too.
STEPS_CHEAP, LEVEL_FOR_MORE = 4, 6
# A list is planned with an item more only where all texts can have this much of their length at that level.
FULL = 0.7
# A text that is being written may have so many times its length, or one part in so many of what can be spared.
STRETCH, PARTS = 1.75, 6


def opening_of_metric(key: str, after: str) -> str:
    """What is forced before an optional metric's text, closing the field before it."""
    return f'{closed(after)}, "{key}": "'


@dataclass(frozen=True, slots=True)
class Pending:
    """A free text that is still to be written, and the forced tokens before it."""

    field: str
    forced: int
    usual: int
    least: int


class Costs:
    """Tokens of everything that is forced, counted once by the checkpoint's own tokenizer."""

    def __init__(self, count: Count, tools: Sequence[str], form: Form = WHOLE) -> None:
        self.tools, self.form, self.shapes = tuple(tools), form, form.shapes
        self._count = count
        self.opening = {field: count(text) + JOIN for field, text in form.openings.items()}
        if "difficulty" in self.shapes:
            self.opening["difficulty"] += max(map(count, self.shapes["difficulty"].words)) + JOIN
        self.item = count('", "') + JOIN
        self.number = max(count(f"{number}.") for number in range(1, 10)) + JOIN
        self.closing = count(form.closing) + JOIN
        self.step = {tool: count(f"{tool}(") + count(")") + 2 * JOIN for tool in tools}
        self.todo = {who: count(f"{TODO}{who}:") + JOIN for who in (*tools, QA)}
        self.link = {who: count(f" -> {who}") + JOIN for who in (*tools, QA)}
        self.metric = {key: count(opening_of_metric(key, form.last)) + JOIN for key in form.offered}

    @cached_property
    def smallest(self) -> int:
        """The smallest budget: one step with the tool that takes most, every text at its least."""
        if "route_plan" not in self.shapes:
            return self.floor_after_route([])
        return max(self.opening["route_plan"] - self.item + self.floor_with(tool, []) for tool in self.tools)

    @cached_property
    def usual(self) -> int:
        """What a plan likes to have: half as rich as those of the reference."""
        middle = [*self.tools[:2]] if "route_plan" in self.shapes else []
        own = self.texts("route_plan", [], 0) if middle else []
        return max(self.smallest, usual([*own, *self.after("route_plan", middle, LEVELS // 2)]) + self.closing)

    def floor_with(self, tool: str, route: Sequence[str]) -> int:
        """The least that everything takes where the route goes on with a tool, and with it alone."""
        steps = max(1, self.shapes["route_plan"].fewest - len(route))
        each = self.item + self.step[tool] + self.shapes["route_plan"].least
        return steps * each + self.floor_after_route([*route, *[tool] * steps])

    def floor_after_route(self, route: Sequence[str]) -> int:
        """The least that everything after the route's last argument takes."""
        return floor(self.after("route_plan", route, 0)) + self.closing

    def after(self, field: str, route: Sequence[str], level: int) -> list[Pending]:
        """The texts of all fields after `field`."""
        fields = list(self.shapes)
        later = fields[fields.index(field) + 1 :] if field in fields else fields if field == "route_plan" else []
        return list(chain.from_iterable(self.texts(name, route, level) for name in later))

    def texts(self, field: str, route: Sequence[str], level: int) -> list[Pending]:
        """A field's texts at a level of richness: 0 is as few as may be, `LEVELS` as many as the reference plans have.

        The route always has as many: how many steps a task takes is not for the budget to say.
        """
        shape = self.shapes[field]
        opening = self.opening[field]
        if field == "handoff_plan":
            opening += sum(self.link[who] for who in (*(route or [self._dearest(self.tools)]), QA))
        if field == "todo_list":
            tools = list(dict.fromkeys(route)) or [self._dearest(self.tools)]
            wanted = max(len(tools) + 1, shape.fewest)
            wanted += scaled(max(0, shape.items - wanted), level)
            whos = [*tools, *[self._dearest(tools)] * (wanted - len(tools) - 1), QA]
            forced = [self.item + self.todo[who] for who in whos]
        elif field == "route_plan":
            forced = [self.item + max(self.step.values())] * max(shape.items, shape.fewest)
        else:
            each = self.item + (self.number if field == "thinking_outline" else 0)
            forced = [each] * shape.count(level)
        forced[0] += opening - self.item
        return [Pending(field, tokens, shape.length(level), shape.least) for tokens in forced]

    def _dearest(self, tools: Sequence[str]) -> str:
        return max(tools, key=self.todo.__getitem__)


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
        own = costs.texts(field, route, level)[written:] if field in costs.shapes else []
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
