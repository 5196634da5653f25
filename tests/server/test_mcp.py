"""The router as a tool of agents: the SDK's own client at `/mcp`, in both ways that the protocol has to begin."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
import pytest
from mcp import types
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from router_backend.plan.rules import validate
from tests.fakes.running import Served, app, echo_model, served, until

TOOLS = ("/general-search", "/math", "/code")
KEYS = "ada:sk-ada-12345,bob:sk-bob-12345"
HEADERS = {"Accept": "application/json, text/event-stream"}
QUERY = {"query": "Prove it, then check it."}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as running:
        yield running


@asynccontextmanager
async def connected(server: Served, key: str = "", mode: str = "auto") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as web:
        transport = streamable_http_client(f"{server.url}/mcp", http_client=web)
        async with Client(transport, mode=mode) as client:
            yield client


def call(server: Served, arguments: dict[str, Any], *, tool: str = "plan", **how: str) -> types.CallToolResult:
    async def once() -> types.CallToolResult:
        async with connected(server, **how) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(once())


def message(method: str = "tools/call", **params: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def refusal(result: types.CallToolResult) -> dict[str, Any]:
    [content] = result.content
    assert result.is_error and isinstance(content, types.TextContent)
    said = json.loads(content.text)
    return {**said["error"], "retry_after": said.get("retry_after")}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_an_agent_gets_a_plan(server: Served, mode: str) -> None:
    result = call(server, {**QUERY, "tags": ["math"], "max_new_tokens": 500}, mode=mode)
    assert not result.is_error
    assert not validate(result.structured_content, TOOLS)[1]
    [content] = result.content
    assert isinstance(content, types.TextContent) and json.loads(content.text) == result.structured_content
    prompt = server.model.seen[-1].prompt
    assert QUERY["query"] in prompt and "Tags:\nmath" in prompt, "it is the router's own prompt"


def test_an_agent_gets_a_decision(server: Served) -> None:
    result = call(server, {"input": "2 + 2?", "question": "Who?", "choices": ["math", "code", "math"]}, tool="decide")
    found = result.structured_content
    assert not result.is_error and found is not None and found["choice"] in ("math", "code")
    assert [each["value"] for each in found["probabilities"]] == ["math", "code"]
    assert sum(each["probability"] for each in found["probabilities"]) == pytest.approx(1)


def test_what_a_tool_takes_and_gives_is_told(server: Served) -> None:
    async def listed() -> list[types.Tool]:
        async with connected(server) as client:
            return (await client.list_tools()).tools

    plan, decide = asyncio.run(listed())
    assert decide.name == "decide" and decide.input_schema["required"] == ["input", "question", "choices"]
    assert plan.name == "plan" and plan.input_schema["required"] == ["query"]
    assert plan.input_schema["additionalProperties"] is False
    assert plan.output_schema is not None and "route_plan" in plan.output_schema["properties"]


@pytest.mark.parametrize(
    ("tool", "arguments", "param", "words"),
    [
        ("plan", {}, "query", "required"),
        ("plan", {"query": " "}, "query", "blank"),
        ("plan", {**QUERY, "stream": True}, "stream", "unknown field"),
        ("plan", {**QUERY, "model": "x"}, "model", "unknown field"),
        ("plan", {**QUERY, "max_new_tokens": 3}, "max_new_tokens", "smallest budget"),
        ("decide", {"input": "x", "question": "y?", "choices": ["a"]}, "choices", "at least 2"),
        ("decide", {"input": " ", "question": "y?", "choices": ["a", "b"]}, "input", "blank"),
        ("guess", {}, None, "there is plan, decide"),
    ],
)
def test_what_is_wrong_is_a_result_that_says_so(
    server: Served, tool: str, arguments: dict[str, Any], param: str | None, words: str
) -> None:
    error = refusal(call(server, arguments, tool=tool))
    assert error["param"] == param and words in error["message"]


def test_each_key_has_its_own_share() -> None:
    with served(router_api_keys=KEYS, key_requests_per_minute=2) as server:
        assert httpx.post(f"{server.url}/mcp", json=message(), headers=HEADERS).status_code == 401
        for _ in range(2):
            assert not call(server, QUERY, key="sk-ada-12345").is_error
        error = refusal(call(server, QUERY, key="sk-ada-12345"))
        assert error["code"] == "rate_limit_exceeded" and 1 <= error["retry_after"] <= 30
        assert not call(server, QUERY, key="sk-bob-12345").is_error
        assert {request.owner for request in server.model.seen} == {"ada", "bob"}


def test_a_full_queue_is_told() -> None:
    with served(echo_model(slots=1), slots=1, queue_limit=0) as server:
        server.model.seconds_per_token = 0.05
        busy = server.run(asyncio.to_thread(call, server, QUERY))
        until(lambda: bool(server.model.active))
        assert refusal(call(server, QUERY))["code"] == "overloaded"
        assert not busy.result(60).is_error


def test_a_client_that_leaves_frees_its_slot() -> None:
    with served() as server:
        server.model.seconds_per_token = 0.2

        asked = httpx.Request("POST", f"{server.url}/mcp", json=message(name="plan", arguments=QUERY), headers=HEADERS)
        head = "".join(f"{name}: {value}\r\n" for name, value in asked.headers.items())
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"POST /mcp HTTP/1.1\r\n{head}\r\n".encode() + asked.read())
            until(lambda: bool(server.model.seen))
        until(lambda: server.idle, 30)


def test_a_body_has_the_bounds_of_every_body(server: Served) -> None:
    def sent(content: bytes, kind: str = "application/json") -> httpx.Response:
        return httpx.post(f"{server.url}/mcp", content=content, headers={**HEADERS, "Content-Type": kind})

    large = sent(b"{" + b" " * 2_000_000)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "payload_too_large")
    assert sent(b"{}", "text/plain").status_code == 415
    assert sent(b"{").status_code == sent(b"[" * 500_000).status_code == 400


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_there_is_no_stream_and_no_session_to_hold_open(server: Served, method: str) -> None:
    assert httpx.request(method, f"{server.url}/mcp", headers=HEADERS).status_code == 405


def test_a_subscription_ends_at_once(server: Served) -> None:
    headers = {**HEADERS, "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "subscriptions/listen"}
    answer = httpx.post(f"{server.url}/mcp", json=message("subscriptions/listen"), headers=headers, timeout=60)
    assert "error" in answer.json()


def test_a_fault_of_ours_is_told_without_its_words(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ValueError("what nobody shall read")

    monkeypatch.setattr(server.service, "answer", fail)
    assert refusal(call(server, QUERY))["message"] == "internal error"


def test_without_the_sdk_there_is_no_such_path(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mcp" else find(name))
    with app() as running:
        assert running.client.post("/mcp", json=message()).status_code == 404


def test_the_sdk_is_imported_when_it_is_asked_for() -> None:
    code = "import sys, router_backend.server.app; sys.exit('mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
