"""The deploy gate: a few black-box checks of a URL, one line each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from router_backend.client import ClientError, Reply, RouterClient, Unreachable, error_message
from router_backend.errors import InvalidRequest, RouterError
from router_backend.plan.prompt import router_prompt
from router_backend.plan.rules import validate

PASSED, FAILED = 0, 1
TOOLS = ("/general-search", "/math", "/code")
QUERY = (
    "Find how the golden-section search is usually stated, derive how many steps it needs for a given tolerance, "
    "and write a Python function that minimises a unimodal function with it, with a test."
)
T = TypeVar("T")
_UNKNOWN = "no_such_field"
_QUICK = 30.0


class _Skip(Exception):
    """Why a check had nothing to look at."""


def run_smoke(
    url: str | None,
    api_key: str | None = None,
    *,
    timeout: float = 300.0,
    within: float = 120.0,
    tools: Sequence[str] = TOOLS,
    out: Callable[[str], object] = print,
) -> int:
    """Checks a deployed router and says one line a check.

    Args:
        url: base URL or the one of `/v1/generate`.
        timeout: seconds that the plan is waited for at most.
        within: seconds in which the plan must be there.
        tools: the specialists that the deployment routes to.
        out: is handed each line.

    Returns:
        0: all is well. 1: a check failed.

    Raises:
        RouterError: the checks could not be run: no usable URL, or nothing listens.
    """
    if not url:
        raise InvalidRequest("no URL: give one, or set HF_ROUTER_API")
    try:
        client = RouterClient(url, api_key, timeout)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    failed = count = 0
    with client:
        try:
            for name, check in _Smoke(client, within, tools).checks():
                count += 1
                failed += not _run(client, name, check, out)
        except Unreachable as error:
            # A server that went away under the checks is a finding; one that never was there is none.
            if count == 1:
                raise RouterError(str(error)) from None
            out(str(error))
            failed += 1
    out(f"{count - failed} of {count} checks passed" if failed else f"all {count} checks passed")
    return FAILED if failed else PASSED


def _run(client: RouterClient, name: str, check: Callable[[], str], out: Callable[[str], object]) -> bool:
    began = time.monotonic()
    try:
        verdict, said = "ok  ", check()
    except _Skip as skip:
        verdict, said = "skip", str(skip)
    except Unreachable:
        out(f"FAIL  {name}: no connection ({time.monotonic() - began:.2f} s)")
        raise
    except ClientError as error:
        verdict, said = "FAIL", str(error)
    out(f"{verdict}  {name}: {client.clean(said)} ({time.monotonic() - began:.2f} s)")
    return verdict == "ok  "


class _Smoke:
    """The checks in order. Each returns what it saw, or raises ClientError; later ones look at what was found."""

    def __init__(self, client: RouterClient, within: float, tools: Sequence[str]) -> None:
        self._client, self._within, self._tools = client, within, tools
        self._quick = min(client.timeout, _QUICK)
        self._reply: Reply | None = None
        self._text: str | None = None
        self._plan: object = None

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "health", self._health
        yield "generate", self._generate
        yield "body", self._body
        yield "json", self._json
        yield "plan", self._rules
        yield "time", self._time
        yield "unknown field", self._unknown_field
        yield "redirect", self._redirect

    def _health(self) -> str:
        reply = self._client.send("GET", "/health", timeout=self._quick)
        health = _object(reply, f"{reply.status}, and the body is no JSON object")
        status, model, strategy = (health.get(key) for key in ("status", "model", "strategy"))
        reason = health.get("reason") or "no reason given"
        _must(reply.status == 200, f"{reply.status}, status {status}: {reason}")
        _must(status in ("ok", "idle"), f"200, but status is {status}: {reason}")
        _must(strategy and isinstance(strategy, str), "no strategy in the body")
        # Nothing is loaded while idle, so there may be no model to name.
        _must("model" in health and (status == "idle" or (model and isinstance(model, str))), "no model in the body")
        stands_in = ", a stand-in" if health.get("stand_in") else ""
        return f"{status}, model {model}, strategy {strategy}{stands_in}"

    def _generate(self) -> str:
        reply = self._client.send("POST", "/v1/generate", {"prompt": router_prompt(QUERY)})
        if reply.status != 200:
            raise self._client.error_of(reply)
        self._reply = reply
        return "200 at the defaults"

    def _body(self) -> str:
        body = _object(_there(self._reply, "answer to look at"), "is no JSON object")
        self._text = body["text"] if isinstance(body.get("text"), str) else None
        _must(set(body) == {"text"}, f'must be exactly {{"text"}}, and has the keys {sorted(body)}')
        _must(self._text is not None, "text is no string")
        return 'exactly {"text"}'

    def _json(self) -> str:
        text = _there(self._text, "text to look at")
        try:
            plan = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ClientError(None, f"the text is no whole JSON: {error}") from None
        _must(isinstance(plan, dict), "the text is JSON, but no object")
        self._plan = plan
        return f"the text is JSON, {len(text)} characters"

    def _rules(self) -> str:
        plan, findings = validate(_there(self._plan, "plan to look at"), self._tools)
        if findings or plan is None:
            more = f" (and {len(findings) - 3} more)" if len(findings) > 3 else ""
            raise ClientError(None, "; ".join(map(str, findings[:3])) + more)
        return f"keeps the schema and the rules, {len(plan.route_plan)} steps"

    def _time(self) -> str:
        reply = _there(self._reply, "answer to time")
        took = f"the answer took {reply.seconds:.1f} s, {self._within:g} are allowed"
        _must(reply.seconds <= self._within, took)
        return took

    def _unknown_field(self) -> str:
        body = {"prompt": "ping", _UNKNOWN: 1}
        reply = self._client.send("POST", "/v1/generate", body, timeout=self._quick)
        _must(reply.status == 400, f"must be refused with 400, and the answer is {reply.status}")
        message = error_message(reply)
        _must(message is not None, '400, but not in the shape {"error": {"message", "type", "param", "code"}}')
        # Another 400, for a small budget say, would prove nothing about the field.
        _must(_UNKNOWN.encode() in reply.content, f"400, but it does not name the field: {message}")
        return "refused with 400, by name"

    def _redirect(self) -> str:
        reply = self._client.send("GET", "/", timeout=self._quick)
        _must(reply.status == 307, f"GET / must answer 307, and answers {reply.status}")
        location = reply.headers.get("location", "")
        leads_there = urlsplit(location).path.rstrip("/").endswith("/gradio")
        _must(leads_there, f"GET / leads to {location or 'nowhere'}, not to /gradio")
        return "GET / leads to /gradio"


def _must(fine: object, wrong: str) -> None:
    if not fine:
        raise ClientError(None, wrong)


def _there(value: T | None, what: str) -> T:
    if value is None:
        raise _Skip(f"there is no {what}")
    return value


def _object(reply: Reply, wrong: str) -> dict[str, Any]:
    value: dict[str, Any] = reply.json()
    _must(isinstance(value, dict), wrong)
    return value
