"""One request of one client, through OpenAI's streamed chat completions, and what became of it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import httpx

from router_backend.plan.rules import validate
from router_backend.plan.schema import Plan
from router_backend.settings import load_settings

PATIENCE = 900.0
SAMPLING = {"temperature": 0.2, "top_p": 0.9}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "plan", "schema": Plan.model_json_schema(), "strict": True}}
_CLIENT = httpx.Client(timeout=PATIENCE, trust_env=False, limits=httpx.Limits())
_ROUTE = re.compile(r'"route_plan"\s*:\s*\[\s*"(?:[^"\\]|\\.)*"(?:\s*,\s*"(?:[^"\\]|\\.)*")*\s*\]')


@dataclass(frozen=True)
class Outcome:
    """Seconds are the client's own: to the first text, to the end of the route, to the end of the answer."""

    json: bool
    schema: bool
    rules: bool
    prompt_tokens: int
    tokens: int
    first: float | None
    route: float | None
    seconds: float
    error: str | None
    text: str


def ask(url: str, prompt: str, budget: int, seed: int, *, schema: bool, extras: dict[str, Any]) -> Outcome:
    """Sends it and reads the answer to its end. Whatever fails is the outcome's error."""
    body = {
        "model": "router",
        "messages": [{"role": "user", "content": prompt}],
        **{"max_tokens": budget, "seed": seed, "stream": True, "stream_options": {"include_usage": True}},
        **SAMPLING,
        **extras,
        **({"response_format": SCHEMA} if schema else {}),
    }
    began = time.monotonic()
    heard: list[tuple[float, str]] = []
    usage: dict[str, int] = {}
    error = None
    try:
        with _CLIENT.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                error = f"{answer.status_code}: {answer.read().decode()[:300]}"
            for line in answer.iter_lines() if error is None else ():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    error = json.dumps(event["error"])[:300]
                usage = event.get("usage") or usage
                if event.get("choices") and (text := event["choices"][0]["delta"].get("content")):
                    heard.append((time.monotonic() - began, text))
    except httpx.HTTPError as failure:
        error = repr(failure)
    return _judged(heard, usage, time.monotonic() - began, budget, error)


def _judged(
    heard: list[tuple[float, str]], usage: dict[str, int], seconds: float, budget: int, error: str | None
) -> Outcome:
    text = "".join(piece for _, piece in heard)
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    plan, findings = validate(value, load_settings().tools)
    route, found, length = None, _ROUTE.search(text), 0
    for when, piece in heard:
        length += len(piece)
        if found and length >= found.end():
            route = when
            break
    tokens = usage.get("completion_tokens", 0)
    if tokens > budget:
        error = error or f"{tokens} tokens of {budget}"
    return Outcome(
        json=value is not None,
        schema=plan is not None,
        rules=plan is not None and not findings,
        prompt_tokens=usage.get("prompt_tokens", 0),
        tokens=tokens,
        first=heard[0][0] if heard else None,
        route=route,
        seconds=seconds,
        error=error,
        text=text,
    )
