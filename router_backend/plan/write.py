"""PlanWriter: runs the script on a model, checks what came out, and lets nothing else through."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from router_backend.errors import BudgetTooSmall, ContextOverflow, PlanError
from router_backend.plan import clip
from router_backend.plan.budget import Costs
from router_backend.plan.rules import validate
from router_backend.plan.script import Ask, PlanScript, Reply
from router_backend.types import Budget, Chunk, GenerateRequest, Timings, Usage

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel


class PlanWriter:
    """Writes plans with one model for one set of tools. Thread-safe: a plan's state is its own."""

    def __init__(self, model: LocalModel, tools: Sequence[str]) -> None:
        self._model = model
        self._tools = tuple(tools)
        self._costs = Costs(model.count_tokens, tools)

    @property
    def smallest_budget(self) -> int:
        return self._costs.smallest

    def write(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        """Yields the plan as it comes to stand; the last chunk has the sums and the budget.

        Raises:
            BudgetTooSmall: no whole plan fits in `max_new_tokens`.
            ContextOverflow: prompt and budget do not fit in the context.
            PlanError: the model gave nothing usable, or the result breaks a rule.
        """
        limit = request.sampling.max_new_tokens
        if limit < self.smallest_budget:
            raise BudgetTooSmall(
                f"max_new_tokens is {limit}; the smallest budget for a whole plan is {self.smallest_budget}",
                param="max_new_tokens",
            )
        prompt_tokens = self._model.prompt_tokens(request)
        context = self._model.info.context_length
        if prompt_tokens + limit > context:
            raise ContextOverflow(
                f"the prompt has {prompt_tokens} tokens and the plan may have {limit}: "
                f"together more than the context of {context} tokens",
                param="prompt",
            )
        script = PlanScript(limit, self._costs, self._model.count_tokens)
        sums = _Sums()
        sent = 0
        stages = script.stages()
        try:
            ask = next(stages)
            while True:
                reply = self._run(ask, script.text, request, cancelled, slot, sums)
                if reply is None:
                    yield Chunk(finish_reason="cancelled", timings=sums.timings)
                    return
                ask = stages.send(reply)
                if len(script.text) > sent:
                    yield Chunk(script.text[sent:])
                    sent = len(script.text)
        except StopIteration:
            pass
        used = self._model.count_tokens(script.text)
        self._check(script.text, used, limit)
        self._model.remember(script.text)
        yield Chunk(
            script.text[sent:],
            "stop",
            Usage(prompt_tokens, used, min(sums.cached, prompt_tokens)),
            sums.timings,
            Budget(limit, used, tuple(script.clipped), script.fields, sums.calls, sums.calls_again),
        )

    def _run(
        self,
        ask: Ask,
        text: str,
        request: GenerateRequest,
        cancelled: Callable[[], bool],
        slot: int,
        sums: _Sums,
    ) -> Reply | None:
        """One stage on the model. None where the client has left."""
        sampling = replace(
            request.sampling,
            max_new_tokens=ask.max_tokens,
            stop=ask.stop,
            seed=(request.sampling.seed + 1000 * sums.calls) % 2**32,
        )
        stage = replace(request, sampling=sampling, prefix=text + ask.said, grammar=ask.grammar, output="text")
        pieces: list[str] = []
        began = time.monotonic()
        for chunk in self._model.generate(stage, cancelled, slot):
            if chunk.text:
                pieces.append(chunk.text)
                cut = clip.repeats(pieces)
                if cut is not None:
                    spent = Timings(0.0, 0.0, time.monotonic() - began, len(pieces))
                    sums.add(Chunk(timings=spent), ask)
                    return Reply("".join(pieces[:cut]), ended=False)
            if chunk.finish_reason == "cancelled":
                return None
            if chunk.finish_reason is not None:
                sums.add(chunk, ask)
                return Reply("".join(pieces), ended=chunk.finish_reason == "stop")
        return None

    def _check(self, text: str, used: int, limit: int) -> None:
        """Nothing leaves that was not parsed and checked."""
        try:
            _, findings = validate(json.loads(text), self._tools)
        except ValueError as error:
            raise PlanError(f"the plan is no JSON: {error}") from None
        if findings:
            raise PlanError(f"the plan breaks a rule: {'; '.join(map(str, findings[:3]))}")
        if used > limit:
            raise PlanError(f"the plan has {used} tokens, its budget {limit}")


class _Sums:
    """What a plan's stages cost together."""

    def __init__(self) -> None:
        self.timings = Timings()
        self.calls = 0
        self.calls_again = 0
        self.cached = 0

    def add(self, chunk: Chunk, ask: Ask) -> None:
        if not self.calls:
            self.cached = chunk.usage.cached_tokens
        self.calls += 1
        self.calls_again += ask.attempt > 0
        self.timings += chunk.timings
