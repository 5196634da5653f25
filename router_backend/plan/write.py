"""PlanWriter: plans within their budget, checked against schema and rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from router_backend.errors import PlanError
from router_backend.plan.budget import Costs
from router_backend.plan.draft import DraftRun
from router_backend.plan.prompt import with_budget
from router_backend.plan.rules import validate
from router_backend.plan.script import PlanScript
from router_backend.types import Budget, GenerateRequest
from router_backend.writing.writer import StageRun, Writer

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel


class PlanWriter(Writer[PlanScript]):
    """Writes plans with one model for one set of tools. What it has written the model remembers, for later drafts."""

    kind, whole = "plan", "a whole plan"

    def __init__(self, model: LocalModel, tools: Sequence[str]) -> None:
        super().__init__(model)
        self._tools = tuple(tools)
        self._costs = Costs(model.count_tokens, tools)

    @property
    def tools(self) -> tuple[str, ...]:
        return self._tools

    @property
    def smallest_budget(self) -> int:
        return self._costs.smallest

    def _smallest(self, request: GenerateRequest) -> int:
        return self.smallest_budget if request.output == "plan" else 0

    def _script(self, request: GenerateRequest) -> PlanScript:
        return PlanScript(request.sampling.max_new_tokens, self._model.count_tokens, self._costs)

    def _told(self, request: GenerateRequest) -> GenerateRequest:
        """With its budget, where the model was trained to keep to one."""
        if request.output != "plan" or not self._model.info.budget_line:
            return request
        return replace(request, prompt=with_budget(request.prompt, request.sampling.max_new_tokens))

    def _runs(self, request: GenerateRequest) -> type[StageRun]:
        return StageRun if self._model.info.keeps_grammars else DraftRun

    def _check(self, script: PlanScript, request: GenerateRequest) -> None:
        try:
            _, findings = validate(json.loads(script.text), self._tools)
        except ValueError as error:
            raise PlanError(f"the plan is not valid JSON: {error}") from None
        if findings:
            raise PlanError(f"the plan breaks a rule: {'; '.join(map(str, findings[:3]))}")

    def _done(self, script: PlanScript, used: int, run: StageRun) -> Budget:
        self._model.remember(script.text, run.owner)
        return Budget(
            script.limit,
            used,
            tuple(script.clipped),
            script.fields,
            run.calls,
            run.calls_again,
            isinstance(run, DraftRun),
        )
