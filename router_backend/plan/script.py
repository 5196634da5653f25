"""How a plan is written: stage by stage, what is forced by this code and what is free by the checkpoint.

`PlanScript.stages()` is a coroutine without any input or output of its own: it yields an `Ask`, is sent the `Reply`,
and meanwhile `text` grows by what will stand. So one script serves every engine, and is tested with functions of three
lines. The rules hold because nothing that could break them is ever asked for: the chain of the hand-off, the numbers,
the tools of the to-dos and the last item are written here.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from router_backend.errors import PlanError
from router_backend.plan import budget, grammar
from router_backend.plan.budget import (
    CLOSING,
    LEVEL_FOR_MORE,
    OPENING,
    SHAPES,
    STEPS_CHEAP,
    STEPS_MOST,
    Costs,
    Pending,
)
from router_backend.plan.rules import QA
from router_backend.plan.schema import DIFFICULTIES, OPTIONAL_METRICS
from router_backend.types import FieldBudget
from router_backend.writing import clip
from router_backend.writing.stages import JOIN, QUOTE, TRIES, Ask, Count, Reply, Script, Stages

# A hand-off with fewer tokens than these is its chain alone.
_WORTH_ASKING = 8

Wish = Literal["more", "end"]
Written = tuple[str, "str | None", bool]


@dataclass
class PlanScript(Script):
    """One plan. `limit` is its budget in tokens as `count` counts them.

    Attributes:
        text: the plan so far; never taken back.
        clipped: texts that were stopped by their limit, as `field` or `field[index]`.
        fields: tokens given to and used by each field's texts.
    """

    failure = PlanError

    limit: int
    costs: Costs
    count: Count
    text: str = ""
    clipped: list[str] = field(default_factory=list)
    fields: dict[str, FieldBudget] = field(default_factory=dict)
    route: list[str] = field(default_factory=list)

    def stages(self) -> Stages:
        """Writes the whole plan.

        Raises:
            PlanError: the checkpoint gave nothing usable for a text, twice.
        """
        yield from self._route()
        yield from self._single("route_rationale")
        yield from self._list("expected_artifacts")
        yield from self._outline()
        yield from self._handoff()
        yield from self._todo()
        yield from self._difficulty()
        yield from self._tags()
        yield from self._list("acceptance_criteria")
        yield from self._list("metrics.primary")
        last = yield from self._list("metrics.secondary")
        yield from self._optional_metrics(last)

    # Fields

    def _route(self) -> Stages:
        self.text = OPENING["route_plan"]
        options = self._next_tools() or [min(self.costs.tools, key=self.costs.step.__getitem__)]
        while True:
            # The marks around a name are written with what they share a token with: off its own tokens a tuned
            # checkpoint takes other tools.
            lead = ' "' if self.route else ""
            call = yield from self._choose("route_plan", [f"{lead}{tool}(" for tool in options])
            self.route.append(call[len(lead) : -1])
            self.text += call[:-1]
            name = f"route_plan[{len(self.route) - 1}]"
            level, planned = self._plan("route_plan", len(self.route) - 1)
            wish = yield from self._text(name, "route_plan", level, planned, leads=("(",), call=True)
            self.text += ")"
            options = self._next_tools()
            if not options:
                return
            if wish is None:  # stopped by its limit: ask whether the route goes on
                wish = "more" if (yield from self._choose("route_plan", ['",', '"]'])) == '",' else "end"
            if wish == "end":
                return
            self.text += '",'

    def _single(self, name: str) -> Stages:
        self.text += OPENING[name]
        yield from self._text(name, name, self._level(name))

    def _list(self, name: str, *, leads: Sequence[str] = ()) -> Generator[Ask, Reply, Wish | None]:
        self.text += OPENING[name]
        shape, index = SHAPES[name], 0
        while True:
            level, planned = self._plan(name, index)
            wish = yield from self._text(f"{name}[{index}]", name, level, planned, leads=leads)
            index += 1
            wants_more = wish == "more" or (wish is None and bool(planned))
            if not wants_more or index == shape.most or not (planned or self._has_left_over(name)):
                return wish
            self.text += '", "' + (f"{index + 1}." if name == "thinking_outline" else "")

    def _outline(self) -> Stages:
        yield from self._list("thinking_outline", leads=(" ",))

    def _handoff(self) -> Stages:
        self.text += OPENING["handoff_plan"] + " -> ".join([*self.route, QA])
        yield from self._text(
            "handoff_plan", "handoff_plan", self._level("handoff_plan"), leads=(" ", ". "), optional=True
        )

    def _todo(self) -> Stages:
        self.text += OPENING["todo_list"]
        uncovered = list(dict.fromkeys(self.route))
        outside = [tool for tool in self.costs.tools if tool not in self.route]
        tools, index = list(uncovered), 0
        while True:
            level, rest = self._plan("todo_list", index)
            # Items that may still come besides one for each uncovered tool and the router's own.
            spare = len(rest) - len(uncovered)
            if spare <= 0 and self._has_left_over("todo_list"):
                spare = 1
            if index + len(uncovered) + 1 >= SHAPES["todo_list"].most:
                spare = 0
            options = tools if spare > 0 else uncovered
            if not uncovered:
                options = [*options, QA] if index >= 1 and spare > 0 else [QA]
            said = yield from self._choose("todo_list", [f" {who}:" for who in options])
            who = said[1:-1]
            self.text += said
            if who in uncovered:
                uncovered.remove(who)
            needed = [] if who == QA else [self._todo_item(each) for each in (*uncovered, QA)]
            planned = [] if who == QA else [self._todo_item(who)] * (len(rest) - len(needed))
            yield from self._text(
                f"todo_list[{index}]", "todo_list", level, planned, needed=needed, leads=(" ",), banned=outside
            )
            if who == QA:
                return
            index += 1
            self.text += '", "- [ ]'

    def _difficulty(self) -> Stages:
        self.text += OPENING["difficulty"]
        difficulty = yield from self._choose("difficulty", DIFFICULTIES, stop='"')
        self.text += difficulty

    def _tags(self) -> Stages:
        self.text += OPENING["tags"]
        tags: list[str] = []
        shape = SHAPES["tags"]
        while True:
            level, planned = self._plan("tags", len(tags))
            wish = yield from self._tag(tags, level, planned)
            wants_more = wish == "more" or (wish is None and bool(planned))
            if not wants_more or len(tags) == shape.most or not (planned or self._has_left_over("tags")):
                return
            self.text += '", "'

    def _optional_metrics(self, last: Wish | None) -> Stages:
        """Offers the optional keys where there is room, and closes the plan."""
        first = True
        keys = list(OPTIONAL_METRICS)
        while keys:
            shape = SHAPES["metrics.optional"]
            text = Pending("metrics.optional", max(self.costs.metric[key] for key in keys), shape.usual, shape.least)
            if last is None or self._left() < budget.usual([text]) + self.costs.closing + 2:
                break
            end = CLOSING if first else CLOSING.replace("]", "")
            options = [end, *(('"' + budget.opening_of_metric(key, first=first)) for key in keys)]
            said = yield from self._choose("metrics", options)
            if said == end:
                break
            first = False
            key = said.rsplit('"', 3)[-3]
            keys.remove(key)
            self.text += said
            last = yield from self._text(f"metrics.{key}", "metrics.optional", budget.LEVELS)
        self.text += CLOSING if first else CLOSING.replace("]", "")

    # Stages

    def _text(
        self,
        name: str,
        field: str,
        level: int,
        planned: Sequence[Pending] = (),
        *,
        needed: Sequence[Pending] = (),
        leads: Sequence[str] = (),
        banned: Sequence[str] = (),
        optional: bool = False,
        call: bool = False,
    ) -> Generator[Ask, Reply, Wish | None]:
        """One free text. Returns whether the checkpoint wanted the list to go on; None where it was stopped.

        `planned` are the texts that the list may still get, `needed` those that it must.
        """
        limit = self._allot(field, planned, needed, level)
        if optional and limit < _WORTH_ASKING:
            return None
        rules = grammar.text(leads=leads, banned=banned, optional=optional, call=call)
        rest = grammar.rest(banned=banned)
        for attempt in range(TRIES):
            body, tail, ended = yield from self._write(name, limit, rules, rest, attempt)
            lead = next((each for each in leads if body.startswith(each)), leads[0] if leads else "")
            text = clip.clean(body.removeprefix(lead))
            if call and ended:
                text = text.removesuffix(")").rstrip()
            stopped = not ended
            for word in banned:
                if word in text:  # an engine that ignored the grammar
                    text, stopped = text.partition(word)[0].rstrip(), True
            while grammar.MARK.search(text):  # the same, or left by what was cut out of it
                text = grammar.MARK.sub("", text).strip()
            if stopped or self._tokens(lead + text) > limit:
                text, stopped = clip.shorten(text, partial(self._fits, lead, limit)), True
                if call:  # the call's own parenthesis comes after the ellipsis
                    text = text.removesuffix(f"){clip.ELLIPSIS}") or text
                    text += "" if text.endswith(clip.ELLIPSIS) else clip.ELLIPSIS
            if text or optional:
                break
        else:
            raise PlanError(f"the checkpoint wrote nothing for {name}, twice")
        self.text += clip.escape(lead + text) if text else ""
        self._note(name, field, limit, text, stopped)
        if stopped:
            return None
        return "end" if tail is not None and tail[:1] in ("]", "}") else "more"

    def _tag(self, tags: list[str], level: int, planned: Sequence[Pending]) -> Generator[Ask, Reply, Wish | None]:
        name = f"tags[{len(tags)}]"
        limit = self._allot("tags", planned, (), level)
        for attempt in range(TRIES):
            rules = grammar.tag(tags)
            body, tail, ended = yield from self._write(name, limit, rules, rules, attempt)
            tag = "-".join(grammar.TAG_WORD.findall(clip.clean(body).lower()))
            stopped = not ended
            while tag and (self._tokens(tag) > limit or tag in tags):
                tag, stopped = tag.rpartition("-")[0], True
            if tag:
                break
        else:
            # Taken, or none at all: a short one that is not taken yet.
            tag, stopped = next(name for name in (f"t{n}" for n in range(1, 9)) if name not in tags), True
        tags.append(tag)
        self.text += tag
        self._note(name, "tags", limit, tag, stopped)
        if stopped:
            return None
        return "end" if tail is not None and tail[:1] in ("]", "}") else "more"

    def _write(self, name: str, limit: int, rules: str, rest: str, attempt: int) -> Generator[Ask, Reply, Written]:
        """The body of a JSON string, what follows its closing quote, and whether it was closed.

        `rest` is the grammar of a text that has begun.
        """
        said = ""
        left = limit + QUOTE
        while True:
            reply = yield Ask(name, left, rules, ('",',), attempt, said, free_after=0)
            body, tail = clip.split_at_quote(said + reply.text)
            if tail is not None or not reply.ended:
                return body, tail, tail is not None
            # The stop text came. After half an escape it was a quote and a comma inside the text.
            left = limit + QUOTE - self.count(body) - 2
            if not clip.open_escape(body) or left < 1:
                return body, None, True
            said, rules = body + '",', rest

    # Arithmetic

    def _level(self, field: str, written: int = 0) -> int:
        return budget.level_for(self._left(), self.costs, field, self.route, written)

    def _plan(self, field: str, index: int) -> tuple[int, list[Pending]]:
        """The level that the budget has left for a list's text, and the list's texts after it at that level."""
        level = self._level(field, index)
        return level, self.costs.texts(field, self.route, level)[index + 1 :]

    def _fits(self, lead: str, limit: int, text: str) -> bool:
        return self._tokens(lead + text) <= limit

    def _allot(self, field: str, planned: Sequence[Pending], needed: Sequence[Pending], level: int) -> int:
        """Tokens for the next text: its share, and never what the rest needs at the least."""
        shape = SHAPES[field]
        text = Pending(field, 0, shape.length(level), shape.least)
        later = [*needed, *planned, *self.costs.after(field, self.route, level)]
        few = [*needed, *self.costs.after(field, self.route, 0)]
        return budget.allot(self._left() - JOIN, text, later, few, self.costs.closing)

    def _todo_item(self, who: str) -> Pending:
        shape = SHAPES["todo_list"]
        return Pending("todo_list", self.costs.item + self.costs.todo[who], shape.usual, shape.least)

    def _next_tools(self) -> list[str]:
        """The tools that a further step may have: those that leave the least for everything after it."""
        steps = len(self.route)
        if steps == STEPS_MOST or (steps >= STEPS_CHEAP and self._level("route_rationale") < LEVEL_FOR_MORE):
            return []
        opening, left = self.costs.item if steps else 0, self._left()
        return [
            tool
            for tool in self.costs.tools
            if opening
            + self.costs.step[tool]
            + SHAPES["route_plan"].least
            + self.costs.floor_after_route([*self.route, tool])
            <= left
        ]

    def _has_left_over(self, field: str) -> bool:
        """Whether one more item than planned leaves all later texts a quarter more than usual."""
        shape = SHAPES[field]
        later = self.costs.after(field, self.route, budget.LEVELS)
        rest = sum(text.forced + text.usual + text.usual // 4 for text in later)
        extra = self.costs.item + shape.usual + (self.costs.number if field == "thinking_outline" else 0)
        if field == "todo_list":
            extra += max(self.costs.todo.values()) * 2 + shape.usual
        return self._left() >= extra + rest + self.costs.closing

    def _note(self, name: str, field: str, given: int, text: str, stopped: bool) -> None:
        top = field.partition(".")[0]
        before = self.fields.get(top, FieldBudget())
        # A list's next item may have what its earlier ones left over, so what is given does not add up.
        self.fields[top] = FieldBudget(max(before.given, before.used + given), before.used + self._tokens(text))
        if stopped:
            self.clipped.append(name)
