"""ToolWriter: calls of a client's tools, whose arguments keep their schemas and close within the token budget."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from router_backend.errors import AnswerError
from router_backend.plan.form import BEGINS
from router_backend.plan.part import with_plans
from router_backend.remembered import Remembered
from router_backend.schema.read import read
from router_backend.schema.script import SchemaScript
from router_backend.schema.size import Sizes, measure
from router_backend.schema.write import SchemaWriter, check, told
from router_backend.tools.words import OPENS, TAIL, head
from router_backend.types import Chunk, GenerateRequest, Tool, Usage
from router_backend.writing.grammar import choice, literals
from router_backend.writing.stages import JOIN, Ask, Reply, Script, Stages, tokens_of
from router_backend.writing.writer import Writer

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel
    from router_backend.schema.nodes import Node

MOST_CALLS = 8


@dataclass(frozen=True, slots=True)
class Known:
    """A tool that may be called: the nodes of its arguments, what they take, and how a call is wrapped."""

    tool: Tool
    root: Node
    sizes: Sizes
    head: str
    tail: str
    forced: int

    @property
    def least(self) -> int:
        """Tokens of a whole call at the least."""
        return self.sizes[self.root].least + self.forced

    @property
    def usual(self) -> int:
        return self.sizes[self.root].usual + self.forced


@dataclass
class CallsScript(Script):
    """Calls, one after another, as the checkpoint writes them.

    Attributes:
        routes: whether which tool it is, is asked as the first step of a route.
        calls: each tool, and where in `text` its arguments begin and end.
    """

    failure = AnswerError

    known: Sequence[Known]
    parallel: bool
    routes: bool
    calls: list[tuple[Known, int, int | None]] = field(default_factory=list)

    def stages(self) -> Stages:
        """Writes at least one call.

        Raises:
            AnswerError: the checkpoint chose none of the tools, or gave nothing usable for a value, twice.
        """
        offered = self._affordable(lambda each: each.least)
        while True:
            chosen = yield from self._tool(offered)
            self.text += chosen.head
            begin = len(self.text)
            self.calls.append((chosen, begin, None))
            limit = self.limit - self.count(chosen.tail) - JOIN
            yield from self._write_by(SchemaScript(limit, self.count, chosen.root, chosen.sizes, text=self.text))
            self.calls[-1] = (chosen, begin, len(self.text))
            self.text += chosen.tail
            offered = self._affordable(lambda each: each.usual)
            said = [(known, self.text[begin:end]) for known, begin, end in self.calls]
            circles = said[-1] in said[:-1]
            if not self.parallel or self.routes or circles or len(self.calls) == MOST_CALLS or not offered:
                return
            more = f"\n{OPENS}"
            reply = yield Ask("tool_calls", tokens_of([more]), f"start: MORE?\nMORE: {literals([more])}\n", ())
            if reply.text != more:
                return
            self.text += "\n"

    def since(self, at: int) -> Iterator[Chunk]:
        for known, begin, end in self.calls:
            if at <= begin < len(self.text):
                yield Chunk(call=known.tool.name, route=tuple(self.steps))
            if piece := self.text[max(at, begin) : end]:
                yield Chunk(piece, route=tuple(self.steps))

    def _tool(self, offered: Sequence[Known]) -> Generator[Ask, Reply, Known]:
        """One of the tools, by the checkpoint's own probabilities of their names."""
        if self.routes:
            tools = [f"/{each.tool.name}" for each in offered]
            before, options = BEGINS, [f"{tool}(" for tool in tools]
        else:
            before, options, tools = f'{OPENS}{{"name":', [f' "{each.tool.name}"' for each in offered], []
        said = yield from self._choose("tool_calls", options, said=before, tools=tools)
        return offered[options.index(said)]

    @property
    def can_call(self) -> bool:
        """Whether a whole call fits in what is left."""
        return bool(self._affordable(lambda each: each.least))

    def _affordable(self, size: Callable[[Known], int]) -> list[Known]:
        room = self._left() - JOIN
        return [each for each in self.known if size(each) <= room]


class ToolWriter(Writer[CallsScript]):
    """Writes calls of tools with one model."""

    kind, whole = "answer", "a whole call of one of these tools"

    def __init__(self, model: LocalModel, tools: Sequence[str], schemas: SchemaWriter) -> None:
        """`tools`: those of a plan's steps; `schemas` writes what is said instead of a call, to a schema."""
        super().__init__(model)
        self._schemas = schemas
        self._tools = tuple(tools)
        self._known = Remembered(self._measured, most=64)

    def write(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        """Yields calls, or text where the request lets the checkpoint speak and it does not begin a call."""
        if not request.may_speak:
            yield from super().write(request, cancelled, slot)
            return
        self.admit(request)
        can_call = self._script(request).can_call
        if request.schema is not None:
            calls = can_call and self._begins_call(request, cancelled, slot)
            yield from (
                super().write(request, cancelled, slot) if calls else self._schemas.write(request, cancelled, slot)
            )
        elif (yield from self._speak(request, cancelled, slot)):
            if can_call:
                yield from super().write(request, cancelled, slot)
            else:
                yield Chunk(finish_reason="length", usage=Usage(self._model.prompt_tokens(request)))

    def _speak(
        self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int
    ) -> Generator[Chunk, None, bool]:
        """Yields what the checkpoint says. Returns True, and yields nothing, where it begins a call."""
        held = ""
        chunks = self._model.generate(replace(request, output="text"), cancelled, slot)
        for chunk in chunks:
            held += chunk.text
            if held.lstrip().startswith(OPENS.strip()):
                return True
            if chunk.finish_reason is not None or not OPENS.startswith(held.lstrip()):
                yield replace(chunk, text=held)
                yield from chunks
        return False

    def _begins_call(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int) -> bool:
        """Whether the checkpoint would rather call a tool than begin with JSON."""
        options = (OPENS.strip(), "{")
        sampling = replace(request.sampling, max_new_tokens=tokens_of(options), stop=())
        asked = replace(request, output="text", grammar=choice(options), sampling=sampling)
        return "".join(chunk.text for chunk in self._model.generate(asked, cancelled, slot)).startswith(options[0])

    def _smallest(self, request: GenerateRequest) -> int:
        return 0 if request.may_speak else min(each.least for each in self._all(request)) + JOIN

    def _script(self, request: GenerateRequest) -> CallsScript:
        limit, known = request.sampling.max_new_tokens, self._all(request)
        return CallsScript(limit, self._model.count_tokens, known, request.parallel, request.routes)

    def _told(self, request: GenerateRequest) -> GenerateRequest:
        return told(request, self._all(request)[0].root, self._model.info) if request.routes else request

    def _check(self, script: CallsScript, request: GenerateRequest) -> None:
        for known, begin, end in script.calls:
            check(script.text[begin:end], known.tool.parameters, known.root)

    def _all(self, request: GenerateRequest) -> list[Known]:
        return [self._known(request.owner, tool, request.specialists, request.routes) for tool in request.tools]

    def _measured(self, owner: str, tool: Tool, specialists: tuple[str, ...], routes: bool) -> Known:
        count, name = self._model.count_tokens, f"/{tool.name}"
        first = name if name in specialists else None
        root = with_plans(read(tool.parameters, owner), specialists or self._tools, first)
        before, after = ("", "") if routes else (head(tool.name), TAIL)
        return Known(tool, root, measure(root, count), before, after, count(before) + count(after) + 2 * JOIN)
