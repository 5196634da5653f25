"""Finds the plan in a client's schema: by its keys and their types, whatever else the schema asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from router_backend.plan.budget import Costs
from router_backend.plan.form import METRICS, OPTIONAL, SHAPES, STEPS_MOST, Form, Shape, is_list
from router_backend.plan.prompt import with_budget
from router_backend.plan.rules import QA, TAG, TODO, findings_of
from router_backend.plan.schema import DIFFICULTIES, KEYS, OPTIONAL_METRICS
from router_backend.plan.script import PlanScript
from router_backend.schema.nodes import Array, Choice, Field, Node, Object, Part, Text, Union, leaves, resolved
from router_backend.writing.stages import Count

# So many of the ten keys are a plan, and fewer where a route is among them.
MOST_KEYS, WITH_ROUTE = 6, 2
_FEWEST, _SHORTEST = 16, 128  # what a client may ask of a list and of a text, at the most
_DEEPEST = 4


@dataclass(frozen=True, slots=True, eq=False)
class PlanPart(Part):
    """A plan's fields in an object. `first`: the tool that the route begins with, where that is known."""

    form: Form
    tools: tuple[str, ...]
    first: str | None = None

    def size(self, count: Count) -> tuple[int, int]:
        costs = Costs(count, self.tools, self.form)
        return costs.smallest, costs.usual

    def script(self, limit: int, count: Count, text: str) -> PlanScript:
        return PlanScript(limit, count, Costs(count, self.tools, self.form), text=text, first=self.first)

    def told(self, prompt: str, limit: int) -> str:
        return with_budget(prompt, limit)

    def problem(self, value: dict[str, Any]) -> str | None:
        return next(map(str, findings_of(value, self.form.shapes, self.tools)), None)


def is_plan(node: Node) -> bool:
    """Whether a schema asks for a plan as it is and for nothing else; null for an optional metric is none there."""
    found = resolved(node)
    form = form_of(found, ("",)) if isinstance(found, Object) else None
    if form is None or not isinstance(found, Object) or len(found.fields) != len(KEYS):
        return False
    metrics = {*form.offered, *(name.removeprefix(METRICS) for name in form.shapes)}
    return {*SHAPES.items()} <= {*form.shapes.items()} and {*OPTIONAL_METRICS} <= metrics


def with_plans(node: Node, tools: Sequence[str], first: str | None = None, *, depth: int = _DEEPEST) -> Node:
    """The node, in which an object that has a plan's keys has a `PlanPart` in their place."""
    found = resolved(node)
    if isinstance(found, Array) and depth:
        item = with_plans(found.item, tools, first, depth=depth - 1)
        return node if item is found.item else replace(found, item=item)
    if isinstance(found, Union) and depth:
        # Several objects are told apart by what they begin with, which a part has of its own.
        if sum(isinstance(resolved(way.node), Object) for way in found.ways) != 1:
            return node
        ways = [replace(way, node=with_plans(way.node, tools, first, depth=depth)) for way in found.ways]
        unchanged = all(new.node is old.node for new, old in zip(ways, found.ways, strict=True))
        return node if unchanged else replace(found, ways=ways)
    if not isinstance(found, Object) or not depth:
        return node
    form = form_of(found, tools)
    if form is None:
        values = [with_plans(each.value, tools, first, depth=depth - 1) for each in found.fields]
        fields = tuple(replace(each, value=value) for each, value in zip(found.fields, values, strict=True))
        unchanged = all(new.value is old.value for new, old in zip(fields, found.fields, strict=True))
        return node if unchanged else replace(found, fields=fields)
    keys = {name.partition(".")[0] for name in form.shapes}
    place = next(at for at, each in enumerate(found.fields) if each.name in keys)
    rest = [each for each in found.fields if each.name not in keys]
    part = Field(found.fields[place].name, PlanPart(form, tuple(tools), first), True)
    return replace(found, fields=(*rest[:place], part, *rest[place:]))


