"""The JSON Schema that a client's instructions show, as libraries do that ask for JSON in words."""

from __future__ import annotations

import json
import re
from itertools import islice

from router_backend.errors import InvalidRequest
from router_backend.schema.read import read

_SHOWN = re.compile(r"schema[^{}]{0,80}\{", re.IGNORECASE)
_TRIES = 4


def schema_shown(text: str, owner: str = "") -> str | None:
    """The first object after the words JSON and schema that is a schema with properties, as JSON text, if there is one.

    One that is not understood is none.
    """
    for match in islice(_SHOWN.finditer(text), _TRIES):
        if "json" not in text[: match.end()].lower():
            continue
        try:
            found, _ = json.JSONDecoder().raw_decode(text, match.end() - 1)
            shown = json.dumps(found, ensure_ascii=False, allow_nan=False)
            if found.get("properties"):
                read(shown, owner)
                return shown
        except (ValueError, RecursionError, InvalidRequest):
            continue
    return None
