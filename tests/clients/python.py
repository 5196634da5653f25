"""What programs do that use Python clients. `make clients` runs it, with Pythons that have these clients.

python -m tests.clients.python URL KEY CASE …     # prints a JSON object for each case

A case is a function of this file. It imports its client, so that no environment needs them all.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from router_backend.plan.schema import Plan
from tests.clients.ticket import Ticket

SYSTEM = "You file tickets for a help desk."
USER = "Ada (ada@example.com): the printer on floor 3 jams on every page. We need it by 2026-12-01."
MESSAGES: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
TASK = [{"role": "user", "content": "Prove that the sum of two odd numbers is even, then check it in Python."}]
BUDGET = 200
# Seconds for one call, however busy the machine is.
PATIENCE = 280


@dataclass(frozen=True)
class Server:
    """The base URL ends with `/v1`."""

    base: str
    key: str


# Asks once and returns what the client made of the answer. What comes before it, an import for one, is not timed.
Ask = Callable[[], Any]


def _openai(server: Server) -> Any:  # noqa: ANN401 - its class is in the other environment
    import openai

    return openai.OpenAI(base_url=server.base, api_key=server.key, max_retries=0, timeout=PATIENCE)


def _parsed(server: Server, wanted: type[BaseModel], messages: list[Any], budget: int) -> Ask:
    create = _openai(server).chat.completions.parse
    ask = {"model": "router", "messages": messages, "response_format": wanted, "max_tokens": budget}
    return lambda: create(**ask).choices[0].message.parsed


def openai_parse(server: Server) -> Ask:
    return _parsed(server, Ticket, MESSAGES, BUDGET)


def openai_plan(server: Server) -> Ask:
    return _parsed(server, Plan, TASK, 600)


def openai_tools(server: Server) -> Ask:
    import openai

    create = _openai(server).chat.completions.parse
    ask = {"model": "router", "messages": MESSAGES, "max_tokens": BUDGET, "tool_choice": "required"}
    tools = [openai.pydantic_function_tool(Ticket)]
    return lambda: create(**ask, tools=tools).choices[0].message.tool_calls[0].function.parsed_arguments


def openai_tools_stream(server: Server) -> Ask:
    import openai

    stream = _openai(server).chat.completions.stream
    ask = {"model": "router", "messages": MESSAGES, "max_tokens": BUDGET, "tool_choice": "required"}
    tools = [openai.pydantic_function_tool(Ticket)]

    def run() -> Any:  # noqa: ANN401
        with stream(**ask, tools=tools) as events:
            done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
        return done[0].parsed_arguments

    return run


def _langchain(server: Server, **how: Any) -> Ask:  # noqa: ANN401
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        base_url=server.base,
        api_key=server.key,  # type: ignore[arg-type]
        model="router",
        max_tokens=BUDGET,  # type: ignore[call-arg]
        max_retries=0,
        timeout=PATIENCE,
    )
    chain = model.with_structured_output(Ticket, **how)
    return lambda: chain.invoke([("system", SYSTEM), ("human", USER)])


def langchain(server: Server) -> Ask:
    return _langchain(server)


def langchain_tools(server: Server) -> Ask:
    return _langchain(server, method="function_calling")


def _pydantic_ai(server: Server, output: Any) -> Ask:  # noqa: ANN401
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel("router", provider=OpenAIProvider(base_url=server.base, api_key=server.key))
    agent = Agent(
        model,
        output_type=output,
        instructions=SYSTEM,
        model_settings={"max_tokens": BUDGET, "timeout": PATIENCE},
        retries=0,
    )
    return lambda: agent.run_sync(USER).output


def pydantic_ai_native(server: Server) -> Ask:
    from pydantic_ai import NativeOutput

    return _pydantic_ai(server, NativeOutput(Ticket))


def pydantic_ai_prompted(server: Server) -> Ask:
    from pydantic_ai import PromptedOutput

    return _pydantic_ai(server, PromptedOutput(Ticket))


def pydantic_ai_tool(server: Server) -> Ask:
    return _pydantic_ai(server, Ticket)


def _agents(server: Server) -> tuple[Any, Any]:
    """What an agent is made with, and one that files tickets."""
    import agents
    import openai

    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=server.base, api_key=server.key, max_retries=0, timeout=PATIENCE)
    model = agents.OpenAIChatCompletionsModel("router", client)
    desk = agents.Agent(
        name="Help desk",
        instructions=SYSTEM,
        model=model,
        model_settings=agents.ModelSettings(max_tokens=BUDGET),
        output_type=Ticket,
    )
    return model, desk


def agents_output(server: Server) -> Ask:
    import agents

    _, desk = _agents(server)
    return lambda: agents.Runner.run_sync(desk, USER).final_output


def agents_handoff(server: Server) -> Ask:
    import agents

    model, desk = _agents(server)
    triage: Any = agents.Agent(
        name="Triage",
        instructions="Hand each request to the help desk.",
        model=model,
        model_settings=agents.ModelSettings(max_tokens=BUDGET, tool_choice="required"),
        handoffs=[desk],
    )

    def run() -> Any:  # noqa: ANN401
        result = agents.Runner.run_sync(triage, USER)
        assert result.last_agent is desk, f"{result.last_agent.name} answered"
        return result.final_output

    return run


def dspy_predict(server: Server) -> Ask:
    import dspy

    fields = {"request": (str, dspy.InputField()), "ticket": (Ticket, dspy.OutputField())}
    lm = dspy.LM(
        "openai/router",
        api_base=server.base,
        api_key=server.key,
        max_tokens=BUDGET,
        cache=False,
        num_retries=0,
    )
    predict = dspy.Predict(dspy.Signature(fields, SYSTEM))

    def run() -> Any:  # noqa: ANN401
        with dspy.context(lm=lm):
            return predict(request=USER).ticket

    return run


def _instructor(server: Server, mode: str) -> Ask:
    import instructor

    client = instructor.from_openai(_openai(server), mode=instructor.Mode[mode])
    ask = {"model": "router", "messages": MESSAGES, "max_tokens": BUDGET, "max_retries": 0}
    return lambda: client.create(response_model=Ticket, **ask)


def instructor_json_schema(server: Server) -> Ask:
    return _instructor(server, "JSON_SCHEMA")


def instructor_json(server: Server) -> Ask:
    return _instructor(server, "JSON")


def instructor_md_json(server: Server) -> Ask:
    return _instructor(server, "MD_JSON")


def instructor_tools(server: Server) -> Ask:
    return _instructor(server, "TOOLS")


def _llama_index(server: Server, **what_it_can: bool) -> Ask:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    model = OpenAILike(
        model="router",
        api_base=server.base,
        api_key=server.key,
        max_tokens=BUDGET,
        max_retries=0,
        timeout=PATIENCE,
        is_chat_model=True,
        **what_it_can,
    ).as_structured_llm(Ticket)
    messages = [ChatMessage(role=each["role"], content=each["content"]) for each in MESSAGES]
    return lambda: model.chat(messages).raw


def llama_index_schema(server: Server) -> Ask:
    return _llama_index(server, should_use_structured_outputs=True)


def llama_index_tools(server: Server) -> Ask:
    return _llama_index(server, is_function_calling_model=True)


def main(base: str, key: str, *names: str) -> None:
    for name in names:
        start = time.monotonic()
        said: dict[str, Any] = {"case": name}
        try:
            ask = globals()[name](Server(base, key))
            start = time.monotonic()
            got = ask()
            said["object"] = got.model_dump(mode="json", exclude_unset=True) if isinstance(got, BaseModel) else got
        except Exception as error:
            said["error"] = f"{type(error).__name__}: {error}"
        said["seconds"] = time.monotonic() - start
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
