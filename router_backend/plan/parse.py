"""Finds the plan in what a checkpoint said: after thinking aloud, in fences, between prose, with trailing commas."""

from __future__ import annotations

import json
import re
from typing import Any

_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_THOUGHT_ALOUD = re.compile(r"^.*</(think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)
_LARGEST, _TRIES = 1_000_000, 32


class NoPlanFound(ValueError):
    """There is no JSON object in the text."""


def parse(text: str) -> dict[str, Any]:
    """The first JSON object that has a plan's first key, or else the largest JSON object.

    Raises:
        NoPlanFound: none could be read, or the text is absurdly long.
    """
    if len(text) > _LARGEST:
        raise NoPlanFound(f"the text has more than {_LARGEST} characters")
    said = _THOUGHT_ALOUD.sub("", _THINKING.sub("", text))
    for source in (*_FENCE.findall(said), said, text):
        found = _objects(source)
        plans = [each for each in found if "route_plan" in each]
        if plans or found:
            return plans[0] if plans else max(found, key=len)
    raise NoPlanFound("there is no JSON object in the text")


def _objects(source: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    at = source.find("{")
    for _ in range(_TRIES):  # every try may read all of the text: unclosed braces must not make that quadratic
        if at < 0:
            break
        value, end = _read(source, at)
        if isinstance(value, dict):
            found.append(value)
        at = source.find("{", max(end, at + 1))
    return found


def _read(source: str, at: int) -> tuple[object, int]:
    """The JSON value at a place, trailing commas forgiven, and where it ends."""
    try:
        return json.JSONDecoder(parse_constant=_refuse).raw_decode(source, at)
    except (ValueError, RecursionError):
        end = _closing(source, at)
    if end is None:
        return None, at
    piece = _without_trailing_commas(source[at:end])
    try:
        return json.loads(piece, parse_constant=_refuse), end
    except (ValueError, RecursionError):
        return None, at


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_STRING_OR_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_STRING_OR_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)


def _closing(source: str, at: int) -> int | None:
    """Where the bracket that opens at `at` is closed."""
    depth = 0
    for match in _STRING_OR_MARK.finditer(source, at):
        if match[0] in "{[":
            depth += 1
        elif match[0] in "}]":
            depth -= 1
            if depth == 0:
                return match.end()
    return None


def _without_trailing_commas(source: str) -> str:
    return _STRING_OR_COMMA.sub(lambda match: match[1] or "", source)
