"""SchemaWriter: JSON that keeps a client's schema, checked against it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from router_backend.errors import AnswerError
from router_backend.remembered import Remembered
from router_backend.schema.nodes import Array, Object, Part, Union, resolved
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
    for part, holder in _parts_in(root, value) if root else ():
        problem = part.problem(holder)
        if problem is not None:
            raise AnswerError(f"the answer breaks a rule: {problem}")


def _parts_in(node: Node, value: Any) -> Iterator[tuple[Part, Any]]:  # noqa: ANN401 - any JSON
    """The parts that an answer has, wherever they stand in it, and the objects that hold them."""
    found = resolved(node)
    if isinstance(found, Object) and isinstance(value, dict):
        for each in found.fields:
            if isinstance(each.value, Part):
                yield each.value, value
            elif each.name in value:
                yield from _parts_in(each.value, value[each.name])
    elif isinstance(found, Array) and isinstance(value, list):
        for item in value:
            yield from _parts_in(found.item, item)
    elif isinstance(found, Union) and isinstance(value, dict):
        objects = [way.node for way in found.ways if isinstance(resolved(way.node), Object)]
        if len(objects) == 1:  # with more of them, none has a part
            yield from _parts_in(objects[0], value)


def told(request: GenerateRequest, root: Node, info: ModelInfo) -> GenerateRequest:
    """The request as a model reads it that may know budgets, where the answer has parts that it was trained on."""
    part = next(_parts_that_come(root), None)
    if part is None or not info.budget_line:
        return request
    return replace(request, prompt=part.told(request.prompt, request.sampling.max_new_tokens))


def _parts_that_come(node: Node) -> Iterator[Part]:
    """The parts in an object and in the objects of its required fields."""
    for each in node.fields if isinstance(node, Object) else ():
        if isinstance(each.value, Part):
            yield each.value
        elif each.required:
            yield from _parts_that_come(each.value)
