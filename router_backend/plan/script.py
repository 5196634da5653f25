"""How a plan is written: stage by stage, what is forced by this code and what is free by the checkpoint.

`PlanScript.stages()` is a coroutine without any input or output of its own: it yields an `Ask`, is sent the `Reply`,
and meanwhile `text` grows by what will stand. So one script serves every engine, and is tested with functions of three
lines. The rules hold because nothing that could break them is ever asked for: the chain of the hand-off, the numbers,
the tools of the to-dos and the last item are written here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from router_backend.errors import PlanError
from router_backend.plan import budget, grammar
from router_backend.plan.budget import LEVEL_FOR_MORE, STEPS_CHEAP, Costs, Pending
from router_backend.plan.form import LEVELS, METRICS, OPTIONAL, Shape, closed, is_list
from router_backend.plan.rules import QA
from router_backend.types import FieldBudget
from router_backend.writing import clip
from router_backend.writing.stages import JOIN, QUOTE, TRIES, Ask, Reply, Script, Stages

# A hand-off with fewer tokens than these is its chain alone.
_WORTH_ASKING = 8

Wish = Literal["more", "end"]
Written = tuple[str, "str | None", bool]


@dataclass
class PlanScript(Script):
    """One plan.

    Attributes:
        fields: tokens given to and used by each field's texts.
        first: the tool that the route begins with; None where the checkpoint chooses it.
    """

    failure = PlanError

    costs: Costs
    fields: dict[str, FieldBudget] = field(default_factory=dict)
    route: list[str] = field(default_factory=list)
    first: str | None = None

    def __post_init__(self) -> None:
        self._shapes = self.costs.shapes

    def stages(self) -> Stages:
        """Writes the whole plan.

        Raises:
            PlanError: the checkpoint gave nothing usable for a text, twice.
        """
        last: Wish | None = None
        for name in self._shapes:
            self.text += self.costs.form.openings[name]
            if writes := _WRITERS.get(name):
                yield from writes(self)
            elif is_list(name):
                last = yield from self._list(name)
            else:
                last = yield from self._text(name, self._level(name))
        yield from self._optional_metrics(last)

    # Fields

    def _route(self) -> Stages:
        options = [self.first] if self.first else self._next_tools()
        options = options or [min(self.costs.tools, key=self.costs.step.__getitem__)]
        while True:
            # The marks around a name are written with what they share a token with: off its own tokens a tuned
            # checkpoint takes other tools.
            lead = ' "' if self.route else ""
            chosen = [f"{lead}{tool}(" for tool in options]
            known = options if self.route or not self.first else []  # whoever gave the first one knows its odds
            call = yield from self._choose("route_plan", chosen, tools=known)
            self.route.append(call[len(lead) : -1])
            self.text += call[:-1]
            name = f"route_plan[{len(self.route) - 1}]"
            level, planned = self._plan("route_plan", len(self.route) - 1)
            due = self._shapes["route_plan"].fewest - len(self.route)
            wish = yield from self._text(name, level, planned, needed=self._steps(due), leads=("(",), call=True)
            self.text += ")"
            options = self._next_tools()
            if due > 0:
                options, wish = options or [self.route[-1]], "more"
            if not options:
                return
            if wish is None:  # stopped by its limit: ask whether the route goes on
                wish = "more" if (yield from self._choose("route_plan", ['",', '"]'])) == '",' else "end"
            if wish == "end":
                return
            self.text += '",'

    def _list(self, name: str) -> Generator[Ask, Reply, Wish | None]:
        index, numbered = 0, name == "thinking_outline"
        while True:
            level, needed, planned = self._due(name, index)
            leads = (" ",) if numbered else ()
            wish = yield from self._text(f"{name}[{index}]", level, planned, needed=needed, leads=leads)
            index += 1
            if not needed and not self._goes_on(name, index, wish, planned):
                return wish
            self.text += '", "' + (f"{index + 1}." if numbered else "")

    def _goes_on(self, name: str, items: int, wish: Wish | None, planned: Sequence[Pending]) -> bool:
        """Whether a list gets an item that it need not have."""
        wants_more = wish == "more" or (wish is None and bool(planned))
        fits = self._has_room(name, planned[0]) if planned else self._has_left_over(name)
        return wants_more and items < self._shapes[name].most and fits

    def _handoff(self) -> Stages:
        if "route_plan" in self._shapes:
            self.text += " -> ".join([*self.route, QA])
        else:  # the hand-off alone says who is called
            said = yield from self._choose("handoff_plan", [f"{tool} -> {QA}" for tool in self.costs.tools])
            self.route.append(said.partition(" ")[0])
            self.text += said
        yield from self._text("handoff_plan", self._level("handoff_plan"), leads=(" ", ". "), optional=True)

    def _todo(self) -> Stages:
        uncovered = list(dict.fromkeys(self.route))
        tools, shape, index = uncovered or list(self.costs.tools), self._shapes["todo_list"], 0
        uncovered, outside = list(uncovered), [tool for tool in self.costs.tools if tool not in tools]
        while True:
            level, rest = self._plan("todo_list", index)
            # Items that may still come besides one for each uncovered tool and the router's own.
            spare = len(rest) - len(uncovered)
            if spare <= 0 and self._has_left_over("todo_list"):
                spare = 1
            if index + len(uncovered) + 1 >= shape.most:
                spare = 0
            due = max(0, shape.fewest - index - len(uncovered) - 1)
            options = tools if spare > 0 or due else uncovered
            if not uncovered and not due:
                options = [*options, QA] if index >= 1 and spare > 0 else [QA]
            said = yield from self._choose("todo_list", [f" {who}:" for who in options])
            who = said[1:-1]
            self.text += said
            if who in uncovered:
                uncovered.remove(who)
            elif due:
                due -= 1
            needed = [] if who == QA else [self._todo_item(each) for each in (*uncovered, *[tools[0]] * due, QA)]
            planned = [] if who == QA else [self._todo_item(who)] * (len(rest) - len(needed))
            name = f"todo_list[{index}]"
            yield from self._text(name, level, planned, needed=needed, leads=(" ",), banned=outside)
            if who == QA:
                return
            index += 1
            self.text += '", "- [ ]'

    def _difficulty(self) -> Stages:
        difficulty = yield from self._choose("difficulty", self._shapes["difficulty"].words, stop='"')
        self.text += difficulty

    def _tags(self) -> Stages:
        tags: list[str] = []
        words = self._shapes["tags"].words
        wish: Wish | None
        while True:
            level, needed, planned = self._due("tags", len(tags))
            if words:
                wish = yield from self._known_tag([word for word in words if word not in tags], tags)
            else:
                wish = yield from self._tag(tags, level, planned, needed)
            if not needed and not self._goes_on("tags", len(tags), wish, planned):
                return
            self.text += '", "'

    def _optional_metrics(self, last: Wish | None) -> Stages:
        """Offers the optional keys where there is room, and closes the plan."""
        form, before = self.costs.form, self.costs.form.last
        keys = list(form.offered)
        while keys:
            text = Pending(METRICS, max(self.costs.metric[key] for key in keys), OPTIONAL.usual, OPTIONAL.least)
            if last is None or self._left() < budget.usual([text]) + self.costs.closing + 2:
                break
            # A plan that is a part of something longer has a mark after it that is not its own to write.
            end = closed(before) + form.ends
            options = [end, *(budget.opening_of_metric(key, before) for key in keys)]
            said = yield from self._choose("metrics", options)
            if said == end:
                break
            key = said.rsplit('"', 3)[-3]
            keys.remove(key)
            self.text += said
            before = METRICS + key
            last = yield from self._text(before, LEVELS)
        self.text += closed(before) + form.ends

    # Stages

    def _text(
        self,
        name: str,
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
        field = _field_of(name)
        limit, shape = self._allot(field, planned, needed, level), self._shape(field)
        # What stands of this string already counts among its characters, and a call's ellipsis and parenthesis.
        written = len(self.text.rpartition('"')[2]) + 2 * call
        room = None if shape.longest is None else shape.longest - written
        least = shape.shortest - written
        optional = optional and least < 1
        if optional and (limit < _WORTH_ASKING or (room is not None and room < _WORTH_ASKING)):
            return None
        rules = grammar.text(leads=leads, banned=banned, optional=optional, call=call, least=least)
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
            fits = partial(self._fits, limit, room, lead)
            if stopped or not fits(text):
                shorter = clip.shorten(text, fits)
                text, stopped = shorter if len(lead + shorter) >= least else clip.cut(text, fits), True
                if call:  # the call's own parenthesis comes after the ellipsis
                    text = text.removesuffix(f"){clip.ELLIPSIS}") or text
                    text += "" if text.endswith(clip.ELLIPSIS) or least > 1 else clip.ELLIPSIS
            if (text or optional) and len(lead + text) >= least:
                break
        else:
            raise PlanError(f"the checkpoint wrote too little for {name}, twice")
        self.text += clip.escape(lead + text) if text else ""
        return self._note(name, limit, text, tail, stopped)

    def _known_tag(self, words: Sequence[str], tags: list[str]) -> Generator[Ask, Reply, Wish]:
        """One of the tags that a client knows."""
        word = yield from self._choose("tags", words, stop='"')
        tags.append(word)
        self.text += word
        shape = self._shapes["tags"]
        if not shape.fewest <= len(tags) < shape.most:
            return "more"
        return "more" if (yield from self._choose("tags", ['",', '"]'])) == '",' else "end"

    def _tag(
        self, tags: list[str], level: int, planned: Sequence[Pending], needed: Sequence[Pending]
    ) -> Generator[Ask, Reply, Wish | None]:
        name, longest = f"tags[{len(tags)}]", self._shapes["tags"].longest
        limit = self._allot("tags", planned, needed, level)
        for attempt in range(TRIES):
            rules = grammar.tag(tags)
            body, tail, ended = yield from self._write(name, limit, rules, rules, attempt)
            tag = "-".join(grammar.TAG_WORD.findall(clip.clean(body).lower()))
            stopped = not ended
            if longest is not None and len(tag) > longest:
                tag, stopped = tag[:longest].rstrip("-"), True
            while tag and (self._tokens(tag) > limit or tag in tags):
                tag, stopped = tag.rpartition("-")[0], True
            if tag:
                break
        else:
            # Taken, or none at all: a short one that is not taken yet.
            tag, stopped = next(name for name in (f"t{n}" for n in range(1, 10)) if name not in tags), True
        tags.append(tag)
        self.text += tag
        return self._note(name, limit, tag, tail, stopped)

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

    def _due(self, field: str, index: int) -> tuple[int, list[Pending], list[Pending]]:
        """As `_plan`, the texts that must come apart from those that may."""
        level, texts = self._plan(field, index)
        due = max(0, self._shapes[field].fewest - index - 1)
        return level, texts[:due], texts[due:]

    def _steps(self, count: int) -> list[Pending]:
        """Steps that the route must have; they may repeat the last tool."""
        tool, shape = self.route[-1], self._shapes["route_plan"]
        forced = self.costs.item + self.costs.step[tool] + self.costs.link[tool]
        return [Pending("route_plan", forced, shape.usual, shape.least)] * count

    def _shape(self, field: str) -> Shape:
        return self._shapes.get(field, OPTIONAL)

    def _allot(self, field: str, planned: Sequence[Pending], needed: Sequence[Pending], level: int) -> int:
        """Tokens for the next text: its share, and never what the rest needs at the least."""
        shape = self._shape(field)
        text = Pending(field, 0, shape.length(level), shape.least)
        later = [*needed, *planned, *self.costs.after(field, self.route, level)]
        few = [*needed, *self.costs.after(field, self.route, 0)]
        return budget.allot(self._left() - JOIN, text, later, few, self.costs.closing)

    def _todo_item(self, who: str) -> Pending:
        shape = self._shapes["todo_list"]
        return Pending("todo_list", self.costs.item + self.costs.todo[who], shape.usual, shape.least)

    def _next_tools(self) -> list[str]:
        """The tools that a further step may have: those that leave the least for everything after it."""
        steps, fewest, left = len(self.route), self._shapes["route_plan"].fewest, self._left()
        if steps == self._shapes["route_plan"].most:
            return []
        cheap = max(STEPS_CHEAP, fewest)
        later = next(iter([*self._shapes][1:]), "")
        if steps >= cheap and later and self._level(later) < LEVEL_FOR_MORE:
            return []
        opening = 0 if steps else self.costs.item
        return [
            tool
            for tool in self.costs.tools
            if self.costs.floor_with(tool, self.route) - opening <= left and self._has_place(tool)
        ]

    def _has_place(self, tool: str) -> bool:
        """Whether the hand-off and the to-dos, which a client may bound, can name one more step."""
        route, handoff, todo = [*self.route, tool], self._shapes.get("handoff_plan"), self._shapes.get("todo_list")
        due = [tool] * (self._shapes["route_plan"].fewest - len(route))
        if handoff and handoff.longest is not None and len(" -> ".join([*route, *due, QA])) > handoff.longest:
            return False
        return todo is None or len(set(route)) < todo.most

    def _has_room(self, field: str, text: Pending) -> bool:
        """Whether a list's next text can have its least: the one before it may have had what was planned for it."""
        due = budget.floor([text, *self.costs.after(field, self.route, 0)])
        return due + self.costs.closing + JOIN <= self._left()

    def _has_left_over(self, field: str) -> bool:
        """Whether one more item than planned leaves all later texts a quarter more than usual."""
        shape = self._shapes[field]
        later = self.costs.after(field, self.route, LEVELS)
        rest = sum(text.forced + text.usual + text.usual // 4 for text in later)
        extra = self.costs.item + shape.usual + (self.costs.number if field == "thinking_outline" else 0)
        if field == "todo_list":
            extra += max(self.costs.todo.values()) * 2 + shape.usual
        return self._left() >= extra + rest + self.costs.closing

    def _note(self, name: str, given: int, text: str, tail: str | None, stopped: bool) -> Wish | None:
        """Counts a text that stands, and reads in what followed it whether the list is to go on; None where stopped."""
        top = _field_of(name).partition(".")[0]
        before = self.fields.get(top, FieldBudget())
        # A list's next item may have what its earlier ones left over, so what is given does not add up.
        self.fields[top] = FieldBudget(max(before.given, before.used + given), before.used + self._tokens(text))
        if stopped:
            self.clipped.append(name)
            return None
        return "end" if tail is not None and tail[:1] in ("]", "}") else "more"


def _field_of(name: str) -> str:
    """The field of a text, without its place in a list."""
    return name.partition("[")[0]


_WRITERS: dict[str, Callable[[PlanScript], Stages]] = {
    "route_plan": PlanScript._route,
    "handoff_plan": PlanScript._handoff,
    "todo_list": PlanScript._todo,
    "difficulty": PlanScript._difficulty,
    "tags": PlanScript._tags,
}
