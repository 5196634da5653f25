"""Writer: runs a script on a model, checks what came out, and lets nothing else through."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

from router_backend.errors import BudgetTooSmall, GrammarFailed
from router_backend.types import Budget, Chunk, GenerateRequest, Timings, Usage
from router_backend.writing import clip
from router_backend.writing.stages import Ask, Reply, Script

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel

S = TypeVar("S", bound=Script)
# Nats: tools with less than a thousandth of the likeliest one's probability cost no passes of their own.
_REACH = 7.0


class Writer(ABC, Generic[S]):
    """Writes texts of one kind with one model. Thread-safe: a text's state is its own.

    Attributes:
        kind: what is written, and `whole`: what must fit in the budget, as messages name them.
    """

    kind: str
    whole: str

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def admit(self, request: GenerateRequest) -> int:
        """Tokens of the prompt, where the request can be answered at all.

        Raises:
            BudgetTooSmall: nothing whole fits in `max_new_tokens`.
            ContextOverflow: prompt and budget do not fit in the context.
        """
        limit, smallest = request.sampling.max_new_tokens, self._smallest(request)
        if limit < smallest:
            raise BudgetTooSmall(
                f"max_new_tokens is {limit}; the smallest budget for {self.whole} is {smallest}", param="max_new_tokens"
            )
        prompt_tokens = self._model.prompt_tokens(self._told(request))
        self._model.info.check_room(prompt_tokens, limit)
        return prompt_tokens

    def write(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        """Yields the text as it comes to stand; the last chunk has the sums.

        Raises:
            InvalidRequest: it asks for what is not done here.
            BudgetTooSmall, ContextOverflow: as `admit` does.
            PlanError, AnswerError: the model gave nothing usable, or the result is not what it must be.
        """
        limit = request.sampling.max_new_tokens
        prompt_tokens = self.admit(request)
        script = self._script(request)
        run = self._runs(request)(self._model, self._told(request), prompt_tokens, cancelled, slot)
        yield from run.chunks(script)
        if run.cancelled:
            yield Chunk(finish_reason="cancelled", timings=run.timings)
            return
        used = self._model.count_tokens(script.text)
        self._check(script, request)
        if used > limit:
            raise script.failure(f"the {self.kind} has {used} tokens, its budget {limit}")
        usage = Usage(prompt_tokens, used, min(run.cached or 0, prompt_tokens))
        *rest, last = run.rest(script) or [Chunk()]
        yield from rest
        budget = self._done(script, used, run)
        route = tuple(script.steps)
        yield replace(last, finish_reason="stop", usage=usage, timings=run.timings, budget=budget, route=route)

    @abstractmethod
    def _smallest(self, request: GenerateRequest) -> int:
        """The fewest tokens that can answer it. Raises InvalidRequest."""

    @abstractmethod
    def _script(self, request: GenerateRequest) -> S: ...

    @abstractmethod
    def _check(self, script: S, request: GenerateRequest) -> None:
        """Nothing leaves that was not parsed and checked. Raises the script's `failure`."""

    def _runs(self, request: GenerateRequest) -> type[StageRun]:
        """What runs its script."""
        return StageRun

    def _told(self, request: GenerateRequest) -> GenerateRequest:
        """The request as the model reads it."""
        return request

    def _done(self, script: S, used: int, run: StageRun) -> Budget | None:
        """Once a text was checked: what the last chunk says of its budget."""
        return None


class StageRun:
    """One script on one model.

    Attributes:
        calls: of the model; `calls_again` of them asked a second time.
        cached: tokens of the first call's prompt that were in the prefix cache; None before it.
        cancelled: the client has left, and the script did not end.
        owner: as the request's.
    """

    def __init__(
        self,
        model: LocalModel,
        request: GenerateRequest,
        prompt_tokens: int,
        cancelled: Callable[[], bool],
        slot: int = 0,
    ) -> None:
        """`prompt_tokens` of the request: with the text so far and a stage they never exceed the context."""
        self._model, self._request, self._slot = model, request, slot
        self._room = model.info.context_length - prompt_tokens
        self._is_cancelled = cancelled
        self._sent = 0
        self.timings = Timings()
        self.calls = self.calls_again = 0
        self.cached: int | None = None
        self.cancelled = False
        self.owner = request.owner

    def chunks(self, script: Script) -> Iterator[Chunk]:
        """Yields the text as it comes to stand, all but the `rest`. Raises what script and model raise."""
        stages = script.stages()
        try:
            ask = next(stages)
            while True:
                reply = self._run(ask, script.text)
                if reply is None:
                    self.cancelled = True
                    return
                ask = stages.send(reply)
                yield from self.rest(script)
                self._sent = len(script.text)
        except StopIteration:
            pass

    def rest(self, script: Script) -> list[Chunk]:
        """What was not yielded yet."""
        return list(script.since(self._sent))

    def _run(self, ask: Ask, text: str) -> Reply | None:
        """One stage on the model. None where the client has left."""
        prefix = text + ask.said
        sampling = replace(
            self._request.sampling,
            max_new_tokens=max(1, min(ask.max_tokens, self._room - self._model.count_tokens(prefix))),
            stop=ask.stop,
            seed=(self._request.sampling.seed + 1000 * self.calls) % 2**32,
        )
        stage = replace(self._request, sampling=sampling, prefix=prefix, grammar=ask.grammar, output="text")
        odds, temperature = None, self._model.info.temperature
        if ask.weighed and self._model.info.weighs:
            exact = replace(stage, reach=_REACH * temperature)
            weighed = self._model.weigh(exact, ask.weighed, self._is_cancelled, self._slot)
            self._spend(weighed)
            if not weighed.odds:
                return None
            odds = replace(weighed.odds[0], temperature=temperature)
        pieces: list[str] = []
        began = time.monotonic()
        for chunk in self._written(stage):
            if chunk.text:
                pieces.append(chunk.text)
                cut = clip.repeats(pieces, ask.free_after)
                if cut is not None:
                    self._add(Chunk(timings=Timings(0.0, 0.0, time.monotonic() - began, len(pieces))), ask)
                    return Reply("".join(pieces[:cut]), ended=False, odds=odds)
            if chunk.finish_reason == "cancelled":
                return None
            if chunk.finish_reason is not None:
                self._add(chunk, ask)
                return Reply("".join(pieces), ended=chunk.finish_reason == "stop", odds=odds)
        return None

    def _written(self, stage: GenerateRequest) -> Iterator[Chunk]:
        """What the model writes; a grammar that is too costly to go on with ends it, as a limit does."""
        try:
            yield from self._model.generate(stage, self._is_cancelled, self._slot)
        except GrammarFailed:
            yield Chunk(finish_reason="length")

    def _add(self, chunk: Chunk, ask: Ask) -> None:
        self._spend(chunk)
        self.calls += 1
        self.calls_again += ask.attempt > 0

    def _spend(self, chunk: Chunk) -> None:
        if self.cached is None:
            self.cached = chunk.usage.cached_tokens
        self.timings += chunk.timings
