"""SchemaWriter: runs the script on a model, checks what came out, and lets nothing else through."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import jsonschema_rs

from router_backend.errors import AnswerError, BudgetTooSmall, ContextOverflow
from router_backend.schema.read import ANYTHING, read
from router_backend.schema.script import SchemaScript
from router_backend.schema.size import JOIN, Sizes, measure
from router_backend.types import Chunk, GenerateRequest, Usage
from router_backend.writing.stages import StageRun

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel
    from router_backend.schema.nodes import Node


class SchemaWriter:
    """Writes JSON that keeps a client's schema, with one model. Thread-safe."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._sized = lru_cache(maxsize=64)(self._measure)

    def write(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        """Yields the JSON as it comes to stand; the last chunk has the sums.

        Raises:
            InvalidRequest: the schema is none, or asks for what is not done here.
            BudgetTooSmall: nothing that keeps the schema fits in `max_new_tokens`.
            ContextOverflow: prompt and budget do not fit in the context.
            AnswerError: the model gave nothing usable, or the result does not keep the schema.
        """
        schema = request.schema or ANYTHING
        root, sizes = self._sized(schema)
        limit = request.sampling.max_new_tokens
        smallest = sizes[root].least + JOIN
        if limit < smallest:
            raise BudgetTooSmall(
                f"max_new_tokens is {limit}; the smallest budget for JSON that keeps this schema is {smallest}",
                param="max_new_tokens",
            )
        prompt_tokens = self._model.prompt_tokens(request)
        context = self._model.info.context_length
        if prompt_tokens + limit > context:
            raise ContextOverflow.of(prompt_tokens, limit, context)
        script = SchemaScript(root, limit, sizes, self._model.count_tokens)
        run = StageRun(self._model, request, prompt_tokens, cancelled, slot)
        yield from run.chunks(script)
        if run.cancelled:
            yield Chunk(finish_reason="cancelled", timings=run.timings)
            return
        used = self._model.count_tokens(script.text)
        check(script.text, schema)
        if used > limit:
            raise AnswerError(f"the answer has {used} tokens, its budget {limit}")
        usage = Usage(prompt_tokens, used, min(run.cached, prompt_tokens))
        yield Chunk(run.rest(script), "stop", usage, run.timings)

    def _measure(self, schema: str) -> tuple[Node, Sizes]:
        root = read(schema)
        return root, measure(root, self._model.count_tokens)


def check(text: str, schema: str) -> None:
    """Nothing leaves that was not parsed and checked. Patterns run in linear time. Raises AnswerError."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise AnswerError(f"the answer is no JSON: {error}") from None
    validator = jsonschema_rs.Draft202012Validator(
        json.loads(schema), offline=True, pattern_options=jsonschema_rs.RegexOptions()
    )
    wrong = next(iter(validator.iter_errors(value)), None)
    if wrong is not None:
        raise AnswerError(f"the answer does not keep the schema: {' '.join(wrong.message.split())[:200]}")
