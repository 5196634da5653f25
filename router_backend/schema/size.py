"""What the values of a schema take: the least that closes them, and what they usually have. Pure arithmetic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from router_backend.schema.nodes import (
    Array,
    Choice,
    Field,
    Node,
    Number,
    Object,
    Part,
    Pattern,
    Reference,
    Text,
    Tuple,
    Union,
    walk,
)
from router_backend.writing.stages import JOIN, Count

# Tokens of a text that nothing is known about, of a number, items of a list.
TEXT_LEAST, TEXT_USUAL, NUMBER_USUAL, ITEMS_USUAL = 4, 24, 4, 3
# A character takes four tokens at most: a byte each.
CHARACTER = 4
_USUAL_MOST = 4096
# What may hold itself has no usual size of its own: so much more than its least.
_MORE = 60


@dataclass(frozen=True, slots=True, order=True)
class Measure:
    """`depth`: levels of the shallowest value; `least`: tokens that close it; `usual`: tokens that it likes to have."""

    depth: int
    least: int
    usual: int


Sizes = dict[Node, Measure]


class Skeleton:
    """Tokens of what is forced between the values."""

    def __init__(self, count: Count) -> None:
        self._count = count
        self.quote = count('"') + JOIN
        self.between = count(", ") + JOIN
        self.brackets = count("[") + count("]") + 2 * JOIN
        self.braces = count("{") + count("}") + 2 * JOIN

    def of(self, text: str) -> int:
        return self._count(text) + JOIN

    def key(self, name: str) -> int:
        return self.of(f"{json.dumps(name, ensure_ascii=False)}: ") + self.between


def measure(root: Node, count: Count) -> Sizes:
    """The measure of every node that can be closed at all, by the shallowest way to do it.

    Values that hold themselves have one too, unless they must do so for ever: measures are worked out again and again
    until none changes.
    """
    skeleton, nodes, sizes = Skeleton(count), list(walk(root)), Sizes()
    keys = {field: skeleton.key(field.name) for node in nodes if isinstance(node, Object) for field in node.fields}
    recursive = _recursive(nodes)
    alone = {node: _alone(node, skeleton) for node in nodes}
    alone |= {node: Measure(2, *node.size(count)) for node in nodes if isinstance(node, Part)}
    for _ in range(2 * len(nodes) + 2):
        changed = False
        for node in reversed(nodes):
            found = alone[node] or _held(node, sizes, skeleton, keys)
            if found is not None and node in recursive:
                found = replace(found, usual=min(found.usual, found.least + _MORE))
            if found is not None and sizes.get(node) != found:
                sizes[node] = found
                changed = True
        if not changed:
            break
    return sizes


def _recursive(nodes: Sequence[Node]) -> set[Node]:
    """References to what holds them."""
    names = {node.name: node.target for node in nodes if isinstance(node, Reference)}
    again = {
        name
        for name, target in names.items()
        if any(isinstance(inner, Reference) and inner.name == name for inner in walk(target))
    }
    return {node for node in nodes if isinstance(node, Reference) and node.name in again}


def _alone(node: Node, skeleton: Skeleton) -> Measure | None:
    """Of a value that holds no other."""
    if isinstance(node, Text):
        least = 2 * skeleton.quote + max(TEXT_LEAST, CHARACTER * node.least)
        most = least + TEXT_USUAL if node.most is None else 2 * skeleton.quote + CHARACTER * node.most
        return Measure(1, least, min(least + TEXT_USUAL, max(least, most)))
    if isinstance(node, Pattern):
        least = 2 * skeleton.quote + len(node.example)
        return Measure(1, least, least + NUMBER_USUAL)
    if isinstance(node, Number):
        least = len(node.example) + JOIN
        return Measure(1, least, least + NUMBER_USUAL)
    if isinstance(node, Choice):
        tokens = [skeleton.of(option) for option in node.options]
        return Measure(1, min(tokens), max(tokens))
    return None


def _held(node: Node, sizes: Sizes, skeleton: Skeleton, keys: dict[Field, int]) -> Measure | None:
    """Of a value that holds others, as far as those are known."""
    if isinstance(node, Reference):
        return sizes.get(node.target)
    if isinstance(node, Union):
        return _best([sizes[child] for child in node.children() if child in sizes])
    if isinstance(node, Array):
        return _array(node, sizes, skeleton)
    if isinstance(node, Tuple):
        if any(item not in sizes for item in node.items):
            return None
        within = [sizes[item] for item in node.items]
        forced = skeleton.brackets + len(within) * skeleton.between
        least, usual = (forced + sum(each) for each in ([m.least for m in within], [m.usual for m in within]))
        return Measure(_deeper(within), least, min(usual, max(least, _USUAL_MOST)))
    assert isinstance(node, Object)
    required = [field for field in node.fields if field.required]
    if any(field.value not in sizes for field in required):
        return None
    inner = [sizes[field.value] for field in required]
    forced = skeleton.braces + sum(keys[field] for field in required)
    usual = forced + sum(each.usual for each in inner)
    if node.other is not None and node.other in sizes:
        usual += ITEMS_USUAL * (sizes[node.other].least + skeleton.between + TEXT_LEAST)
    return Measure(_deeper(inner), forced + sum(each.least for each in inner), min(usual, _USUAL_MOST))


def _array(node: Array, sizes: Sizes, skeleton: Skeleton) -> Measure | None:
    item = sizes.get(node.item)
    if item is None:
        return Measure(1, skeleton.brackets, skeleton.brackets) if node.least == 0 else None
    items = max(node.least, ITEMS_USUAL if node.most is None else min(ITEMS_USUAL, node.most))
    return Measure(
        _deeper([item] if node.least else []),
        skeleton.brackets + node.least * (item.least + skeleton.between),
        min(skeleton.brackets + items * (item.usual + skeleton.between), _USUAL_MOST),
    )


def _best(known: Sequence[Measure]) -> Measure | None:
    if not known:
        return None
    shallow = min(known)
    return Measure(shallow.depth, shallow.least, max(each.usual for each in known))


def _deeper(inner: Sequence[Measure]) -> int:
    return 1 + max((each.depth for each in inner), default=0)
