"""The files that an evaluation reads: JSONL, each wrong line named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_backend.errors import InvalidRequest
from router_backend.jsonl import read_values
from router_tools.evaluate.metrics import read_plan, route_of

# 24 requests of our own from twelve fields, from introductory to advanced.
BUNDLED = Path(__file__).with_name("gold.jsonl")


@dataclass(frozen=True, slots=True)
class GoldRow:
    """A prompt with its gold plan. `line` is its place in the file, from 1."""

    line: int
    prompt: str
    plan: dict[str, Any]

    @property
    def first(self) -> str:
        return str(route_of(self.plan)[0])


def read_gold(path: Path, limit: int | None = None, content: bytes | None = None) -> list[GoldRow]:
    """The first `limit` rows `{"prompt", "completion"}`; further keys are ignored. `content`: as in `read_lines`.

    Raises:
        InvalidRequest: no such file, no row, or a row that is wrong.
    """
    rows: list[GoldRow] = []
    for line, value in json_lines(path, content):
        where = f"{path}, line {line}"
        prompt, completion = value.get("prompt"), value.get("completion")
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidRequest(f"{where}: prompt must be a text that is not blank")
        if not isinstance(completion, str):
            raise InvalidRequest(f"{where}: completion must be the gold plan as JSON text")
        plan = read_plan(completion)
        if plan is None:
            raise InvalidRequest(f"{where}: completion is no JSON object")
        if not route_of(plan) or None in route_of(plan):
            raise InvalidRequest(f"{where}: the gold route_plan must be a list of /tool(arguments)")
        rows.append(GoldRow(line, prompt, plan))
        if len(rows) == limit:
            break
    if not rows:
        raise InvalidRequest(f"{path} has no rows")
    return rows


def json_lines(path: Path, content: bytes | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and JSON objects.

    Raises:
        InvalidRequest: no such file, or a line that is not a JSON object.
    """
    for line, value in read_values(path, content):
        if not isinstance(value, dict):
            raise InvalidRequest(f"{path}, line {line}: must be a JSON object")
        yield line, value
