"""What a client's JSON Schema asks for, as a tree of few kinds. Recursion goes through `Reference`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from router_backend.writing.stages import Count, Script

OR = "\0|\n"  # between patterns of which a text keeps one


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A JSON value."""

    def children(self) -> tuple[Node, ...]:
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class Text(Node):
    """Any string of so many characters; `most` is None where there is no limit."""

    least: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Pattern(Node):
    """A string of plain ASCII that keeps a regular expression, or several, a line each; `example` is a shortest one."""

    regex: str
    example: str
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Number(Node):
    """A number. Bounds belong to it; `above` and `below` do not. `example`: one in JSON; `step`: it is a multiple."""

    integer: bool
    example: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    step: float | None = None

    def keywords(self) -> dict[str, Any]:
        """As JSON Schema writes it."""
        bounds = {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "exclusiveMinimum": self.above,
            "exclusiveMaximum": self.below,
            "multipleOf": self.step,
        }
        kind = "integer" if self.integer else "number"
        return {"type": kind, **{name: value for name, value in bounds.items() if value is not None}}


@dataclass(frozen=True, slots=True, eq=False)
class Choice(Node):
    """One of some values, in JSON."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Array(Node):
    """Items of one kind; `unique`: no value twice, where the values hold no others."""

    item: Node
    least: int = 0
    most: int | None = None
    unique: bool = False

    def children(self) -> tuple[Node, ...]:
        return (self.item,)


@dataclass(frozen=True, slots=True, eq=False)
class Tuple(Node):
    """So many items, each of its own kind."""

    items: tuple[Node, ...]

    def children(self) -> tuple[Node, ...]:
        return self.items


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    name: str
    value: Node
    required: bool


@dataclass(frozen=True, slots=True, eq=False)
class Object(Node):
    """Fields in their order, then names (any, or those of a pattern) with a value of the kind `other`.

    `least` and `most` count the fields; more than are required come only where there is `other`.
    """

    fields: tuple[Field, ...]
    other: Node | None = None
    names: Pattern | None = None
    least: int = 0
    most: int | None = None

    @property
    def unnamed(self) -> int:
        """Fields of other names that must come."""
        return max(0, self.least - sum(each.required for each in self.fields))

    def children(self) -> tuple[Node, ...]:
        return (*(each.value for each in self.fields), *((self.other,) if self.other else ()))


class Part(Node, ABC):
    """Some fields of an object that a script of their own writes, one after another, as the value of one `Field`."""

    @abstractmethod
    def size(self, count: Count) -> tuple[int, int]:
        """Tokens that close it, and those that it likes to have."""

    @abstractmethod
    def script(self, limit: int, count: Count, text: str) -> Script:
        """What goes on after `text`, which it holds, and ends after the last field's value."""

    @abstractmethod
    def told(self, prompt: str, limit: int) -> str:
        """The prompt for a checkpoint that was trained to read its budget there."""

    @abstractmethod
    def problem(self, value: dict[str, Any]) -> str | None:
        """What is wrong with these fields of an object, if anything is."""


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A branch and the text that it begins with; None for a number, which begins with a digit or a sign."""

    opening: str | None
    node: Node


@dataclass(frozen=True, slots=True, eq=False)
class Union(Node):
    """One of some kinds. `ways` says how each begins (`branches.tell_apart`), once all definitions were read.

    `exclusive`: a value must be of one kind alone.
    """

    branches: tuple[Node, ...]
    ways: list[Way] = field(default_factory=list)
    where: str = ""
    exclusive: bool = False

    def children(self) -> tuple[Node, ...]:
        return tuple(way.node for way in self.ways) or self.branches


@dataclass(frozen=True, slots=True, eq=False)
class Reference(Node):
    """A definition, by name: what it stands for is known once all definitions were read."""

    name: str
    definitions: dict[str, Node] = field(repr=False)

    @property
    def target(self) -> Node:
        return self.definitions[self.name]

    def children(self) -> tuple[Node, ...]:
        return (self.target,)


def resolved(node: Node) -> Node | None:
    """What a chain of references leads to; None where it leads to itself, which `read` refuses."""
    seen = set[Node]()
    while isinstance(node, Reference):
        if node in seen:
            return None
        seen.add(node)
        node = node.target
    return node


def leaves(root: Node) -> Iterator[Node]:
    """What a value may be, each kind once: unions and references are followed."""
    seen, waiting = set[Node](), [root]
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, Reference):
            waiting.insert(0, node.target)
        elif isinstance(node, Union):
            waiting[:0] = node.branches
        else:
            yield node


def walk(root: Node) -> Iterator[Node]:
    """Every node once."""
    seen, waiting = {root}, [root]
    while waiting:
        node = waiting.pop()
        yield node
        for child in node.children():
            if child not in seen:
                seen.add(child)
                waiting.append(child)
