"""PlanWriter: runs the script on a model, checks what came out, and lets nothing else through."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from router_backend.errors import BudgetTooSmall, ContextOverflow, PlanError
from router_backend.plan.budget import Costs
from router_backend.plan.prompt import with_budget
from router_backend.plan.rules import validate
from router_backend.plan.script import PlanScript
from router_backend.types import Budget, Chunk, GenerateRequest, Usage
from router_backend.writing.stages import StageRun

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

    def admit(self, request: GenerateRequest) -> int:
        """Tokens of the prompt, where the request can be answered at all.

        Raises:
            BudgetTooSmall: no whole plan fits in `max_new_tokens`.
            ContextOverflow: prompt and budget do not fit in the context.
        """
        limit = request.sampling.max_new_tokens
        if request.output == "plan" and limit < self.smallest_budget:
            raise BudgetTooSmall(
                f"max_new_tokens is {limit}; the smallest budget for a whole plan is {self.smallest_budget}",
                param="max_new_tokens",
            )
        prompt_tokens = self._model.prompt_tokens(self._told(request))
        context = self._model.info.context_length
        if prompt_tokens + limit > context:
            raise ContextOverflow.of(prompt_tokens, limit, context)
        return prompt_tokens

    def write(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        """Yields the plan as it comes to stand; the last chunk has the sums and the budget.

        Raises:
            BudgetTooSmall, ContextOverflow: as `admit` does.
            PlanError: the model gave nothing usable, or the result breaks a rule.
        """
        limit = request.sampling.max_new_tokens
        prompt_tokens = self.admit(request)
        request = self._told(request)
        script = PlanScript(limit, self._costs, self._model.count_tokens)
        run = StageRun(self._model, request, prompt_tokens, cancelled, slot)
        yield from run.chunks(script)
        if run.cancelled:
            yield Chunk(finish_reason="cancelled", timings=run.timings)
            return
        used = self._model.count_tokens(script.text)
        self._check(script.text, used, limit)
        self._model.remember(script.text)
        yield Chunk(
            run.rest(script),
            "stop",
            Usage(prompt_tokens, used, min(run.cached, prompt_tokens)),
            run.timings,
            Budget(limit, used, tuple(script.clipped), script.fields, run.calls, run.calls_again),
        )

    def _told(self, request: GenerateRequest) -> GenerateRequest:
        """The request as the model reads it: with its budget, where it was trained to keep to one."""
        if request.output != "plan" or not self._model.info.budget_line:
            return request
        return replace(request, prompt=with_budget(request.prompt, request.sampling.max_new_tokens))

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
