"""SchemaWriter: JSON that keeps a client's schema, checked against it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from router_backend.errors import AnswerError
from router_backend.remembered import Remembered
from router_backend.schema.read import ANYTHING, read, validator
from router_backend.schema.script import SchemaScript
from router_backend.schema.size import Sizes, measure
from router_backend.types import GenerateRequest
from router_backend.writing.stages import JOIN
from router_backend.writing.writer import Writer

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel
    from router_backend.schema.nodes import Node


class SchemaWriter(Writer[SchemaScript]):
    """Writes JSON that keeps a client's schema, with one model."""

    kind, whole = "answer", "JSON that keeps this schema"

    def __init__(self, model: LocalModel) -> None:
        super().__init__(model)
        self._remembered = Remembered(self._measure, most=64)

    def _smallest(self, request: GenerateRequest) -> int:
        root, sizes = self._sized(request.schema, request.owner)
        return sizes[root].least + JOIN

    def _script(self, request: GenerateRequest) -> SchemaScript:
        root, sizes = self._sized(request.schema, request.owner)
        return SchemaScript(root, request.sampling.max_new_tokens, sizes, self._model.count_tokens)

    def _check(self, text: str, request: GenerateRequest) -> None:
        check(text, request.schema or ANYTHING)

    def _sized(self, schema: str | None, owner: str = "") -> tuple[Node, Sizes]:
        return self._remembered(owner, schema or ANYTHING)

    def _measure(self, owner: str, schema: str) -> tuple[Node, Sizes]:
        root = read(schema, owner)
        return root, measure(root, self._model.count_tokens)


def check(text: str, schema: str) -> None:
    """Nothing leaves that was not parsed and checked. Patterns run in linear time. Raises AnswerError."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise AnswerError(f"the answer is not valid JSON: {error}") from None
    wrong = next(iter(validator(json.loads(schema)).iter_errors(value)), None)
    if wrong is not None:
        raise AnswerError(f"the answer does not keep the schema: {' '.join(wrong.message.split())[:200]}")