def form_of(node: Object, tools: Sequence[str]) -> Form | None:
    """What an object's plan is to look like; None where it is none."""
    values = {each.name: each.value for each in node.fields if each.name in KEYS}
    if len(values) < (WITH_ROUTE if "route_plan" in values else MOST_KEYS):
        return None
    shapes: dict[str, Shape] = {}
    offered: tuple[str, ...] = ()
    for name in KEYS:
        if name not in values:
            continue
        if name == "metrics":
            found = _metrics(values[name], tools)
            shapes, offered = (shapes | found[0], found[1]) if found else (shapes, offered)
        elif (shape := _shape(name, values[name], tools)) is not None:
            shapes[name] = shape
    if "route_plan" not in shapes and len(shapes) < MOST_KEYS:
        return None
    return Form(shapes, offered, alone=False)


def _metrics(node: Node, tools: Sequence[str]) -> tuple[dict[str, Shape], tuple[str, ...]] | None:
    """The metrics that are written and those that may be; None where a plan's are not what is asked for."""
    for found in leaves(node):
        if not isinstance(found, Object):
            continue
        if not found.fields:
            if found.other is not None and _shape("metrics.primary", found.other, tools):
                free = _text(OPTIONAL, found.other, 0) is not None
                names = ("metrics.primary", "metrics.secondary")
                return {name: SHAPES[name] for name in names}, OPTIONAL_METRICS if free else ()
            continue
        shapes: dict[str, Shape] = {}
        offered: list[str] = []
        for each in found.fields:
            shape = _shape(METRICS + each.name, each.value, tools)
            if each.name in OPTIONAL_METRICS and shape is not None and not each.required:
                offered += [each.name] if shape == OPTIONAL else []
            elif each.name in (*OPTIONAL_METRICS, "primary", "secondary") and shape is not None:
                shapes[METRICS + each.name] = shape
            elif each.required:
                break
        else:
            if shapes:
                order = {METRICS + name: at for at, name in enumerate(("primary", "secondary", *OPTIONAL_METRICS))}
                return dict(sorted(shapes.items(), key=lambda item: order[item[0]])), tuple(offered)
    return None


def _shape(name: str, node: Node, tools: Sequence[str]) -> Shape | None:
    """What a field of this kind takes in a plan; None where a plan's text or list is not what is asked for."""
    shape = SHAPES.get(name, OPTIONAL)
    if not is_list(name):
        return _text(shape, node, _forced(name, tools))
    for found in leaves(node):
        if not isinstance(found, Array) or found.least > (STEPS_MOST if name == "route_plan" else _FEWEST):
            continue
        most = max(shape.most, found.least) if found.most is None else min(max(shape.most, found.least), found.most)
        if most < (2 if name == "todo_list" else 1):
            continue
        fewest = max(found.least, shape.fewest)
        held = replace(shape, fewest=fewest, most=most, items=min(max(shape.items, fewest), most))
        if (item := _text(held, found.item, _forced(name, tools), tags=name == "tags")) is not None:
            return item
    return None


def _text(shape: Shape, node: Node, forced: int, *, tags: bool = False) -> Shape | None:
    """The shape with a text's own limits; `forced`: characters that it has in any case."""
    for found in leaves(node):
        if isinstance(found, Text) and found.least <= (1 if tags or shape.words else _SHORTEST):
            if found.most is not None and found.most < (max(map(len, shape.words)) if shape.words else forced):
                continue
            least = max(shape.least, 4 * (found.least - forced)) if found.least > 1 else shape.least
            return replace(
                shape, least=least, usual=max(shape.usual, least), shortest=max(1, found.least), longest=found.most
            )
        if isinstance(found, Choice) and (tags or shape.words):
            said = [option[1:-1] for option in found.options]
            words = tuple(word for word in said if (TAG.fullmatch(word) if tags else word in DIFFICULTIES))
            if len(words) >= shape.fewest:
                return replace(shape, words=words, most=min(shape.most, len(words)), items=min(shape.items, len(words)))
    return None


def _forced(name: str, tools: Sequence[str]) -> int:
    """The most characters that a text of this kind has besides its own, and two of its own."""
    tool = max(map(len, tools))
    sizes = {
        "route_plan": tool + 2,
        "handoff_plan": tool + len(f" -> {QA}") - 2,
        "todo_list": len(TODO) + max(tool, len(QA)) + 1,
        "thinking_outline": len("1."),
    }
    return sizes.get(name, 0) + 2
