"""Decider: the odds of the answers to questions about one conversation, out of the checkpoint's own logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from router_backend.errors import InvalidRequest
from router_backend.plan.form import BEGINS
from router_backend.plan.prompt import is_routers_own, router_prompt, with_budget
from router_backend.types import Chunk, GenerateRequest, Odds, Question, Timings, Usage

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel

# What the checkpoint has written of its answer: so each answer is JSON that ends by itself, and no other's beginning.
ANSWERS = '{"answer":'


class Decider:
    """Answers questions with one model. Thread-safe."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def admit(self, request: GenerateRequest) -> int:
        """Tokens of all the prompts together.

        Raises:
            InvalidRequest: the engine tells no probabilities.
            ContextOverflow: a question does not fit in the context.
        """
        if not self._model.info.weighs:
            raise InvalidRequest(f"the {self._model.info.engine} engine gives no probabilities", param="questions")
        sizes = [
            self._model.prompt_tokens(self._asked(request, each, text))
            for each in request.questions
            for text in each.texts
        ]
        self._model.info.check_room(max(sizes), 1)
        return sum(sizes)

    def write(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        """One chunk: the odds of each question's answers, and the sums. Raises as `admit` and the model do."""
        self.admit(request)
        odds: list[Odds] = []
        usage, timings = Usage(), Timings()
        for question in request.questions:
            routes = question.plan_budget is not None
            answers = [f"{tool}(" for tool in question.answers] if routes else question.answers
            logs = [0.0] * len(answers)
            for text in question.texts:
                chunk = self._model.weigh(self._asked(request, question, text), answers, cancelled, slot)
                usage, timings = usage + chunk.usage, timings + chunk.timings
                if not chunk.odds:
                    yield Chunk(finish_reason="cancelled", usage=usage, timings=timings)
                    return
                pairs = zip(logs, chunk.odds[0].logprobs, strict=True)
                logs = [before + new / len(question.texts) for before, new in pairs]
            temperature = self._model.info.temperature if routes else 1.0
            odds.append(Odds(question.answers, tuple(logs), temperature))
        yield Chunk(finish_reason="stop", usage=usage, timings=timings, odds=tuple(odds))

    def _asked(self, request: GenerateRequest, question: Question, text: str) -> GenerateRequest:
        """As the model reads it: the conversation first, which all questions share, so that it is read once."""
        said = request.prompt
        if question.plan_budget is None:
            return replace(request, prompt=f"{said}\n\n{text}" if said else text, prefix=ANSWERS)
        prompt = said if is_routers_own(said) else router_prompt(said)
        if self._model.info.budget_line:
            prompt = with_budget(prompt, question.plan_budget)
        return replace(request, prompt=prompt, prefix=BEGINS)
