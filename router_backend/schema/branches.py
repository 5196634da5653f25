"""Tells the branches of a union apart by the text that each begins with: that is what the checkpoint chooses by."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations, product

from router_backend.errors import InvalidRequest
from router_backend.schema import nodes
from router_backend.schema.nodes import Node, leaves, resolved

_MOST_LED = 3  # fields that tell branches apart


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
    options = dict.fromkeys(option for leaf in kinds if isinstance(leaf, nodes.Choice) for option in leaf.options)
    texts = _widest([leaf for leaf in kinds if isinstance(leaf, nodes.Text | nodes.Pattern)])
    if (merged := _one_pattern(texts, [option for option in options if option[0] == '"'])) is not None:
        texts, options = [merged], dict.fromkeys(option for option in options if option[0] != '"')
    numbers = _widest([leaf for leaf in kinds if isinstance(leaf, nodes.Number)])
    ways = [
        *(nodes.Way('"', leaf) for leaf in texts),
        *(nodes.Way(None, leaf) for leaf in numbers),
        *(nodes.Way("[", leaf) for leaf in kinds if isinstance(leaf, nodes.Array | nodes.Tuple)),
        *_by_discriminator([leaf for leaf in kinds if isinstance(leaf, nodes.Object)]),
    ]
    held = [way.opening for way in ways if _is_wide(way.node)]
    said = tuple(option for option in options if not any(_begins(option, opening) for opening in held))
    _check(ways, said, union.where)
    return [*ways, *([nodes.Way("", nodes.Choice(said))] if said else [])]


def _is_wide(node: Node) -> bool:
    """Whether it holds every text, or every number."""
    if isinstance(node, nodes.Text):
        return node.least == 0 and node.most is None
    return isinstance(node, nodes.Number) and not node.integer and node.keywords().keys() <= {"type", "multipleOf"}


def _widest(kinds: Sequence[Node]) -> Sequence[Node]:
    if wide := next((kind for kind in kinds if _is_wide(kind)), None):
        return [wide]
    return [kind for kind in kinds if not any(_holds(other, kind) for other in kinds if other is not kind)]


def _one_pattern(texts: Sequence[Node], words: Sequence[str]) -> nodes.Pattern | None:
    """Patterns, and words beside them, as one; None where there are other texts, or nothing to bring together."""
    patterns = [text for text in texts if isinstance(text, nodes.Pattern) and (text.least, text.most) == (0, None)]
    if len(patterns) < len(texts) or not patterns or len(texts) + len(words) < 2:
        return None
    if not all(word.isascii() and word.isprintable() and "\\" not in word for word in words):
        return None
    regexes = [*(each.regex for each in patterns), *(f"({re.escape(word[1:-1])})" for word in words)]
    examples = [*(each.example for each in patterns), *(word[1:-1] for word in words)]
    return nodes.Pattern(nodes.OR.join(regexes), min(examples, key=len))


def _holds(wide: Node, narrow: Node) -> bool:
    """Whether integers stand beside numbers of the same bounds."""
    if not isinstance(wide, nodes.Number) or not isinstance(narrow, nodes.Number) or wide.step is not None:
        return False
    return narrow.integer and not wide.integer and whole_bounds(wide) == whole_bounds(narrow)


def whole_bounds(node: nodes.Number) -> tuple[int | None, int | None]:
    """The least and the largest integer that keep the bounds."""
    lows = [math.ceil(node.minimum)] if node.minimum is not None else []
    lows += [math.floor(node.above) + 1] if node.above is not None else []
    highs = [math.floor(node.maximum)] if node.maximum is not None else []
    highs += [math.ceil(node.below) - 1] if node.below is not None else []
    return max(lows, default=None), min(highs, default=None)


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
    if ways := _by_values(objects, {}):
        return ways
    openings = [_opening(each) for each in objects]
    if "{" in openings or len(set(openings)) < len(openings):
        objects = _by_own_fields(objects)
    return [nodes.Way(_opening(each), each) for each in objects]


def _by_values(objects: Sequence[nodes.Object], led: dict[str, str]) -> list[nodes.Way]:
    """By a field whose values differ, and those alike in it by a further one; none where that does not do."""
    if len(objects) == 1:
        opening = ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {option}" for name, option in led.items())
        return [nodes.Way("{" + opening, _led_by(objects[0], led))]
    for name in (each.name for each in objects[0].fields if each.name not in led and len(led) < _MOST_LED):
        values = [_options(each, name) for each in objects]
        groups = {
            option: [each for each, own in zip(objects, values, strict=True) if option in own]
            for option in dict.fromkeys(option for options in values for option in options)
        }
        if all(values) and all(len(group) < len(objects) for group in groups.values()):
            found = [_by_values(group, {**led, name: option}) for option, group in groups.items()]
            if all(found):
                return [way for ways in found for way in ways]
    return []


def _by_own_fields(objects: Sequence[nodes.Object]) -> list[nodes.Object]:
    """With a required field in front that no other begins with: one that the others do not have, if there is one."""
    names = [[each.name for each in node.fields if each.required] for node in objects]
    common = Counter(field.name for node in objects for field in node.fields)
    taken: dict[int, str] = {}
    for at in sorted(range(len(objects)), key=lambda at: len(names[at])):
        own = sorted((name for name in names[at] if name not in taken.values()), key=lambda name: common[name] > 1)
        if not own:
            return [*objects]
        taken[at] = own[0]
    return [
        replace(node, fields=tuple(sorted(node.fields, key=lambda each: each.name != taken[at])))
        for at, node in enumerate(objects)
    ]


def _options(node: nodes.Object, name: str) -> tuple[str, ...]:
    """The values that a field of that name may have; none where it is free. It need not be required: it is written."""
    for field in node.fields:
        value = resolved(field.value)
        if field.name == name and isinstance(value, nodes.Choice):
            return value.options
    return ()


def _led_by(node: nodes.Object, led: Mapping[str, str]) -> nodes.Object:
    """The object with these fields in front, and these values."""
    first = tuple(nodes.Field(name, nodes.Choice((option,)), True) for name, option in led.items())
    return replace(node, fields=(*first, *(field for field in node.fields if field.name not in led)))


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
