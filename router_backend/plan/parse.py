"""Finds the plan in what a checkpoint said: after thinking aloud, in fences, between prose, with trailing commas."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from router_backend.jsonl import refuse

_THINKING = re.compile(r"<(/?)(think|thinking|reasoning)>", re.IGNORECASE)
_FENCE = re.compile(r"```(?:json)?(.*?)```", re.DOTALL | re.IGNORECASE)
_LARGEST = 1_000_000
# What may be spent on braces that open nothing: whoever nests them deep must not make this quadratic.
_FAILURES, _MARKS = 200, 300_000


class NoPlanFound(ValueError):
    """There is no JSON object in the text."""


def parse(text: str) -> dict[str, Any]:
    """The first JSON object that has a plan's first key, or else the largest JSON object.

    Raises:
        NoPlanFound: none could be read, or the text is absurdly long.
    """
    if len(text) > _LARGEST:
        raise NoPlanFound(f"the text has more than {_LARGEST} characters")
    said = _without_thoughts(text)
    budget = _Budget()
    best: dict[str, Any] | None = None
    for source in dict.fromkeys((*_FENCE.findall(said), said, text)):
        found = []
        for value in _objects(source, budget):
            if "route_plan" in value:
                return value
            found.append(value)
        best = max(found, key=len, default=None) if best is None else best
    if best is None:
        raise NoPlanFound("there is no JSON object in the text")
    return best


def _without_thoughts(text: str) -> str:
    """Without closed blocks of thinking, and without all before a closing tag that nothing opened."""
    kept: list[str] = []
    at, inside = 0, ""
    for tag in _THINKING.finditer(text):
        closes, name = tag[1], tag[2].lower()
        if not inside and not closes:
            kept.append(text[at : tag.start()])
            at, inside = tag.start(), name
        elif closes and inside in ("", name):
            if not inside:
                kept.clear()
            at, inside = tag.end(), ""
    return "".join(kept) + text[at:]


_OBJECT = re.compile(r'\{(?=\s*["}])')
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)'
_STRING_OR_MARK = re.compile(rf"{_STRING}|[{{}}\[\]]", re.DOTALL)
_STRING_OR_COMMA = re.compile(rf"({_STRING})|,(?=\s*[}}\]])", re.DOTALL)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        refuse(digits)
    return number


_DECODER = json.JSONDecoder(parse_constant=refuse, parse_float=_finite)


@dataclass
class _Budget:
    failures: int = _FAILURES
    marks: int = _MARKS


def _objects(source: str, budget: _Budget) -> Iterator[dict[str, Any]]:
    at = 0
    while budget.failures > 0 and budget.marks > 0 and (opening := _OBJECT.search(source, at)):
        at = opening.start()
        value, end = _read(source, at, budget)
        if isinstance(value, dict):
            yield value
        at = max(end, at + 1)


def _read(source: str, at: int, budget: _Budget) -> tuple[object, int]:
    """The JSON value at a place, trailing commas forgiven, and where it ends."""
    try:
        return _DECODER.raw_decode(source, at)
    except (ValueError, RecursionError):
        budget.failures -= 1
        end = _closing(source, at, budget)
    if end is None:
        return None, at
    piece = _STRING_OR_COMMA.sub(lambda match: match[1] or "", source[at:end])
    try:
        return _DECODER.decode(piece), end
    except (ValueError, RecursionError):
        return None, at


def _closing(source: str, at: int, budget: _Budget) -> int | None:
    """Where the bracket that opens at `at` is closed."""
    depth = 0
    for match in _STRING_OR_MARK.finditer(source, at):
        budget.marks -= 1
        if match[0] in "{[":
            depth += 1
        elif match[0] in "}]":
            depth -= 1
            if depth == 0:
                return match.end()
        if budget.marks <= 0:
            break
    return None
