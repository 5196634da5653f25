"""Tells the branches of a union apart by the text that each begins with: that is what the checkpoint chooses by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations, product

from router_backend.errors import InvalidRequest
from router_backend.schema import nodes
from router_backend.schema.nodes import Node, leaves, resolved


def refused(where: str, why: str) -> InvalidRequest:
    """`where`: the path within the schema, such as `.properties.steps.items`."""
    return InvalidRequest(f"schema{where}: {why}", param=f"schema{where}", code="invalid_schema")


def tell_apart(union: nodes.Union) -> list[nodes.Way]:
    """A union's branches, those of unions within it too, and how each begins.

    A kind that another one holds falls away: integers beside numbers, words of an enum beside any text.

    Raises InvalidRequest where two begin alike, or where what is written as one could be of another that excludes it.
    """
    if union.exclusive:
        for one, other in permutations([[*leaves(branch)] for branch in union.branches], 2):
            if any(_overlap(*pair) for pair in product(one, other)):
                raise refused(union.where, "two branches of oneOf may have a value in common; use anyOf")
    kinds = [*leaves(union)]
    texts = _widest([leaf for leaf in kinds if isinstance(leaf, nodes.Text | nodes.Pattern)])
    numbers = _widest([leaf for leaf in kinds if isinstance(leaf, nodes.Number)])
    ways = [
        *(nodes.Way('"', leaf) for leaf in texts),
        *(nodes.Way(None, leaf) for leaf in numbers),
        *(nodes.Way("[", leaf) for leaf in kinds if isinstance(leaf, nodes.Array | nodes.Tuple)),
        *_by_discriminator([leaf for leaf in kinds if isinstance(leaf, nodes.Object)]),
    ]
    options = dict.fromkeys(option for leaf in kinds if isinstance(leaf, nodes.Choice) for option in leaf.options)
    held = [way.opening for way in ways if _is_wide(way.node)]
    said = tuple(option for option in options if not any(_begins(option, opening) for opening in held))
    _check(ways, said, union.where)
    return [*ways, *([nodes.Way("", nodes.Choice(said))] if said else [])]


def _is_wide(node: Node) -> bool:
    """Whether it holds every text, or every number."""
    if isinstance(node, nodes.Text):
        return node.least == 0 and node.most is None
    bounds = (node.minimum, node.maximum, node.above, node.below) if isinstance(node, nodes.Number) else (0,)
    return isinstance(node, nodes.Number) and not node.integer and bounds == (None,) * 4


def _widest(kinds: Sequence[Node]) -> Sequence[Node]:
    return next(([kind] for kind in kinds if _is_wide(kind)), kinds)


def _begins(text: str, opening: str | None) -> bool:
    return text[0] in "-0123456789" if opening is None else text.startswith(opening)


_FIRST = {nodes.Text: '"', nodes.Pattern: '"', nodes.Number: "0", nodes.Array: "[", nodes.Tuple: "[", nodes.Object: "{"}


def _overlap(written: Node, other: Node) -> bool:
    """Whether what is written as one may be a value of the other too; where that is hard to tell, it may."""
    if isinstance(written, nodes.Choice) and isinstance(other, nodes.Choice):
        return not set(written.options).isdisjoint(other.options)
    if isinstance(written, nodes.Object) and isinstance(other, nodes.Object):
        names = {field.name for field in written.fields}
        if written.other is None and any(field.required and field.name not in names for field in other.fields):
            return False
        for name in names:
            mine, theirs = _options(written, name), _options(other, name)
            if mine and theirs and set(mine).isdisjoint(theirs):
                return False
        return True
    first, second = (
        {"0" if option[0] in "-0123456789" else option[0] for option in node.options}
        if isinstance(node, nodes.Choice)
        else {_FIRST[type(node)]}
        for node in (written, other)
    )
    return not first.isdisjoint(second)


def _by_discriminator(objects: Sequence[nodes.Object]) -> list[nodes.Way]:
    """Objects by their first field; where all have one with values of its own, that one goes first."""
    if len(objects) < 2:
        return [nodes.Way("{", each) for each in objects]
    for name in (each.name for each in objects[0].fields):
        values = [_options(each, name) for each in objects]
        flat = [option for options in values for option in options]
        if all(values) and len(set(flat)) == len(flat):
            return [
                nodes.Way(f"{{{json.dumps(name, ensure_ascii=False)}: {option}", _led_by(each, name, option))
                for each, options in zip(objects, values, strict=True)
                for option in options
            ]
    return [nodes.Way(_opening(each), each) for each in objects]


def _options(node: nodes.Object, name: str) -> tuple[str, ...]:
    """The values that a field of that name may have; none where it is free. It need not be required: it is written."""
    for field in node.fields:
        value = resolved(field.value)
        if field.name == name and isinstance(value, nodes.Choice):
            return value.options
    return ()


def _led_by(node: nodes.Object, name: str, option: str) -> nodes.Object:
    """The object with that field in front, and that value."""
    rest = tuple(field for field in node.fields if field.name != name)
    return replace(node, fields=(nodes.Field(name, nodes.Choice((option,)), True), *rest))


def _opening(node: nodes.Object) -> str:
    first = node.fields[0] if node.fields else None
    return f"{{{json.dumps(first.name, ensure_ascii=False)}: " if first is not None and first.required else "{"


def _check(ways: Sequence[nodes.Way], said: Sequence[str], where: str) -> None:
    openings = [way.opening for way in ways]
    for one, other in combinations(openings, 2):
        if one == other or (one and other and (one.startswith(other) or other.startswith(one))):
            raise refused(
                where, f"two branches of a union begin alike, with {one or 'a digit'}: they cannot be told apart"
            )
    for option in said:
        if any(_begins(option, opening) for opening in openings):
            raise refused(where, f"two branches of a union begin alike, with {option}: they cannot be told apart")
