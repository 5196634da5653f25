"""Clients that people use, unmodified, against the real embedded checkpoint: OpenAI's, LangChain's, LiteLLM's, curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import uvicorn
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from router_backend.checkpoints.ladder import Attempt, Candidate, Loaded, Rung
from router_backend.engines.base import Engine
from router_backend.engines.llamacpp import LlamaCppModel
from router_backend.engines.threaded import ThreadedEngine
from router_backend.plan.rules import validate
from router_backend.plan.schema import Plan
from router_backend.plan.write import PlanWriter
from router_backend.server.app import create_app
from router_backend.server.serve import configuration
from router_backend.service.service import GenerationService
from router_backend.settings import load_settings
from tests.fakes.running import Kept, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
TOOLS = ("/general-search", "/math", "/code")
TEXT = openai.types.shared_params.ResponseFormatText(type="text")
USER = "Prove that the sum of two odd numbers is even, then check it in Python."


@pytest.fixture(scope="module")
def url(embedded: LlamaCppModel) -> Iterator[str]:
    """The embedded checkpoint on a port, with a key."""
    settings = load_settings(drain_timeout=1, router_api_keys="test:sk-test-1", request_timeout=280)
    engine = ThreadedEngine(Kept(embedded), PlanWriter(embedded, TOOLS))  # type: ignore[arg-type]

    def load(report: Callable[[Attempt], None]) -> Loaded[Engine]:
        return Loaded(engine, Rung(Candidate("embedded", "embedded"), "gguf"), ())

    service = GenerationService(settings, load)
    server = uvicorn.Server(configuration(create_app(service, ui=False)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
        thread.start()
        try:
            until(lambda: service.health().status == "ok", 60)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(15)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test-1", max_retries=0, timeout=280) as made:
        yield made


def test_parse_gives_a_plan_at_600_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="router", messages=[{"role": "user", "content": USER}], response_format=Plan, max_tokens=600, seed=1
    )
    plan = answer.choices[0].message.parsed
    assert isinstance(plan, Plan)
    assert not validate(json.loads(answer.choices[0].message.content or ""), TOOLS)[1]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and 205 <= answer.usage.completion_tokens <= 600
    assert answer.usage.prompt_tokens_details is not None


class Step(BaseModel):
    title: str
    minutes: int
    tool: str | None


class Recipe(BaseModel):
    name: str
    steps: list[Step]


def test_parse_gives_another_schema_in_a_small_budget(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="embedded",
        messages=[{"role": "system", "content": "You plan."}, {"role": "user", "content": "How is tea made?"}],
        response_format=Recipe,
        max_completion_tokens=120,
        temperature=0.7,
        seed=3,
    )
    recipe = answer.choices[0].message.parsed
    assert isinstance(recipe, Recipe) and recipe.name
    assert answer.usage is not None and answer.usage.completion_tokens <= 120
    assert answer.choices[0].finish_reason == "stop"


def test_stream_of_text_with_usage_and_logprobs(client: openai.OpenAI) -> None:
    pieces, probabilities, usage, reasons = [], [], None, []
    with client.chat.completions.create(
        model="router",
        messages=[
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Hello Ada."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
        response_format=TEXT,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                pieces.append(choice.delta.content or "")
                reasons.append(choice.finish_reason)
                if choice.logprobs and choice.logprobs.content:
                    probabilities += choice.logprobs.content
    assert "Paris" in "".join(pieces)
    assert usage is not None and usage.completion_tokens <= 12
    assert reasons[-1] in ("stop", "length") and set(reasons[:-1]) == {None}
    assert "".join(each.token for each in probabilities).startswith("".join(pieces)[:20])
    assert all(each.logprob <= 0 and len(each.top_logprobs) == 2 for each in probabilities)
    assert all(each.top_logprobs[0].logprob == each.logprob for each in probabilities), "greedy"


def test_text_is_cut_at_a_stop(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="router",
        prompt="Count: one, two, three",
        max_tokens=64,
        temperature=0,
        stop=" ",
        extra_body={"response_format": TEXT},
    )
    said = answer.choices[0]
    assert said.finish_reason == "stop" and said.text and " " not in said.text


def test_logprobs_of_a_completion_stand_side_by_side(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="router",
        prompt="Say hello.",
        max_tokens=3,
        temperature=0,
        logprobs=2,
        extra_body={"response_format": TEXT},
    )
    found, text = answer.choices[0].logprobs, answer.choices[0].text
    assert found is not None and found.tokens and found.text_offset and found.top_logprobs
    assert "".join(found.tokens) == text
    assert [text[place:].startswith(token) for token, place in zip(found.tokens, found.text_offset, strict=True)]
    assert all(token in top for token, top in zip(found.tokens, found.top_logprobs, strict=True))


def test_async_client_streams_json_and_has_errors_as_classes(url: str) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test-1", max_retries=0, timeout=280) as client:
            async with client.chat.completions.stream(
                model="router",
                messages=[{"role": "user", "content": "Name a colour."}],
                response_format={"type": "json_object"},
                max_tokens=40,
                seed=1,
            ) as stream:
                completion = await stream.get_final_completion()
            assert isinstance(json.loads(completion.choices[0].message.content or ""), dict)
            with pytest.raises(openai.BadRequestError, match="smallest budget") as caught:
                await client.chat.completions.create(
                    model="router", messages=[{"role": "user", "content": "x"}], max_tokens=50
                )
            assert caught.value.param == "max_tokens" and caught.value.request_id
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
            models = [model.id async for model in client.models.list()]
            assert models == ["embedded", "router", "router-text"]
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()

    asyncio.run(run())


def test_langchain(url: str) -> None:
    def model(**fields: object) -> ChatOpenAI:
        return ChatOpenAI(
            base_url=f"{url}/v1",
            api_key=SecretStr("sk-test-1"),
            model="router",
            max_retries=0,
            timeout=280,
            seed=2,
            **fields,  # type: ignore[arg-type]
        )

    messages = [("system", "You write recipes."), ("human", "How is tea made?")]
    recipe = model(max_tokens=80).with_structured_output(Recipe, method="json_schema").invoke(messages)
    assert isinstance(recipe, Recipe)
    text = model(max_tokens=40, temperature=0, stream_usage=True).bind(response_format=TEXT, stop=["."])
    pieces = list(text.stream("What is the capital of France?"))
    assert "".join(str(piece.content) for piece in pieces).strip()
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) in range(1, 41)


def test_curl(url: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    body = {
        "messages": [{"role": "user", "content": "Say hi."}],
        "max_tokens": 4,
        "stream": True,
        "response_format": TEXT,
    }
    said = subprocess.run(
        [
            *(curl, "-sN", f"{url}/v1/chat/completions"),
            *("-H", "Content-Type: application/json", "-H", "Authorization: Bearer sk-test-1", "-d", json.dumps(body)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    events = [line.removeprefix("data: ") for line in said.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[0])["choices"][0]["delta"]["role"] == "assistant"


def test_litellm(url: str) -> None:
    """It wants older packages than ours, so `make test-setup` gives it an environment of its own."""
    python = Path(sys.prefix, "litellm", "bin", "python")
    assert python.exists(), "run `make test-setup`"
    command = [str(python), str(Path(__file__).parents[1] / "fakes" / "litellm_client.py"), url, "sk-test-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert not validate(json.loads(said["plan"]), TOOLS)[1]
    assert said["plan_ended"] == "stop" and 205 <= said["plan_tokens"] <= 600
    assert set(json.loads(said["place"])) == {"city", "people"}
    assert said["streamed"] and said["streamed_tokens"][-1] <= 12
    assert said["async"] and said["completion"]
    assert said["too_small"].startswith("BadRequestError") and "the smallest budget" in said["too_small"]
    assert said["wrong_key"].startswith("AuthenticationError")
