"""Tools as text, for checkpoints whose chat template knows none, and hand-offs as a router's own prompt has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

from router_backend.plan.prompt import is_routers_own, router_prompt
from router_backend.types import GenerateRequest, Tool, Turn

OPENS, CLOSES = "<tool_call>\n", "\n</tool_call>"
TAIL = "}" + CLOSES
_HOW = f"""\
You may call these functions. To call one, write nothing but
{OPENS}{{"name": "the function's name", "arguments": {{…}}}}{CLOSES}
"""


def head(name: str) -> str:
    """What stands before a call's arguments."""
    return f'{OPENS}{{"name": {json.dumps(name)}, "arguments": '


def as_text(request: GenerateRequest) -> GenerateRequest:
    """The request without tools and their results in its conversation: they are texts of its messages."""
    if not request.tools and all(turn.role != "tool" and not turn.calls for turn in request.turns):
        return request
    turns = list(_merged(map(_said, request.turns)))
    if request.routes:
        turns = _routed(turns, request.tools)
    elif request.tools:
        turns = _told(turns, request.tools)
    *history, last = turns  # a result of a tool has become the user's
    return replace(request, history=tuple(history), prompt=last.content, result_of=None)


def _said(turn: Turn) -> Turn:
    """A turn as one of a person's or the assistant's."""
    if turn.role == "tool":
        return Turn("user", f"Result of {turn.name or 'the function'}:\n{turn.content}")
    calls = [head(call.name) + call.arguments + TAIL for call in turn.calls]
    return Turn(turn.role, "\n".join(filter(None, [turn.content, *calls])))


def _merged(turns: Iterable[Turn]) -> Iterable[Turn]:
    """With the results of tools and what the user says then as one turn: many templates want roles to alternate."""
    for role, group in groupby(turns, key=attrgetter("role")):
        if role == "user":
            yield Turn("user", "\n\n".join(turn.content for turn in group))
        else:
            yield from group


def _told(turns: Sequence[Turn], tools: Sequence[Tool]) -> list[Turn]:
    """With the tools in the system's message, or before the user's first one where there is none."""
    lines = [f"- {tool.name}: {tool.description}\n  arguments: {tool.parameters}" for tool in tools]
    at = next((at for at, turn in enumerate(turns) if turn.role == "system"), None)
    text = _HOW + "\n".join(lines)
    if at is None:
        at = next(at for at, turn in enumerate(turns) if turn.role == "user")
        text = f"{text}\n\n{turns[at].content}"
    else:
        text = f"{turns[at].content}\n\n{text}"
    return [replace(turn, content=text) if turn is turns[at] else turn for turn in turns]


def _routed(turns: Sequence[Turn], tools: Sequence[Tool]) -> list[Turn]:
    """A router's own question: what the system says is its context, and the tools stand beside it."""
    *before, last = turns
    if is_routers_own(last.content):
        return list(turns)
    system = [turn.content for turn in before if turn.role == "system"]
    names = [f"/{tool.name}: {tool.description}" for tool in tools]
    prompt = router_prompt(last.content, context="\n".join([*system, *names]))
    return [*(turn for turn in before if turn.role != "system"), replace(last, content=prompt)]
