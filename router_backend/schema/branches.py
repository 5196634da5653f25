"""Tells the branches of a union apart by the text that each begins with: that is what the checkpoint chooses by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, permutations, product

from router_backend.errors import InvalidRequest
from router_backend.schema.nodes import (
    Array,
    Choice,
    Field,
    Node,
    Number,
    Object,
    Pattern,
    Reference,
    Text,
    Tuple,
    Union,
    Way,
    resolved,
)


def refused(where: str, why: str) -> InvalidRequest:
    """`where`: the path within the schema, such as `.properties.steps.items`."""
    return InvalidRequest(f"schema{where}: {why}", param=f"schema{where}", code="invalid_schema")


def tell_apart(union: Union) -> list[Way]:
    """A union's branches, those of unions within it too, and how each begins.

    A kind that another one holds falls away: integers beside numbers, words of an enum beside any text.

    Raises InvalidRequest where two begin alike, or where what is written as one could be of another that excludes it.
    """
    if union.exclusive:
        for one, other in permutations([list(_leaves(branch, set())) for branch in union.branches], 2):
            if any(_overlap(*pair) for pair in product(one, other)):
                raise refused(union.where, "two branches of oneOf may have a value in common; use anyOf")
    leaves = list(dict.fromkeys(_leaves(union, set())))
    texts = _widest([leaf for leaf in leaves if isinstance(leaf, Text | Pattern)])
    numbers = _widest([leaf for leaf in leaves if isinstance(leaf, Number)])
    ways = [
        *(Way('"', leaf) for leaf in texts),
        *(Way(None, leaf) for leaf in numbers),
        *(Way("[", leaf) for leaf in leaves if isinstance(leaf, Array | Tuple)),
        *_by_discriminator([leaf for leaf in leaves if isinstance(leaf, Object)]),
    ]
    options = dict.fromkeys(option for leaf in leaves if isinstance(leaf, Choice) for option in leaf.options)
    held = [way.opening for way in ways if _is_wide(way.node)]
    said = tuple(option for option in options if not any(_begins(option, opening) for opening in held))
    _check(ways, said, union.where)
    return [*ways, *([Way("", Choice(said))] if said else [])]


def _is_wide(node: Node) -> bool:
    """Whether it holds every text, or every number."""
    if isinstance(node, Text):
        return node.least == 0 and node.most is None
    bounds = (node.minimum, node.maximum, node.above, node.below) if isinstance(node, Number) else (0,)
    return isinstance(node, Number) and not node.integer and bounds == (None,) * 4


def _widest(nodes: Sequence[Node]) -> Sequence[Node]:
    return next(([node] for node in nodes if _is_wide(node)), nodes)


def _begins(text: str, opening: str | None) -> bool:
    return text[0] in "-0123456789" if opening is None else text.startswith(opening)


def _leaves(node: Node, seen: set[Node]) -> Iterator[Node]:
    if node in seen:
        return
    seen.add(node)
    if isinstance(node, Union):
        for branch in node.branches:
            yield from _leaves(branch, seen)
    elif isinstance(node, Reference):
        target = resolved(node)
        if target is None:
            raise refused("", f"$ref {node.name!r} leads to itself")
        yield from _leaves(target, seen)
    else:
        yield node


_FIRST = {Text: '"', Pattern: '"', Number: "0", Array: "[", Tuple: "[", Object: "{"}


def _overlap(written: Node, other: Node) -> bool:
    """Whether what is written as one may be a value of the other too; where that is hard to tell, it may."""
    if isinstance(written, Choice) and isinstance(other, Choice):
        return not set(written.options).isdisjoint(other.options)
    if isinstance(written, Object) and isinstance(other, Object):
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
        if isinstance(node, Choice)
        else {_FIRST[type(node)]}
        for node in (written, other)
    )
    return not first.isdisjoint(second)


def _by_discriminator(objects: Sequence[Object]) -> list[Way]:
    """Objects by their first field; where all have one with values of its own, that one goes first."""
    if len(objects) < 2:
        return [Way("{", each) for each in objects]
    for name in (each.name for each in objects[0].fields):
        values = [_options(each, name) for each in objects]
        flat = [option for options in values for option in options]
        if all(values) and len(set(flat)) == len(flat):
            return [
                Way(f"{{{json.dumps(name, ensure_ascii=False)}: {option}", _led_by(each, name, option))
                for each, options in zip(objects, values, strict=True)
                for option in options
            ]
    return [Way(_opening(each), each) for each in objects]


def _options(node: Object, name: str) -> tuple[str, ...]:
    """The values that a field of that name may have; none where it is free. It need not be required: it is written."""
    for field in node.fields:
        value = resolved(field.value)
        if field.name == name and isinstance(value, Choice):
            return value.options
    return ()


def _led_by(node: Object, name: str, option: str) -> Object:
    """The object with that field in front, and that value."""
    rest = tuple(field for field in node.fields if field.name != name)
    return replace(node, fields=(Field(name, Choice((option,)), True), *rest))


def _opening(node: Object) -> str:
    first = node.fields[0] if node.fields else None
    return f"{{{json.dumps(first.name, ensure_ascii=False)}: " if first is not None and first.required else "{"


def _check(ways: Sequence[Way], said: Sequence[str], where: str) -> None:
    openings = [way.opening for way in ways]
    for one, other in combinations(openings, 2):
        if one == other or (one and other and (one.startswith(other) or other.startswith(one))):
            raise refused(
                where, f"two branches of a union begin alike, with {one or 'a digit'}: they cannot be told apart"
            )
    for option in said:
        if any(_begins(option, opening) for opening in openings):
            raise refused(where, f"two branches of a union begin alike, with {option}: they cannot be told apart")
