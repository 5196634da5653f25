"""Draft: a plan that comes from one call, for servers that keep no grammar. Its texts are put into form by the script.

The script asks as it asks any checkpoint, and is answered out of the draft: so keys, tools, numbers, the hand-off chain
and the budget are this code's, and a text that is too long is clipped. What the draft lacks is looked for in a second
one; a plan without it is never made up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from router_backend.errors import PlanError
from router_backend.plan.parse import NoPlanFound, parse
from router_backend.plan.rules import QA, TODO
from router_backend.plan.schema import as_schema
from router_backend.plan.script import PlanScript
from router_backend.types import Chunk
from router_backend.writing import clip
from router_backend.writing.stages import TRIES, Ask, Reply, Script
from router_backend.writing.writer import StageRun

_STEP = re.compile(r"\s*(/[\w-]+)\s*\((.*?)\)?\s*", re.DOTALL)
_ITEM = re.compile(r"\s*(?:-?\s*\[.?\])?\s*(/[\w-]+|router qa)\s*:?\s*(.*)", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"\s*\d+\s*[.):]\s*")
_AT = re.compile(r"(.+?)(?:\[(\d+)\])?")
# A plan that was not told to keep short is about as long as this; a budget below it is met by clipping.
_USUAL = 1400


class Draft:
    """A parsed plan, read in the order in which a script asks for it."""

    def __init__(self, plan: dict[str, Any], tools: Sequence[str]) -> None:
        self._plan = plan
        steps = [match for match in map(_STEP.fullmatch, self._texts("route_plan")) if match]
        self._steps = [(match[1], match[2]) for match in steps if match[1] in tools]
        self._route = dict(reversed(self._steps))
        items = [match for match in map(_ITEM.fullmatch, self._texts("todo_list")) if match]
        self._items = [(QA if match[1][0] != "/" else match[1], match[2]) for match in items]

    def fill(self, other: Draft) -> None:
        """What it does not say is taken from another."""
        if not self._route:
            self._steps, self._route = other._steps, other._route
        metrics = other._metrics() | self._metrics()
        said = {key: value for key, value in self._plan.items() if self._texts(key)}
        self._plan = other._plan | said | {"metrics": metrics}

    def reply(self, ask: Ask, text: str) -> Reply | None:
        """What it says after the plan's `text`; None where it says nothing."""
        if ask.options:
            chosen = self._chosen(ask.field, ask.options)
            return None if chosen is None else Reply(chosen, ended=True)
        found = self._text(ask.field, text)
        if found is None:
            return None
        said, more = found
        body = clip.escape(said)
        return Reply(f'{body}"{"," if more else "]"}', ended=True)

    def _chosen(self, field: str, options: tuple[str, ...]) -> str | None:
        if field == "route_plan":
            return self._next_step(options)
        if field == "todo_list":
            return self._next_item(options)
        if field == "metrics":
            known = self._metrics()
            return next((each for each in options[1:] if each.rsplit('"', 3)[-3] in known), options[0])
        said = self._plan.get(field)
        words = said if isinstance(said, str) else ""
        return next((each for each in options if words.strip().lower() == each.rstrip('"')), None)

    def _next_step(self, options: tuple[str, ...]) -> str | None:
        """The tool of the next step that may be taken; or whether there is one."""
        if '",' in options:
            return '",' if self._steps else '"]'
        tools = {option.strip(' "('): option for option in options}
        return next((tools[tool] for tool, _ in self._steps if tool in tools), None)

    def _next_item(self, options: tuple[str, ...]) -> str:
        """Who the next item is for; where the draft has none that may come now, the router's own ends the list."""
        known = {option.strip(" :"): option for option in options}
        return next((known[who] for who, _ in self._items if who in known), options[-1])

    def _text(self, place: str, written: str) -> tuple[str, bool] | None:
        """A text, and whether its list goes on."""
        match = _AT.fullmatch(place)
        assert match is not None
        field, index = match[1], int(match[2] or 0)
        if field == "route_plan":
            said = _taken(self._steps, written.rpartition('"')[2])
            return (f"({said})", bool(self._steps)) if said else None
        if field == "todo_list":
            said = self._item_of(written.rpartition(TODO)[2].removesuffix(":"))
            return (f" {said}", True) if said else None
        if field == "handoff_plan":
            rest = re.split(re.escape(QA), " ".join(self._texts(field)), maxsplit=1, flags=re.IGNORECASE)[1:]
            said = "".join(rest).strip(" .;,")
            return (f". {said}" if said else "", False)
        texts = self._texts(field)
        if index >= len(texts):
            return None
        said = _NUMBER.sub("", texts[index], count=1) if field == "thinking_outline" else texts[index]
        lead = " " if field == "thinking_outline" else ""
        return lead + said, index + 1 < len(texts)

    def _item_of(self, who: str) -> str:
        """What there is to do for a tool; where the draft does not say so, what its route or its criteria say."""
        instead = next(iter(self._texts("acceptance_criteria")), "") if who == QA else self._route.get(who, "")
        return _taken(self._items, who, upto=False) or _one_line(instead)

    def _texts(self, field: str) -> list[str]:
        """A field's texts, those that say something."""
        top, _, key = field.partition(".")
        found = self._metrics().get(key) if key else self._plan.get(top)
        texts = found if isinstance(found, list) else [found]
        return [_one_line(each) for each in texts if isinstance(each, str) and each.strip()]

    def _metrics(self) -> dict[str, Any]:
        found = self._plan.get("metrics")
        return found if isinstance(found, dict) else {}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _taken(texts: list[tuple[str, str]], who: str, *, upto: bool = True) -> str:
    """The first of the texts that is for them, which is not there any longer; nor is, `upto` it, any before it."""
    at = next((at for at, (each, _) in enumerate(texts) if each == who), None)
    if at is None:
        return ""
    said = texts[at][1]
    del texts[0 if upto else at : at + 1]
    return said


class DraftRun(StageRun):
    """A script on a model that is asked for a whole plan. `calls` are the drafts."""

    _draft: Draft | None = None
    _tools: Sequence[str] = ()

    def chunks(self, script: Script) -> Iterator[Chunk]:
        assert isinstance(script, PlanScript)
        self._tools = script.costs.tools
        yield from super().chunks(script)

    def _run(self, ask: Ask, text: str) -> Reply | None:
        while True:
            reply = self._draft.reply(ask, text) if self._draft else None
            if reply is not None:
                return reply
            if self.calls == TRIES:
                raise PlanError(f"the checkpoint's plan says nothing for {ask.field}, twice: it keeps no grammar")
            said = "".join(self._drafted())
            if self.cancelled:
                return None
            try:
                draft = Draft(parse(said), self._tools)
            except NoPlanFound:
                continue
            if self._draft is None:
                self._draft = draft
            else:
                self._draft.fill(draft)

    def _drafted(self) -> Iterator[str]:
        sampling = self._request.sampling
        most = max(1, min(self._room, max(_USUAL, 2 * sampling.max_new_tokens)))
        seed = (sampling.seed + 1000 * self.calls) % 2**32
        asked = replace(
            self._request, sampling=replace(sampling, max_new_tokens=most, seed=seed), output="text", schema=as_schema()
        )
        ask = Ask("plan", most, "", (), attempt=self.calls)
        for chunk in self._model.generate(asked, self._is_cancelled, self._slot):
            yield chunk.text
            if chunk.finish_reason == "cancelled":
                self.cancelled = True
                return
            if chunk.finish_reason is not None:
                self._add(chunk, ask)
