"""The engine for servers upstream against a real one with the embedded checkpoint: llama.cpp's own by default.

`UPSTREAM_URL` names another that serves it with the key of `tests.fakes.upstream`: `make vllm-test` does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.testclient import TestClient

from router_backend.types import GenerateRequest, SamplingParams
from tests.fakes.llama_server import llama_server
from tests.fakes.running import until
from tests.fakes.upstream import KEY, model_of, plan, serving, valid

pytestmark = pytest.mark.real
PLANS = int(os.environ.get("PLANS", "2"))
URL = os.environ.get("UPSTREAM_URL")
FIELDS = {"title", "steps", "hours", "kind"}
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "steps": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
        "hours": {"type": "integer", "minimum": 1, "maximum": 40},
        "kind": {"enum": ["proof", "script"]},
    },
    "required": sorted(FIELDS),
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if URL:
        yield URL
        return
    with llama_server(KEY) as url:
        yield url


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HUB_OFFLINE", "1")
        slots = 8 if URL else 2
        with serving(
            server, upstream_budget_line=True, request_timeout=500, upstream_timeout=300, slots=slots
        ) as found:
            yield found


def test_it_is_found_out_and_shown(client: TestClient) -> None:
    said = client.get("/health").json()
    assert (said["engine"], said["strategy"], said["context_length"]) == ("upstream", "served", 4096)
    found = said["upstream"]
    assert (found["constraint"], found["counts"], found["failures"]) == ("lark", "tokenize", {})
    assert found["sent_as"] == ("structured_outputs.grammar" if URL else "grammar") and not said["warnings"]


@pytest.mark.parametrize("budget", [230, 600])
def test_whole_plans(client: TestClient, budget: int) -> None:
    def ask(index: int) -> httpx.Response:
        answer: httpx.Response = plan(client, max_new_tokens=budget, seed=index)
        return answer

    with ThreadPoolExecutor(PLANS) as pool:  # all at once
        for body in pool.map(ask, range(PLANS)):
            assert not valid(body)["report"]["budget"]["drafted"]


def test_json_for_a_clients_schema_and_calls(client: TestClient) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "job", "schema": SCHEMA}}
    messages = [{"role": "user", "content": "Plan the proof that 2 + 2 = 4. <|im_end|>"}]
    body = {"model": "router", "messages": messages, "max_tokens": 200, "seed": 1}
    answer = client.post("/v1/chat/completions", json={**body, "response_format": form}).json()
    said = json.loads(answer["choices"][0]["message"]["content"])
    assert said.keys() == FIELDS and said["kind"] in ("proof", "script") and 1 <= said["hours"] <= 40
    tool = {"type": "function", "function": {"name": "book", "description": "Books it.", "parameters": SCHEMA}}
    answer = client.post(
        "/v1/chat/completions", json={**body, "tools": [tool], "tool_choice": "required", "max_tokens": 300}
    ).json()
    call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call["name"] == "book" and json.loads(call["arguments"]).keys() == FIELDS


def test_special_tokens_in_a_clients_text_are_text(client: TestClient) -> None:
    def tokens(prompt: str) -> int:
        body = {"prompt": prompt, "output": "text", "max_new_tokens": 1, "details": True}
        return int(client.post("/v1/generate", json=body).json()["details"]["usage"]["prompt_tokens"])

    assert tokens("hi<|im_end|>") > tokens("hi") + 3, "one token more would be the special one"


def test_who_leaves_ends_the_call(server: str) -> None:
    def busy() -> bool:
        headers = {"Authorization": f"Bearer {KEY}"}
        said = httpx.get(f"{server.removesuffix('/v1')}/metrics", headers=headers, timeout=60).text
        found = re.search(
            r"^(?:llamacpp:requests_processing|vllm:num_requests_running)\S* ([\d.]+)", said, re.MULTILINE
        )
        assert found, said
        return float(found[1]) > 0

    with model_of(server) as model:
        chunks = model.generate(GenerateRequest("t", "Count to ten thousand.", SamplingParams(3500)), lambda: False)
        next(chunks)
        until(busy)
        chunks.close()  # type: ignore[attr-defined] # it is a generator
        until(lambda: not busy())
