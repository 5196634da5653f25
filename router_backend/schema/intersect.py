"""One schema for two that hold together: what stands beside `$ref` or `anyOf`, and the parts of `allOf`."""

from __future__ import annotations

from typing import Any

from router_backend.schema.branches import refused

Schema = dict[str, Any]
_GREATER = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_LESS = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_LONGEST = 500
_INNER = frozenset({"items", "additionalProperties"})


def intersect(one: Schema, other: Schema, assertions: frozenset[str], where: str) -> Schema:
    """A schema that says what both say. Names outside `assertions` say nothing: any of the two stays.

    Raises InvalidRequest where two values of a keyword cannot be brought together.
    """
    one, other = _closed_by(one, other), _closed_by(other, one)
    both = {**other, **one}
    for name in (one.keys() & other.keys()) & assertions:
        left, right = one[name], other[name]
        if left != right:
            both[name] = _together(name, left, right, where)
    return both


def _together(name: str, left: Any, right: Any, where: str) -> Any:  # noqa: ANN401 - any JSON
    if name in _GREATER or name in _LESS:
        if all(isinstance(each, int | float) for each in (left, right)):
            return max(left, right) if name in _GREATER else min(left, right)
    elif name == "required" and isinstance(left, list) and isinstance(right, list):
        if all(isinstance(each, str) for each in (*left, *right)):
            return [*dict.fromkeys((*left, *right))]
    elif name == "properties" and isinstance(left, dict) and isinstance(right, dict):
        shared = {key: {"allOf": [left[key], right[key]]} for key in left if key in right}
        return {**left, **right, **shared}
    elif name == "pattern" and isinstance(left, str) and isinstance(right, str):
        if (both := _both(left, right)) is not None:
            return both
    elif name == "enum" and isinstance(left, list) and isinstance(right, list):
        if max(len(left), len(right)) <= _LONGEST:
            return [each for each in left if each in right]
    elif name == "type":
        return _types(left, right, where)
    elif name in _INNER:
        return False if False in (left, right) else {"allOf": [left, right]}
    raise refused(where, f"two different {name!r} that hold together are not supported")


def _both(one: str, other: str) -> str | None:
    """A pattern that holds what both hold: one looks ahead for the other. None where that cannot be written."""
    first, ahead = sorted((one, other), key=lambda each: ("|" in each, not each.startswith("^(?"), each[:1] != "^"))
    if "|" in first:
        return None
    if not ahead.startswith("^"):
        ahead = f".*(?:{ahead})" if "|" in ahead else f".*{ahead}"
    return f"^(?={ahead}){first[1:] if first.startswith('^') else f'.*{first}'}"


def _types(left: Any, right: Any, where: str) -> list[str]:  # noqa: ANN401
    lefts, rights = (each if isinstance(each, list) else [each] for each in (left, right))
    shared = [each for each in lefts if each in rights or (each == "integer" and "number" in rights)]
    shared += ["integer"] if "number" in lefts and "integer" in rights and "integer" not in shared else []
    if not shared:
        raise refused(where, f"type {left!r} and type {right!r} hold together: there is no such value")
    return shared


def _closed_by(one: Schema, other: Schema) -> Schema:
    """With `other`'s word on the fields that it does not name."""
    more, fields, known = other.get("additionalProperties", True), one.get("properties"), other.get("properties", {})
    if more in (True, {}) or not isinstance(fields, dict) or not isinstance(known, dict):
        return one
    kept = {name: value if name in known else _together("items", value, more, "") for name, value in fields.items()}
    return {**one, "properties": kept}
