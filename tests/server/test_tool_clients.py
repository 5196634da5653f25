"""LangChain's and OpenAI's clients with tools and plan classes of their own, on the real embedded checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import jsonschema_rs
import openai
import pytest
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

from router_backend.engines.llamacpp import LlamaCppModel
from router_backend.plan.rules import findings_of
from router_backend.plan.schema import KEYS
from tests.fakes.handoffs import HANDOFFS, NAMES
from tests.fakes.running import Kept, served

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
TOOLS = ("/general-search", "/math", "/code")
USER = "Prove that the sum of two odd numbers is even, then check it in Python."


class OwnMetrics(BaseModel):
    primary: list[str]


class Own(BaseModel):
    """A client's plan: the keys in its own order, plain types, fewer metrics, few tags."""

    difficulty: str
    tags: Annotated[list[str], Field(max_length=2)]
    route_plan: list[str]
    route_rationale: str
    expected_artifacts: list[str]
    thinking_outline: list[str]
    handoff_plan: str
    todo_list: list[str]
    acceptance_criteria: list[str]
    metrics: OwnMetrics


@pytest.fixture(scope="module")
def url(embedded: LlamaCppModel) -> Iterator[str]:
    with served(Kept(embedded), request_timeout=280) as server:  # type: ignore[arg-type]
        yield f"{server.url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0, timeout=280) as made:
        yield made


def test_orchestrators_hand_off_is_whole_at_700_tokens(url: str) -> None:
    """Three tools of sixteen arguments, nearly a plan each, and an explanation of them as the system's message."""
    model = ChatOpenAI(
        base_url=url,
        api_key=SecretStr("x"),
        model="router",
        temperature=0,
        max_tokens=700,  # type: ignore[call-arg]
        max_retries=0,
        timeout=280,
    ).bind_tools(HANDOFFS, parallel_tool_calls=True)
    answer = model.invoke([("system", "Choose one of three agents and hand the task over."), ("user", USER)])
    assert isinstance(answer, AIMessage) and not answer.invalid_tool_calls
    [call] = answer.tool_calls
    assert call["name"] in NAMES
    jsonschema_rs.validate(HANDOFFS[0]["function"]["parameters"], call["args"])
    assert not findings_of(call["args"], KEYS, [f"/{name}" for name in NAMES])
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] <= 700


def test_own_plan_class_is_filled_at_600_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="router", messages=[{"role": "user", "content": USER}], response_format=Own, max_tokens=600, seed=1
    )
    own = answer.choices[0].message.parsed
    assert isinstance(own, Own) and own.route_plan and len(own.tags) <= 2
    assert not findings_of(own.model_dump(), KEYS, TOOLS)
