"""Reads a client's JSON Schema into nodes. What is not understood is refused by name, never passed over.

The part of JSON Schema (2020-12) that is understood stands in docs/openai.md. Everything is bounded here, before
anything is compiled: size, depth, the number of nodes, of options and of patterns. Patterns may still take seconds:
call `read` in the thread of a slot, never in the event loop.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

from router_backend.errors import InvalidRequest
from router_backend.remembered import Remembered
from router_backend.schema import grammar
from router_backend.schema.branches import refused, tell_apart
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
    Union,
    resolved,
    walk,
)
from router_backend.schema.size import measure

LONGEST_SCHEMA = 65_536
MOST_NODES, MOST_DEPTH, MOST_OPTIONS, MOST_PATTERNS = 1000, 32, 500, 32
LARGEST = 10**15
ANYTHING = '{"type": "object"}'
# What says which values there are, and is not understood, or not in that place. All other names are annotations.
_ASSERTIONS = frozenset(
    {"$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "enum", "const"}
    | {"type", "multipleOf", "uniqueItems", "prefixItems", "additionalItems", "contains", "minContains", "maxContains"}
    | {"patternProperties", "propertyNames", "minProperties", "maxProperties", "dependencies", "dependentSchemas"}
    | {"dependentRequired", "unevaluatedItems", "unevaluatedProperties"}
)
_KEYWORDS = {
    "object": frozenset({"properties", "required", "additionalProperties", "patternProperties", "propertyNames"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
_LOOK_AROUND = re.compile(r"\(\?<?[=!]")
_ANY_NAME = frozenset({"", ".*", "^.*$", "^(.*)$"})
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
    for node in walk(root):
        if isinstance(node, Union):
            node.ways.extend(tell_apart(node))
    if not isinstance(resolved(root), Object):
        raise refused("", "its outermost type must be object")
    sizes = measure(root, len)
    if any(node not in sizes for node in walk(root)):
        raise refused("", "a $ref leads back to itself on every way, so nothing can be as it asks")
    if sizes[root].depth > MOST_DEPTH:
        raise refused("", f"it nests deeper than {MOST_DEPTH} levels")
    try:
        validator(schema)
    except Exception as error:
        raise refused("", " ".join(str(error).split())[:200]) from None
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
        if isinstance(instance, str) and not compiled(self._regex).is_valid(instance):
            raise ValueError(f"{json.dumps(instance, ensure_ascii=False)} does not match {self._regex}")


def _told(schema: Any) -> Any:  # noqa: ANN401
    """A schema as the library is told it: with the patterns that are compiled here, by a keyword of our own.

    Left out is a pattern that only a backtracking engine knows, where a format says the same.
    """
    if isinstance(schema, list):
        return [_told(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    told: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _DATA:
            told[name] = value
        elif name in _BY_NAME and isinstance(value, dict):
            kept = value if name != "patternProperties" else {key: value[key] for key in value if key in _ANY_NAME}
            told[name] = {key: _told(each) for key, each in kept.items()}
        elif name not in ("pattern", _PATTERN):
            told[name] = _told(value)
        elif name == "pattern" and isinstance(value, str) and not _is_formats_own(schema):
            told[_PATTERN] = value
    return told


def _is_formats_own(schema: Mapping[str, Any]) -> bool:
    """Whether a known format stands beside a pattern that cannot be read here."""
    regex, form = schema.get("pattern"), schema.get("format")
    known = isinstance(form, str) and form in grammar.FORMATS
    return known and isinstance(regex, str) and _LOOK_AROUND.search(regex) is not None


_remembered = Remembered(_read, most=64)


class _Reader:
    def __init__(self, schema: Any, owner: str) -> None:  # noqa: ANN401 - any JSON
        self._schema, self._owner = schema, owner
        self._definitions: dict[str, Node] = {}
        self._waiting: list[str] = []
        self._nodes = self._options = self._patterns = 0
        self._any: Node | None = None

    def whole(self) -> Node:
        root = Reference("#", self._definitions)
        self._waiting.append("#")
        while self._waiting:
            name = self._waiting.pop()
            if name not in self._definitions:
                self._definitions[name] = self._value(self._found(name), "" if name == "#" else f" {name}", 0)
        return root

    def _found(self, reference: str) -> Any:  # noqa: ANN401
        """What a local reference shows: a JSON pointer, an anchor, or an `$id` with either."""
        base, _, pointer = reference.partition("#")
        found = self._schema if not base else self._named("$id", base, reference)
        pointer = unquote(pointer)
        if pointer and not pointer.startswith("/"):
            return self._named("$anchor", pointer, reference)
        for part in pointer.split("/")[1:]:
            step = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict) and step in found:
                found = found[step]
            else:
                raise refused("", f"$ref {reference!r} leads nowhere")
        return found

    def _named(self, keyword: str, name: str, reference: str) -> Any:  # noqa: ANN401
        """The part of the schema that has this `$id` or `$anchor`."""
        waiting = [self._schema]
        while waiting:
            part = waiting.pop()
            if isinstance(part, dict):
                if part.get(keyword) == name:
                    return part
                waiting.extend(part.values())
            elif isinstance(part, list):
                waiting.extend(part)
        far = ": nothing is fetched from elsewhere" if keyword == "$id" else ""
        raise refused("", f"$ref {reference!r} leads nowhere{far}")

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
        said = dict(schema)
        for name, read in self._COMBINATIONS.items():
            if name in said:
                return read(self, said, where, depth)
        return self._typed(said, where, depth)

    def _reference(self, said: dict[str, Any], where: str, depth: int) -> Node:
        _only(said, {"$ref"}, where)
        name = said["$ref"]
        if not isinstance(name, str):
            raise refused(where, "$ref must be a text")
        try:
            self._found(name)
        except InvalidRequest as error:
            raise refused(where, error.message.removeprefix("schema: ")) from None
        self._waiting.append(name)
        return Reference(name, self._definitions)

    def _any_of(self, said: dict[str, Any], where: str, depth: int) -> Node:
        name = "anyOf" if "anyOf" in said else "oneOf"
        _only(said, {name, "type"}, where)
        branches = said[name]
        if not isinstance(branches, list) or not branches:
            raise refused(where, f"{name} must be a list that is not empty")
        kinds = (self._value(each, f"{where}.{name}[{at}]", depth + 1) for at, each in enumerate(branches))
        return Union(tuple(kinds), where=where)

    def _all_of(self, said: dict[str, Any], where: str, depth: int) -> Node:
        _only(said, {"allOf"}, where)
        if not isinstance(said["allOf"], list) or len(said["allOf"]) != 1:
            raise refused(where, "allOf of several is not supported")
        return self._value(said["allOf"][0], where, depth + 1)

    def _enum(self, said: dict[str, Any], where: str, depth: int) -> Node:
        _only(said, {"enum", "const", "type"}, where)
        options = said.get("enum", [said.get("const")])
        if not isinstance(options, list) or not options:
            raise refused(where, "enum must be a list that is not empty")
        self._options += len(options)
        if self._options > MOST_OPTIONS:
            raise refused(where, f"more than {MOST_OPTIONS} enum values altogether")
        kinds = said.get("type", list(_KEYWORDS))
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if unknown := [kind for kind in kinds if not isinstance(kind, str) or kind not in _KEYWORDS]:
            raise refused(where, f"type {unknown[0]!r} is not known")
        fitting = [json.dumps(option, ensure_ascii=False) for option in options if _is_of(option, kinds)]
        if "const" in said:
            constant = json.dumps(said["const"], ensure_ascii=False)
            fitting = [option for option in fitting if _same(option, constant)]
        if not fitting:
            raise refused(where, "no value of its enum or const is of its type, or both")
        return Choice(tuple(dict.fromkeys(fitting)))

    _COMBINATIONS: Mapping[str, Callable[[_Reader, dict[str, Any], str, int], Node]] = {
        "$ref": _reference,
        "anyOf": _any_of,
        "oneOf": _any_of,
        "allOf": _all_of,
        "enum": _enum,
        "const": _enum,
    }

    def _typed(self, said: dict[str, Any], where: str, depth: int) -> Node:
        kind = said.pop("type", None)
        if kind is None:
            kind = next((each for each, names in _KEYWORDS.items() if each != "integer" and said.keys() & names), None)
        if kind is None:
            _only(said, (), where)
            return self._anything()
        if isinstance(kind, list) and kind:
            branches = ({**said, "type": each} for each in kind)
            return Union(tuple(self._value(each, where, depth + 1) for each in branches), where=where)
        if not isinstance(kind, str) or kind not in _KEYWORDS:
            raise refused(where, f"type {kind!r} is not known")
        _only(said, _KEYWORDS[kind], where)
        return self._KINDS[kind](self, said, where, depth)

    def _text(self, said: dict[str, Any], where: str, depth: int) -> Node:
        least, most = _sizes(said, "minLength", "maxLength", where)
        if least > grammar.COUNTED:
            raise refused(where, f"minLength must be at most {grammar.COUNTED}")
        regex = said.get("pattern")
        form = said.get("format")
        if not isinstance(form, str) or form not in grammar.FORMATS:
            return Text(least, most) if regex is None else self._pattern(regex, least, most, where)
        also = f"^({grammar.FORMATS[form]})$"
        if regex is None or _is_formats_own(said):
            return self._pattern(also, least, most, where)
        return self._pattern(regex, least, most, where, also)

    def _pattern(self, regex: Any, least: int, most: int | None, where: str, also: str = "") -> Node:  # noqa: ANN401
        self._patterns += 1
        if self._patterns > MOST_PATTERNS:
            raise refused(where, f"more than {MOST_PATTERNS} patterns altogether")
        longest = grammar.LONGEST_PATTERN * (4 if also else 1)  # generators write long ones beside their formats
        if not isinstance(regex, str) or len(regex) > longest or not regex.isprintable():
            raise refused(where, f"pattern must be printable text of at most {longest} characters")
        whole = "\n".join(map(_anchored, filter(None, (regex, also))))
        try:
            example = grammar.shortest(whole, least, self._owner)
            compiled(regex)
        except ValueError as error:
            raise refused(where, f"pattern: {' '.join(str(error).split())[:200]}") from None
        if example is None or (most is not None and len(example) > most):
            raise refused(
                where, f"no plain text of at most {most or grammar.LONGEST_MATCH} characters keeps the pattern"
            )
        return Pattern(whole, example, least, most)

    def _number(self, said: dict[str, Any], where: str, depth: int) -> Node:
        bounds = [_bound(said, name, where) for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")]
        node = Number(False, "0", *bounds)
        example = example_of(node)
        if example is None:
            raise refused(where, "no number is within its bounds")
        return replace(node, example=example)

    def _integer(self, said: dict[str, Any], where: str, depth: int) -> Node:
        node = self._number(said, where, depth)
        assert isinstance(node, Number)
        whole = Number(True, "0", *_whole_bounds(node))
        example = example_of(whole)
        if example is None:
            raise refused(where, "no integer is within its bounds")
        return replace(whole, example=example)

    def _array(self, said: dict[str, Any], where: str, depth: int) -> Node:
        least, most = _sizes(said, "minItems", "maxItems", where)
        return Array(self._value(said.get("items", {}), f"{where}.items", depth + 1), least, most)

    def _object(self, said: dict[str, Any], where: str, depth: int) -> Node:
        properties, required = said.get("properties", {}), said.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise refused(where, "properties must be an object, and required a list")
        if unknown := [name for name in required if not isinstance(name, str) or name not in properties]:
            raise refused(where, f"required names {unknown[0]!r}, which is none of the properties")
        if wrong := [name for name in properties if not name.isprintable()]:
            raise refused(where, f"the name {wrong[0]!r} holds a character that cannot be shown")
        fields = tuple(
            Field(name, self._value(value, f"{where}.{name}", depth + 1), name in required)
            for name, value in properties.items()
        )
        more = said.get("additionalProperties", True)
        patterns = said.get("patternProperties", {})
        if patterns and (not isinstance(patterns, dict) or patterns.keys() - _ANY_NAME or len(patterns) > 1 or fields):
            raise refused(where, "'patternProperties' is not supported here, but for any name")
        if patterns:
            more = next(iter(patterns.values()))
        if said.get("propertyNames", {}) not in ({}, True, {"type": "string"}):
            raise refused(where, "'propertyNames' is not supported here")
        # Further fields are allowed where nothing forbids them, and written where nothing else is asked for.
        other = None if more is False or (more in (True, {}) and fields) else self._value(more, f"{where}.*", depth + 1)
        return Object(fields, other)

    def _anything(self) -> Node:
        """Any value: of the usual kinds, to any depth that the budget allows."""
        if self._any is None:
            name = "anything"
            self._any = Reference(name, self._definitions)
            scalars = (Text(), Number(False, "0"), Choice(("true", "false", "null")))
            self._definitions[name] = Union((*scalars, Array(self._any), Object((), self._any)))
        return self._any

    def _boolean(self, said: dict[str, Any], where: str, depth: int) -> Node:
        return Choice(("true", "false"))

    def _null(self, said: dict[str, Any], where: str, depth: int) -> Node:
        return Choice(("null",))

    _KINDS: Mapping[str, Callable[[_Reader, dict[str, Any], str, int], Node]] = {
        "string": _text,
        "number": _number,
        "integer": _integer,
        "array": _array,
        "object": _object,
        "boolean": _boolean,
        "null": _null,
    }


def example_of(node: Number) -> str | None:
    """A short number within the bounds, in JSON."""
    low = max((bound for bound in (node.minimum, node.above) if bound is not None), default=-LARGEST)
    high = min((bound for bound in (node.maximum, node.below) if bound is not None), default=LARGEST)
    tries: list[float] = [0, 1, -1, math.ceil(low), math.floor(high), math.ceil(low) + 1, math.floor(high) - 1]
    if not node.integer:
        tries += [low, high, (low + high) / 2]
    fitting = [json.dumps(number) for number in tries if within(number, node)]
    return min(fitting, key=len, default=None)


def within(number: float, node: Number) -> bool:
    """Whether a number keeps the bounds."""
    return (
        (node.minimum is None or number >= node.minimum)
        and (node.maximum is None or number <= node.maximum)
        and (node.above is None or number > node.above)
        and (node.below is None or number < node.below)
    )


def _is_of(value: object, kinds: Collection[str]) -> bool:
    """Whether a JSON value is of one of these types: 1.0 is an integer too."""
    if isinstance(value, bool) or value is None:
        return ("boolean" if value is not None else "null") in kinds
    if isinstance(value, int | float):
        whole = isinstance(value, int) or value.is_integer()
        return "number" in kinds or ("integer" in kinds and whole)
    return ("string" if isinstance(value, str) else "array" if isinstance(value, list) else "object") in kinds


def _same(one: str, other: str) -> bool:
    """Whether two values in JSON are equal, as JSON Schema has it: 1 and 1.0 are, 1 and true are not."""
    left, right = json.loads(one), json.loads(other)
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def _whole_bounds(node: Number) -> tuple[int | None, int | None]:
    """The least and the largest integer that keep the bounds."""
    lows = [math.ceil(node.minimum)] if node.minimum is not None else []
    lows += [math.floor(node.above) + 1] if node.above is not None else []
    highs = [math.floor(node.maximum)] if node.maximum is not None else []
    highs += [math.ceil(node.below) - 1] if node.below is not None else []
    return max(lows, default=None), min(highs, default=None)


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


def _only(said: Mapping[str, Any], known: Collection[str], where: str) -> None:
    unknown = [name for name in said if name in _ASSERTIONS and name not in known]
    if unknown:
        raise refused(where, f"{unknown[0]!r} is not supported here")


def _sizes(said: Mapping[str, Any], least: str, most: str, where: str) -> tuple[int, int | None]:
    for name in (least, most):
        value = said.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise refused(where, f"{name} must be an integer that is not negative")
    few, many = said.get(least, 0), said.get(most)
    if many is not None and few > many:
        raise refused(where, f"{least} is greater than {most}")
    return few, many


def _anchored(regex: str) -> str:
    """The pattern for a whole string: JSON Schema looks for it anywhere in the string."""
    begins, ends = regex.startswith("^"), regex.endswith("$") and not _escaped_at(regex, len(regex) - 1)
    inner = regex[1 if begins else 0 : len(regex) - 1 if ends else len(regex)]
    return f"{'' if begins else '.*'}({inner}){'' if ends else '.*'}"


def _escaped_at(regex: str, at: int) -> bool:
    before = regex[:at]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1
