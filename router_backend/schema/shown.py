"""The JSON Schema that a client's instructions show, as libraries do that ask for JSON in words."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any

from router_backend.errors import InvalidRequest
from router_backend.schema.read import read

_SHOWN = re.compile(r"schema[^{}]{0,160}\{", re.IGNORECASE)
_TEMPLATE = re.compile(r"^\{", re.MULTILINE)
_EXAMPLE = re.compile(r"\bexample\b[^.{}]*$", re.IGNORECASE)
_TRIES = 4


def schema_shown(text: str, owner: str = "") -> str | None:
    """The schema that an answer must keep by these instructions, as JSON text: the first one that is shown in them,
    unless it is said to be an example.

    That is an object with properties, after the words JSON and schema; or an object with such words in its texts, which
    stands for the answer field by field. A schema that is not understood is none.
    """
    for match in islice(_SHOWN.finditer(text), _TRIES):
        if _EXAMPLE.search(text, max(0, match.start() - 160), match.end() - 1):
            continue
        if "json" in text[: match.end()].lower() and (found := _known(_decoded(text, match.end() - 1), owner)):
            return found
    for match in islice(_TEMPLATE.finditer(text), _TRIES):
        template = _decoded(text, match.start())
        fields = {name: schema_shown(value, owner) for name, value in template.items() if isinstance(value, str)}
        if any(fields.values()):
            properties = {name: json.loads(shown or "{}") for name, shown in fields.items()}
            whole: dict[str, Any] = {"type": "object", "properties": properties, "required": list(fields)}
            # References lead to definitions at the outermost place.
            for held in ("$defs", "definitions"):
                named = [pair for each in properties.values() for pair in each.pop(held, {}).items()]
                whole[held] = dict(named)
                if any(whole[held][name] != value for name, value in named):
                    return None  # two fields mean something else by one name
            return _known(whole, owner)
    return None


def _decoded(text: str, at: int) -> dict[str, Any]:
    """The JSON object that begins there; an empty one where there is none."""
    try:
        found: dict[str, Any] = json.JSONDecoder().raw_decode(text, at)[0]
    except (ValueError, RecursionError):
        return {}
    return found


def _known(schema: dict[str, Any], owner: str) -> str | None:
    """A schema with properties as JSON text, if it is understood."""
    try:
        shown = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        if schema.get("properties") or "$ref" in schema:
            read(shown, owner)
            return shown
    except (ValueError, RecursionError, InvalidRequest):
        pass
    return None
