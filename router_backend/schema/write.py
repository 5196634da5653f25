"""SchemaWriter: JSON that keeps a client's schema, checked against it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING

from router_backend.errors import AnswerError
from router_backend.remembered import Remembered
from router_backend.schema.nodes import Object, Part
from router_backend.schema.read import ANYTHING, read, validator
from router_backend.schema.script import SchemaScript
from router_backend.schema.size import Sizes, measure
from router_backend.types import GenerateRequest, ModelInfo
from router_backend.writing.stages import JOIN
from router_backend.writing.writer import Writer

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel
    from router_backend.schema.nodes import Node


class SchemaWriter(Writer[SchemaScript]):
    """Writes JSON that keeps a client's schema, with one model."""

    kind, whole = "answer", "JSON that keeps this schema"

    def __init__(self, model: LocalModel, parts: Callable[[Node], Node] = lambda node: node) -> None:
        """`parts` puts a `Part` in the place of those fields that have a script of their own."""
        super().__init__(model)
        self._parts = parts
        self._remembered = Remembered(self._measure, most=64)

    def _smallest(self, request: GenerateRequest) -> int:
        root, sizes = self._sized(request.schema, request.owner)
        return sizes[root].least + JOIN

    def _script(self, request: GenerateRequest) -> SchemaScript:
        root, sizes = self._sized(request.schema, request.owner)
        return SchemaScript(request.sampling.max_new_tokens, self._model.count_tokens, root, sizes)

    def _told(self, request: GenerateRequest) -> GenerateRequest:
        return told(request, self._sized(request.schema, request.owner)[0], self._model.info)

    def _check(self, script: SchemaScript, request: GenerateRequest) -> None:
        root, _ = self._sized(request.schema, request.owner)
        check(script.text, request.schema or ANYTHING, root)

    def _sized(self, schema: str | None, owner: str = "") -> tuple[Node, Sizes]:
        return self._remembered(owner, schema or ANYTHING)

    def _measure(self, owner: str, schema: str) -> tuple[Node, Sizes]:
        root = self._parts(read(schema, owner))
        return root, measure(root, self._model.count_tokens)


def check(text: str, schema: str, root: Node | None = None) -> None:
    """Nothing leaves that was not parsed and checked. Patterns run in linear time. Raises AnswerError.

    `root`: the schema's nodes, whose parts have rules of their own.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise AnswerError(f"the answer is not valid JSON: {error}") from None
    wrong = next(iter(validator(json.loads(schema)).iter_errors(value)), None)
    if wrong is not None:
        raise AnswerError(f"the answer does not keep the schema: {' '.join(wrong.message.split())[:200]}")
    for part, place in parts_of(root) if root else ():
        problem = part.problem(reduce(getitem, place, value))
        if problem is not None:
            raise AnswerError(f"the answer breaks a rule: {problem}")


def told(request: GenerateRequest, root: Node, info: ModelInfo) -> GenerateRequest:
    """The request as a model reads it that may know budgets, where the answer has parts that it was trained on."""
    part = next((part for part, _ in parts_of(root)), None)
    if part is None or not info.budget_line:
        return request
    return replace(request, prompt=part.told(request.prompt, request.sampling.max_new_tokens))


def parts_of(node: Node, place: tuple[str, ...] = ()) -> Iterator[tuple[Part, tuple[str, ...]]]:
    """The parts in an object and in the objects of its required fields, and where those are."""
    for each in node.fields if isinstance(node, Object) else ():
        if isinstance(each.value, Part):
            yield each.value, place
        elif each.required:
            yield from parts_of(each.value, (*place, each.name))
