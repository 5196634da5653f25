"""What the values of a schema take: the least that closes them, and what they usually have. Pure arithmetic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from router_backend.schema import nodes
from router_backend.schema.nodes import Node, walk
from router_backend.writing.stages import JOIN, Count

# Tokens of a text that nothing is known about, of a number, items of a list.
TEXT_LEAST, TEXT_USUAL, NUMBER_USUAL, ITEMS_USUAL = 4, 24, 4, 3
# A character takes four tokens at most: a byte each.
CHARACTER = 4
_USUAL_MOST = 4096
# A name that nothing is known about; characters that a value has more for being unlike those before it.
NAME_LEAST, UNLIKE = 8, 3
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
    """Tokens of what is forced between the values; `of` any text."""

    def __init__(self, count: Count) -> None:
        self.count = count
        self.of = cache(lambda text: count(text) + JOIN)
        self.quote, self.between = self.of('"'), self.of(", ")
        self.brackets = self.of("[") + self.of("]")
        self.braces = self.of("{") + self.of("}")

    def key(self, name: str) -> int:
        return self.of(f"{json.dumps(name, ensure_ascii=False)}: ") + self.between

    def name(self, names: nodes.Pattern | None) -> int:
        """A field of a name that the checkpoint says."""
        longest = max(NAME_LEAST, len(names.example) + UNLIKE) if names else NAME_LEAST
        return self.between + 2 * self.quote + longest


def measure(root: Node, count: Count) -> Sizes:
    """The measure of every node that can be closed at all, by the shallowest way to do it.

    Values that hold themselves have one too, unless they must do so for ever: measures are worked out again and again
    until none changes.
    """
    skeleton, every, sizes = Skeleton(count), list(walk(root)), Sizes()
    recursive = _recursive(every)
    alone = {node: _alone(node, skeleton) for node in every}
    for _ in range(2 * len(every) + 2):
        before = sizes.copy()
        for node in reversed(every):
            found = alone[node] or _held(node, sizes, skeleton)
            if found is not None and node in recursive:
                found = replace(found, usual=min(found.usual, found.least + _MORE))
            if found is not None:
                sizes[node] = found
        if sizes == before:
            break
    return sizes


def _recursive(every: Sequence[Node]) -> set[Node]:
    """References to what holds them."""
    references = [node for node in every if isinstance(node, nodes.Reference)]
    targets = {node.name: node.target for node in references}
    again = {name for name, target in targets.items() if name in (getattr(each, "name", "") for each in walk(target))}
    return {node for node in references if node.name in again}


def _alone(node: Node, skeleton: Skeleton) -> Measure | None:
    """Of a value that holds no other."""
    if isinstance(node, nodes.Text):
        least = 2 * skeleton.quote + max(TEXT_LEAST, CHARACTER * node.least)
        most = least + TEXT_USUAL if node.most is None else 2 * skeleton.quote + CHARACTER * node.most
        return Measure(1, least, min(least + TEXT_USUAL, max(least, most)))
    if isinstance(node, nodes.Pattern | nodes.Number):
        least = len(node.example) + (JOIN if isinstance(node, nodes.Number) else 2 * skeleton.quote)
        return Measure(1, least, least + NUMBER_USUAL)
    if isinstance(node, nodes.Choice):
        tokens = [skeleton.of(option) for option in node.options]
        return Measure(1, min(tokens), max(tokens))
    return Measure(2, *node.size(skeleton.count)) if isinstance(node, nodes.Part) else None


def _held(node: Node, sizes: Sizes, skeleton: Skeleton) -> Measure | None:
    """Of a value that holds others, as far as those are known."""
    if isinstance(node, nodes.Reference):
        return sizes.get(node.target)
    if isinstance(node, nodes.Union):
        known = [sizes[child] for child in node.children() if child in sizes]
        return replace(min(known), usual=max(each.usual for each in known)) if known else None
    if isinstance(node, nodes.Array):
        item = sizes.get(node.item)
        if item is None:
            return None if node.least else _row([], skeleton.brackets, sizes)
        items = max(node.least, ITEMS_USUAL if node.most is None else min(ITEMS_USUAL, node.most))
        least = skeleton.brackets + node.least * (item.least + skeleton.between + UNLIKE * node.unique)
        usual = skeleton.brackets + items * (item.usual + skeleton.between)
        return Measure(1 + item.depth * bool(node.least), least, min(usual, max(least, _USUAL_MOST)))
    if isinstance(node, nodes.Tuple):
        return _row(node.items, skeleton.brackets + len(node.items) * skeleton.between, sizes)
    assert isinstance(node, nodes.Object)
    required = [field for field in node.fields if field.required]
    more = ITEMS_USUAL * (sizes[node.other].least + skeleton.between + TEXT_LEAST) if node.other in sizes else 0
    forced = skeleton.braces + sum(skeleton.key(field.name) for field in required)
    values = [field.value for field in required]
    if node.unnamed:
        assert node.other is not None
        values += node.unnamed * [node.other]
        forced += node.unnamed * skeleton.name(node.names)
    return _row(values, forced, sizes, more)


def _row(values: Sequence[Node], forced: int, sizes: Sizes, more: int = 0) -> Measure | None:
    """Of what holds these values, all of which come; `more`: what usually comes besides."""
    if any(each not in sizes for each in values):
        return None
    within = [sizes[each] for each in values]
    least, usual = forced + sum(each.least for each in within), forced + sum(each.usual for each in within) + more
    return Measure(1 + max((each.depth for each in within), default=0), least, min(usual, max(least, _USUAL_MOST)))
