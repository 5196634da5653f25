"""Reads a client's JSON Schema into nodes. What is not understood is refused by name, never passed over.

The part of JSON Schema (2020-12) that is understood stands in docs/openai.md. Everything is bounded here, before
anything is compiled: size, depth, the number of nodes, of options and of patterns. Patterns may still take seconds:
call `read` in the thread of a slot, never in the event loop.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import count
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

from router_backend.errors import InvalidRequest
from router_backend.remembered import Remembered
from router_backend.schema import grammar, nodes
from router_backend.schema.branches import refused, tell_apart, whole_bounds
from router_backend.schema.intersect import intersect
from router_backend.schema.nodes import Node, resolved, walk
from router_backend.schema.size import UNLIKE, measure
from router_backend.writing.clip import open_escape

LONGEST_SCHEMA = 65_536
MOST_NODES, MOST_DEPTH, MOST_OPTIONS, MOST_PATTERNS = 1000, 32, 500, 32
LARGEST = 10**15 - 1
ANYTHING = '{"type": "object"}'
# What says which values there are, and is not understood, or not in that place. All other names are annotations.
_ASSERTIONS = frozenset(
    {"$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "enum", "const"}
    | {"type", "multipleOf", "uniqueItems", "prefixItems", "additionalItems", "contains", "minContains", "maxContains"}
    | {"patternProperties", "propertyNames", "minProperties", "maxProperties", "dependencies", "dependentSchemas"}
    | {"dependentRequired", "unevaluatedItems", "unevaluatedProperties"}
)
_UNEVALUATED = frozenset({"unevaluatedItems", "unevaluatedProperties"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_KEYWORDS = {
    "object": frozenset(
        {"properties", "required", "additionalProperties", "patternProperties", "propertyNames"}
        | {"minProperties", "maxProperties", "unevaluatedProperties"}
    ),
    "array": frozenset(
        {"items", "prefixItems", "additionalItems", "unevaluatedItems", "minItems", "maxItems", "uniqueItems"}
    ),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": _BOUNDS | {"multipleOf"},
    "number": _BOUNDS | {"multipleOf"},
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
# What says something of one type says nothing of the others.
_OF_TYPES = frozenset[str]().union(*_KEYWORDS.values())
_FEW = {"boolean": ("true", "false"), "null": ("null",)}
# All that may say which values there are.
_SAYING = _ASSERTIONS.union(*_KEYWORDS.values())
# Each part can be read in one way alone, so no text makes the search go back and forth.
_IN_GROUP = r"(?:[^()\[\]\\]|\\.|\[(?:[^\]\\]|\\.)*\])"
_LOOK_AHEAD = re.compile(rf"\(\?([=!])((?:{_IN_GROUP}|\((?:{_IN_GROUP}|\({_IN_GROUP}*\))*\))*)\)")
_LOOK_AROUND = re.compile(r"\(\?<?[=!]")
_ANY_NAME = frozenset({"", ".*", "^.*$", "^(.*)$"})
_SHORT_RANGE = 64  # whole numbers that are offered one by one
_ID = re.compile(r"[^#\s]*#?")  # what the library takes; others name nothing that a $ref could mean
_NAME = "^[A-Za-z0-9_-]*$"
_PATTERN = "x-kept-pattern"  # our own keyword, which is taken from no client
_LARGEST_REGEX = 1 << 20  # bytes, compiled: some milliseconds
# What holds values, and what holds schemas by names of the client's.
_DATA = frozenset({"enum", "const", "default", "examples"})
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


def read(text: str, owner: str = "") -> Node:
    """The nodes of a schema, given as JSON text. The last few are remembered, for each owner (an API key) apart.

    Raises:
        InvalidRequest: it is no schema, asks for something that is not done here, or for too much; the message says
            where and what.
    """
    if len(text) > LONGEST_SCHEMA:
        raise refused("", f"it has more than {LONGEST_SCHEMA} characters")
    return _remembered(owner, text)


def _read(owner: str, text: str) -> Node:
    schema = json.loads(text)
    reader = _Reader(schema, owner)
    root = reader.whole()
    if resolved(root) is None:
        raise refused("", "a $ref leads to itself")
    for node in [*walk(root)]:  # as it is now: a union's children are its ways afterwards
        if isinstance(node, nodes.Union):
            node.ways.extend(tell_apart(node))
    outermost = resolved(root)
    kinds = [way.node for way in outermost.ways] if isinstance(outermost, nodes.Union) else [outermost]
    if not all(isinstance(kind, nodes.Object) for kind in kinds):
        raise refused("", "its outermost type must be object")
    sizes = measure(root, len)
    if any(node not in sizes for node in walk(root)):
        raise refused("", "a $ref leads back to itself on every way, so nothing can be as it asks")
    if sizes[root].depth > MOST_DEPTH:
        raise refused("", f"it nests deeper than {MOST_DEPTH} levels")
    try:
        validator(schema)
    except Exception as error:
        place = "".join(f".{step}" for step in getattr(error, "instance_path", ()))
        raise refused(place, " ".join(str(error).split())[:200]) from None
    return root


def validator(schema: Any) -> jsonschema_rs.Draft202012Validator:  # noqa: ANN401
    """What checks answers; patterns run in linear time. Raises ValueError where it is not a schema."""
    return jsonschema_rs.Draft202012Validator(_told(schema), offline=True, keywords={_PATTERN: _KeepsPattern})


def compiled(regex: str) -> jsonschema_rs.Draft202012Validator:
    """What checks one pattern. Raises ValueError where it is not a regular expression, or too large a one."""
    return jsonschema_rs.Draft202012Validator(
        {"pattern": regex}, pattern_options=jsonschema_rs.RegexOptions(size_limit=_LARGEST_REGEX)
    )


class _KeepsPattern:
    """The keyword `pattern`, compiled only when a text comes to it.

    The library compiles all patterns of a schema at once, also those that nothing refers to, and no other thread runs
    meanwhile.
    """

    def __init__(self, parent: object, regex: str, path: object) -> None:
        self._regex = regex

    def validate(self, instance: object) -> None:
        if not isinstance(instance, str):
            return
        if any(compiled(part).is_valid(instance) is not wanted for wanted, part in conditions(self._regex)):
            raise ValueError(f"{json.dumps(instance, ensure_ascii=False)} does not match {self._regex}")


def _told(schema: Any) -> Any:  # noqa: ANN401
    """A schema as the library is told it: in one dialect, with tuples as 2020-12 has them, and with the patterns that
    are compiled here, by a keyword of our own.

    Left out is a pattern that only a backtracking engine knows, where a format says the same.
    """
    if isinstance(schema, list):
        return [_told(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    told: dict[str, Any] = {}
    for name, value in schema.items():
        if name == "$schema" or (name == "$id" and isinstance(value, str) and not _ID.fullmatch(value)):
            continue
        if name in _DATA:
            told[name] = value
        elif name in _BY_NAME and isinstance(value, dict):
            told[name] = {key: _told(each) for key, each in value.items()}
        elif name not in ("pattern", _PATTERN):
            told[name] = _told(value)
        elif name == "pattern" and isinstance(value, str) and not _is_formats_own(schema):
            told[_PATTERN] = value
    told = _dated(told)
    patterns = told.get("patternProperties")
    if isinstance(patterns, dict) and patterns.keys() - _ANY_NAME:
        del told["patternProperties"]
        if len(patterns) == 1:  # all names that we write keep it; more of them are in what nothing refers to
            ((regex, told["additionalProperties"]),) = patterns.items()
            told["propertyNames"] = {_PATTERN: regex}
    if isinstance(schema.get("items"), list):
        told["prefixItems"], told["items"] = told.pop("items"), told.pop("additionalItems", True)
    if told.get("prefixItems") == []:
        del told["prefixItems"]
    return told


def _dated(schema: Mapping[str, Any]) -> dict[str, Any]:
    """With bounds as they are today: in draft 4, and in OpenAPI 3.0, a truth value tells what `minimum` is."""
    said = dict(schema)
    for name, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if said.get(exclusive) is True and name in said:
            said[exclusive] = said.pop(name)
        elif said.get(exclusive) is False:
            del said[exclusive]
    return said


def _is_formats_own(schema: Mapping[str, Any]) -> bool:
    """Whether a known format stands beside a pattern that cannot be read here."""
    regex, form = schema.get("pattern"), schema.get("format")
    known = isinstance(form, str) and form in grammar.FORMATS
    return known and isinstance(regex, str) and _looks_around(regex)


_remembered = Remembered(_read, most=64)


class _Reader:
    def __init__(self, schema: Any, owner: str) -> None:  # noqa: ANN401 - any JSON
        self._schema, self._owner = schema, owner
        self._definitions: dict[str, Node] = {}
        self._waiting: list[str] = []
        self._nodes = self._options = self._patterns = 0
        self._any: Node | None = None

    def whole(self) -> Node:
        root = nodes.Reference("#", self._definitions)
        self._waiting.append("#")
        while self._waiting:
            name = self._waiting.pop()
            if name not in self._definitions:
                self._definitions[name] = self._value(*self._found(name, ""), 0)
        return root

    def _found(self, reference: str, where: str) -> tuple[Any, str]:
        """What a local reference at `where` shows, and its path: a JSON pointer, an anchor, or an `$id` with either."""
        base, _, pointer = reference.partition("#")
        found, path = self._named("$id", base, reference, where) if base else (self._schema, "")
        pointer = unquote(pointer)
        if pointer and not pointer.startswith("/"):
            return self._named("$anchor", pointer, reference, where)
        for part in pointer.split("/")[1:]:
            step = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict) and step in found:
                found = found[step]
            else:
                raise refused(where, f"$ref {reference!r} leads nowhere")
            path += f".{step}"
        return found, path

    def _named(self, keyword: str, name: str, reference: str, where: str) -> tuple[Any, str]:
        """The part of the schema that has this `$id` or `$anchor`, and its path."""
        waiting = [(self._schema, "")]
        while waiting:
            part, path = waiting.pop()
            if isinstance(part, dict) and part.get(keyword) == name:
                return part, path
            inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
            waiting.extend((value, f"{path}.{step}") for step, value in inner)
        far = ": nothing is fetched from elsewhere" if keyword == "$id" else ""
        raise refused(where, f"$ref {reference!r} leads nowhere{far}")

    def _value(self, schema: Any, where: str, depth: int) -> Node:  # noqa: ANN401
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise refused("", f"it has more than {MOST_NODES} parts")
        if depth > MOST_DEPTH:
            raise refused("", f"it nests deeper than {MOST_DEPTH} levels")
        if schema is True or schema == {}:
            return self._anything()
        if not isinstance(schema, dict):
            raise refused(where, "must be an object")
        said = _dated(schema)
        if "$ref" in said:
            return self._reference(said, where, depth)
        if "allOf" in said:
            return self._all_of(said, where, depth)
        if "anyOf" in said or "oneOf" in said:
            return self._any_of(said, where, depth)
        if "enum" in said or "const" in said:
            return self._enum(said, where)
        return self._typed(said, where, depth)

    def _reference(self, said: dict[str, Any], where: str, depth: int) -> Node:
        name = said.pop("$ref")
        if not isinstance(name, str) or not name:
            raise refused(where, "$ref must be a text that is not empty")
        target, _ = self._found(name, where)
        known = target if isinstance(target, dict) else {}
        if beside := {key: value for key, value in _saying(said).items() if known.get(key) != value}:
            return self._value({**beside, "allOf": [target]}, where, depth + 1)
        self._waiting.append(name)
        return nodes.Reference(name, self._definitions)

    def _any_of(self, said: dict[str, Any], where: str, depth: int) -> Node:
        name = "anyOf" if "anyOf" in said else "oneOf"
        branches = said.pop(name)
        if not isinstance(branches, list) or not branches:
            raise refused(where, f"{name} must be a list that is not empty")
        branches = [each for each in branches if not _is_nothing(each)] or branches
        if any(isinstance(each, dict) and each.get("type") == "number" for each in branches):
            # As pydantic has a Decimal: a number, or a text of a pattern that is beyond us.
            branches = [each for each in branches if not _is_beyond(each)]
        beside = _saying(said)
        kinds = [
            self._value({**beside, "allOf": [each]} if beside else each, f"{where}.{name}.{at}", depth + 1)
            for at, each in enumerate(branches)
        ]
        return kinds[0] if len(kinds) == 1 else nodes.Union(tuple(kinds), where=where, exclusive=name == "oneOf")

    def _all_of(self, said: dict[str, Any], where: str, depth: int) -> Node:
        parts = said.pop("allOf")
        if not isinstance(parts, list) or not parts:
            raise refused(where, "allOf must be a list that is not empty")
        if len(parts) == 1 and not _saying(said):
            return self._value(parts[0], f"{where}.allOf.0", depth + 1)
        for at, part in enumerate(parts):
            plain = self._plain(part, f"{where}.allOf.{at}")
            if unevaluated := plain.keys() & _UNEVALUATED:
                raise refused(f"{where}.allOf.{at}", f"{min(unevaluated)!r} is not supported here")
            both = intersect(said, plain, _SAYING, where)
            if _is_formats_own(both) and not any(_is_formats_own(each) for each in (said, plain)):
                raise refused(f"{where}.allOf.{at}", "pattern: look-around is not supported apart from its format")
            said = both
        return self._value(said, where, depth + 1)

    def _plain(self, part: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
        """A part of allOf, with what it refers to in its place."""
        for _ in range(MOST_DEPTH):
            if not isinstance(part, dict):
                break
            if "$ref" not in part:
                return part
            target, _ = self._found(str(part["$ref"]), where)
            part = {key: value for key, value in part.items() if key != "$ref"}
            part = {"allOf": [part, target]} if _saying(part) else target
        if part is True:
            return {}
        raise refused(where, "a $ref leads to itself" if isinstance(part, dict) else "must be an object")

    def _enum(self, said: dict[str, Any], where: str) -> Node:
        options = said.get("enum", [said.get("const")])
        if not isinstance(options, list) or not options:
            raise refused(where, "enum must be a list that is not empty")
        self._options += len(options)
        if self._options > MOST_OPTIONS:
            raise refused(where, f"more than {MOST_OPTIONS} enum values altogether")
        try:
            check = validator(_saying(said))
        except Exception as error:
            raise refused(where, " ".join(str(error).split())[:200]) from None
        fitting = [json.dumps(option, ensure_ascii=False) for option in options if check.is_valid(option)]
        if not fitting:
            raise refused(where, "no value of its enum or const is as the rest of it asks")
        return nodes.Choice(tuple(dict.fromkeys(fitting)))

    def _typed(self, said: dict[str, Any], where: str, depth: int) -> Node:
        kind = said.pop("type", None)
        if kind is None:
            kind = next((each for each, names in _KEYWORDS.items() if each != "integer" and said.keys() & names), None)
        if kind is None:
            _only(said, (), where)
            return self._anything()
        if isinstance(kind, list) and kind:
            if len(kind) == 1:
                return self._value({**said, "type": kind[0]}, where, depth)
            branches = ({**said, "type": each} for each in kind)
            return nodes.Union(tuple(self._value(each, where, depth + 1) for each in branches), where=where)
        if not isinstance(kind, str) or kind not in _KEYWORDS:
            raise refused(where, f"type {kind!r} is not known")
        _only(said, _OF_TYPES, where)
        if kind in _FEW:
            return nodes.Choice(_FEW[kind])
        if kind == "string":
            return self._text(said, where)
        if kind in ("number", "integer"):
            return self._number(said, where, integer=kind == "integer")
        return self._array(said, where, depth) if kind == "array" else self._object(said, where, depth)

    def _text(self, said: dict[str, Any], where: str) -> Node:
        least, most = _sizes(said, "minLength", "maxLength", where)
        if least > grammar.COUNTED:
            raise refused(where, f"minLength must be at most {grammar.COUNTED}")
        regex = said.get("pattern")
        form = said.get("format")
        if not isinstance(form, str) or form not in grammar.FORMATS:
            return nodes.Text(least, most) if regex is None else self._pattern(regex, least, most, where)
        also = f"^({grammar.FORMATS[form]})$"
        if regex is None or _is_formats_own(said):
            return self._pattern(also, least, most, where)
        try:
            return self._pattern(regex, least, most, where, also)
        except InvalidRequest:
            if form not in grammar.WIDER:
                raise
            return self._pattern(regex, least, most, where, f"^({grammar.WIDER[form]})$")

    def _pattern(self, regex: Any, least: int, most: int | None, where: str, also: str = "") -> Node:  # noqa: ANN401
        self._patterns += 1
        if self._patterns > MOST_PATTERNS:
            raise refused(where, f"more than {MOST_PATTERNS} patterns altogether")
        longest = grammar.LONGEST_PATTERN * (4 if also else 1)  # generators write long ones beside their formats
        if not isinstance(regex, str) or len(regex) > longest or not regex.isprintable():
            raise refused(where, f"pattern must be printable text of at most {longest} characters")
        parts = [*conditions(regex), *([(True, also)] if also else [])]
        whole = "\n".join(("" if wanted else grammar.NOT) + _anchored(part) for wanted, part in parts)
        try:
            example = grammar.shortest(whole, least, self._owner)
            for _, part in parts:
                compiled(part)
        except ValueError as error:
            raise refused(where, f"pattern: {' '.join(str(error).split())[:200]}") from None
        if example is None or (most is not None and len(example) > most):
            raise refused(
                where, f"no plain text of at most {most or grammar.LONGEST_MATCH} characters keeps the pattern"
            )
        return nodes.Pattern(whole, example, least, most)

    def _number(self, said: dict[str, Any], where: str, *, integer: bool) -> Node:
        bounds = [_bound(said, name, where) for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")]
        step = said.get("multipleOf")
        if step is not None and (
            isinstance(step, bool) or not isinstance(step, int | float) or not 1e-6 <= step <= 1e6
        ):
            raise refused(where, "multipleOf must be a number between 0.000001 and 1000000")
        node = _with_example(replace(nodes.Number(False, "0", *bounds), step=step), where)
        return _with_example(nodes.Number(True, "0", *whole_bounds(node), step=step), where) if integer else node

    def _array(self, said: dict[str, Any], where: str, depth: int) -> Node:
        least, most = _sizes(said, "minItems", "maxItems", where)
        items, first = said.get("items", said.get("unevaluatedItems", {})), said.get("prefixItems", [])
        if isinstance(items, list):  # as drafts before 2020-12 write tuples
            items, first = said.get("additionalItems", {}), items
        elif "additionalItems" in said:
            raise refused(where, "'additionalItems' is not supported here")
        if not isinstance(first, list):
            raise refused(where, "prefixItems must be a list")
        unique = said.get("uniqueItems", False)
        if first:
            if unique:
                raise refused(where, "'uniqueItems' is not supported beside 'prefixItems'")
            return self._tuple([*first[:most], *[items] * (least - len(first))], where, depth)
        if items is False:
            return self._tuple([items] * least, where, depth)
        item = self._value(self._plain(items, f"{where}.items") if unique else items, f"{where}.items", depth + 1)
        return self._set(item, least, most, where) if unique else nodes.Array(item, least, most)

    def _set(self, item: Node, least: int, most: int | None, where: str) -> Node:
        """An array that has no value twice."""
        item, values = self._countable(item, where)
        if values is not None:
            most = min(values, MOST_OPTIONS if most is None else most)
        if most is not None and most < least:
            raise refused(where, f"its items have {most} different values, minItems is {least}")
        if isinstance(item, nodes.Pattern) and not _so_many(item, least):
            raise refused(where, f"its items' pattern has no {least} short texts that differ: lower minItems")
        return nodes.Array(item, least, most, unique=True)

    def _countable(self, node: Node, where: str) -> tuple[Node, int | None]:
        """A kind of values as a set has them, and how many of them there are; None for any number."""
        if isinstance(node, nodes.Union):
            kinds = [self._countable(each, where) for each in node.branches]
            counts = [count for _, count in kinds if count is not None]
            return replace(node, branches=tuple(kind for kind, _ in kinds)), (
                sum(counts) if len(counts) == len(kinds) else None
            )
        low, high = whole_bounds(node) if isinstance(node, nodes.Number) else (None, None)
        if isinstance(node, nodes.Number) and low is not None and high is not None:
            if not node.integer:
                raise refused(where, "'uniqueItems' is not supported for numbers between two bounds")
            if high - low >= _SHORT_RANGE:
                if node.step is not None and not float(node.step).is_integer():
                    raise refused(where, "'uniqueItems' is not supported beside a 'multipleOf' that is not whole")
                return node, max(1, int((high - low) // (node.step or 1)))  # `another_of` ends: there are so many
            node = nodes.Choice(tuple(str(each) for each in range(low, high + 1) if within(each, node)))
        if isinstance(node, nodes.Choice):
            options = tuple({option.removesuffix(".0"): option for option in node.options}.values())
            return nodes.Choice(options), len(options)
        if isinstance(node, nodes.Text) and node.most == 0:
            return node, 1
        if isinstance(node, nodes.Text | nodes.Pattern | nodes.Number):
            return node, None
        raise refused(where, "'uniqueItems' is supported for texts, numbers and the values of an enum")

    def _tuple(self, items: list[Any], where: str, depth: int) -> Node:
        """All the items that are spoken of are written, and no more: who asks for a tuple wants the whole of it."""
        if len(items) > MOST_OPTIONS:
            raise refused(where, f"more than {MOST_OPTIONS} items that must come")
        return nodes.Tuple(
            tuple(self._value(each, f"{where}.prefixItems.{at}", depth + 1) for at, each in enumerate(items))
        )

    def _object(self, said: dict[str, Any], where: str, depth: int) -> Node:
        properties, required = said.get("properties", {}), said.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise refused(where, "properties must be an object, and required a list")
        least, most = _sizes(said, "minProperties", "maxProperties", where)
        more = said.get("additionalProperties", said.get("unevaluatedProperties", True))
        place, names, known = "additionalProperties", said.get("propertyNames", True), f"{where}.propertyNames"
        if patterns := said.get("patternProperties"):
            if not isinstance(patterns, dict) or len(patterns) > 1 or properties or names is not True:
                raise refused(where, "'patternProperties' is supported for one pattern, and no other fields beside it")
            ((name, more),) = patterns.items()
            place = f"patternProperties.{name}"
            names, known = name in _ANY_NAME or {"pattern": name}, f"{where}.{place}"
        properties = {name: (f"properties.{name}", value) for name, value in properties.items()}
        allowed, kept = self._names(names, known)
        named = [*(allowed or ()), *required]
        if unknown := [
            name for name in named if not isinstance(name, str) or (name not in properties and more is False)
        ]:
            raise refused(where, f"required names {unknown[0]!r}, which is none of the properties")
        properties |= {name: (place, more) for name in named if name not in properties}
        if kept is not None:
            check = validator(_saying(self._plain(names, known)))
            properties = {name: value for name, value in properties.items() if check.is_valid(name)}
            if lost := [name for name in required if name not in properties]:
                raise refused(where, f"required names {lost[0]!r}, which propertyNames forbids")
        if allowed is not None:
            if lost := [name for name in required if name not in allowed]:
                raise refused(where, f"required names {lost[0]!r}, which propertyNames forbids")
            properties, more = {name: properties[name] for name in allowed}, False
        for name in properties:
            if not name.isprintable():
                raise refused(where, f"the name {name!r} holds a character that cannot be shown")
        fields = tuple(
            nodes.Field(name, self._value(value, f"{where}.{path}", depth + 1), name in required)
            for name, (path, value) in properties.items()
            if name in required or not _is_nothing(value)
        )
        must = sum(each.required for each in fields)
        # Further fields are allowed where nothing forbids them, and written where nothing else is asked for.
        if more is False or (more in (True, {}) and properties and must >= least):
            if must < least or (most is not None and len(fields) > most):
                raise refused(where, "'minProperties' and 'maxProperties' are supported for fields of any name")
            return nodes.Object(fields)
        if least > MOST_OPTIONS or (most is not None and len(fields) > most):
            raise refused(where, "its properties are more than maxProperties, or minProperties too many")
        if kept is not None and not _so_many(kept, least - must):
            raise refused(where, f"the names that are allowed are no {least}: lower minProperties")
        return nodes.Object(fields, self._value(more, f"{where}.{place}", depth + 1), kept, least, most)

    def _names(self, schema: Any, where: str) -> tuple[list[str] | None, nodes.Pattern | None]:  # noqa: ANN401
        """The names that fields may have, or what they keep; None for any."""
        said = intersect({"type": "string"}, _saying(self._plain(schema, where)), _SAYING, where)
        node = self._value(said, where, 0)
        if isinstance(node, nodes.Choice):
            return [json.loads(option) for option in node.options], None
        if isinstance(node, nodes.Text):
            if node.least <= 1 and node.most is None:
                return None, None
            node = self._pattern(_NAME, max(1, node.least), node.most, where)
        if not isinstance(node, nodes.Pattern):
            raise refused(where, "only an enum, a pattern, a format and lengths are supported here")
        return None, replace(node, least=max(1, node.least))

    def _anything(self) -> Node:
        """Any value: of the usual kinds, to any depth that the budget allows."""
        if self._any is None:
            name = "anything"
            self._any = nodes.Reference(name, self._definitions)
            scalars = (nodes.Text(), nodes.Number(False, "0"), nodes.Choice(("true", "false", "null")))
            self._definitions[name] = nodes.Union((*scalars, nodes.Array(self._any), nodes.Object((), self._any)))
        return self._any


def _with_example(node: nodes.Number, where: str) -> nodes.Number:
    example = example_of(node)
    if example is not None and not grammar.begins(grammar.number(node)):
        raise refused(where, "its bounds and multipleOf together are too costly to keep")
    if example is None:
        raise refused(where, f"no {'integer' if node.integer else 'number'} is within its bounds")
    return replace(node, example=example)


def example_of(node: nodes.Number) -> str | None:
    """A short number within the bounds, in JSON."""
    low = max((bound for bound in (node.minimum, node.above) if bound is not None), default=-LARGEST)
    high = min((bound for bound in (node.maximum, node.below) if bound is not None), default=LARGEST)
    tries: list[float] = [0, 1, -1, math.ceil(low), math.floor(high), math.ceil(low) + 1, math.floor(high) - 1]
    if not node.integer:
        tries += [low, high, (low + high) / 2]
    if node.step is not None:
        tries += [float(Decimal(str(node.step)) * (int(low / node.step) + more)) for more in range(-1, 3)]
        tries += [int(each) for each in tries if float(each).is_integer()]
    fitting = [json.dumps(number) for number in tries if within(number, node) and abs(number) <= LARGEST]
    return min(fitting, key=len, default=None)


def another_of(node: nodes.Number, taken: Collection[float]) -> str:
    """A number within the bounds that is not taken, in JSON: one of the nearest to the example."""
    start, step = Decimal(node.example), Decimal(str(node.step or 1))
    near = (start + sign * far * step for far in count(1) for sign in (1, -1))
    return next(f"{each:f}" for each in near if float(each) not in taken and within(float(each), node))


def another_text(node: nodes.Pattern, taken: Sequence[str]) -> str | None:
    """A text that keeps a pattern and is not taken; None where there is none that is not much longer."""
    if node.example not in taken:
        return node.example
    try:
        # Not remembered: what one key's answer held is nobody else's business.
        found = grammar.shortest.__wrapped__(node.regex, node.least, "", tuple(taken))
    except ValueError:  # too costly to find
        return None
    return found if found and len(found) <= len(node.example) + UNLIKE else None


def _so_many(node: nodes.Pattern, count: int) -> bool:
    """Whether that many texts keep a pattern; more than a few are taken for granted."""
    taken: list[str] = []
    while len(taken) < min(count, _SHORT_RANGE):
        if (found := another_text(node, taken)) is None or (node.most is not None and len(found) > node.most):
            return False
        taken.append(found)
    return True


def within(number: float, node: nodes.Number) -> bool:
    """Whether a number keeps the bounds."""
    return jsonschema_rs.is_valid(node.keywords(), number)


def _bound(said: Mapping[str, Any], name: str, where: str) -> float | None:
    """A bound, None where every number that is written here keeps it anyway."""
    value = said.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused(where, f"{name} must be a number")
    if abs(value) <= LARGEST:
        return float(value) if isinstance(value, float) else value
    if (value < 0) is name.lower().endswith("minimum"):
        return None
    raise refused(where, f"{name} must be a number between -{LARGEST:.0e} and {LARGEST:.0e}")


def _saying(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name in _SAYING}


def _only(said: Mapping[str, Any], known: Collection[str], where: str) -> None:
    unknown = [name for name in said if name in _ASSERTIONS and name not in known]
    if unknown:
        raise refused(where, f"{unknown[0]!r} is not supported here")


def _sizes(said: Mapping[str, Any], least: str, most: str, where: str) -> tuple[int, int | None]:
    for name in (least, most):
        value = said.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value % 1:
            raise refused(where, f"{name} must be an integer that is not negative")
    few, many = int(said.get(least, 0)), int(said[most]) if most in said else None
    if many is not None and few > many:
        raise refused(where, f"{least} is greater than {most}")
    return few, many


def _anchored(regex: str) -> str:
    """The pattern for a whole string: JSON Schema looks for it anywhere in the string."""
    ways = _alternatives(regex)
    if len(ways) > 1:
        return "|".join(_anchored(each) for each in ways)
    begins, ends = regex.startswith("^"), regex.endswith("$") and not open_escape(regex[:-1])
    inner = regex[begins : len(regex) - ends]
    return f"{'' if begins else '.*'}({inner}){'' if ends else '.*'}"


def conditions(regex: str) -> list[tuple[bool, str]]:
    """A pattern as expressions that a text must match, or must not: look-aheads at its start stand for themselves."""
    found: list[tuple[bool, str]] = []
    rest = regex[1:]
    while regex.startswith("^") and (ahead := _LOOK_AHEAD.match(rest)):
        ways = _alternatives(ahead[2])
        if ahead[1] == "!":
            found.extend((False, f"^{each.removeprefix('^')}") for each in ways)
        else:
            found.append((True, f"^{ways[0].removeprefix('^')}" if len(ways) == 1 else f"^(?:{ahead[2]})"))
        rest = rest[ahead.end() :]
    return [(True, f"^{rest}"), *found] if found else [(True, regex)]


def _alternatives(regex: str) -> list[str]:
    """What stands between the bars of an expression that are in no group and no class."""
    parts, depth = [""], 0
    for piece in re.findall(r"\\.|\[(?:[^\]\\]|\\.)*\]|.", regex, re.DOTALL):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _is_nothing(schema: Any) -> bool:  # noqa: ANN401
    """Whether no value at all is as it asks, by its own words (`z.never()`)."""
    return schema is False or (isinstance(schema, dict) and _saying(schema) in ({"not": {}}, {"not": True}))


def _is_beyond(schema: Any) -> bool:  # noqa: ANN401
    regex = schema.get("pattern") if isinstance(schema, dict) and not _is_formats_own(schema) else None
    return isinstance(regex, str) and _looks_around(regex)


def _looks_around(regex: str) -> bool:
    return any(_LOOK_AROUND.search(part) for _, part in conditions(regex))
