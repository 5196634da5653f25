"""`tools` and `tool_choice`: arguments keep their schema and are never cut; OpenAI's clients read the calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import jsonschema_rs
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

from router_backend.errors import AnswerError
from router_backend.plan.part import with_plans
from router_backend.plan.prompt import router_prompt
from router_backend.plan.rules import findings_of
from router_backend.plan.schema import KEYS, Plan
from router_backend.schema.read import read
from router_backend.schema.shown import schema_shown
from router_backend.schema.write import SchemaWriter, check
from router_backend.tools.words import OPENS, as_text
from router_backend.tools.write import ToolWriter
from router_backend.types import Call, GenerateRequest, SamplingParams, Tool, Turn
from router_tools.evaluate.rows import BUNDLED, read_gold
from tests.fakes.handoffs import HANDOFFS, NAMES
from tests.fakes.random_model import RandomModel
from tests.fakes.running import App, app, echo_model, says_plans, served

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "one two three"}]
TOOLS = ("/general-search", "/math", "/code")
Json = dict[str, Any]


def tool(name: str, properties: Json | None = None, **rest: Any) -> Json:  # noqa: ANN401
    schema = {"type": "object", "properties": properties or {}, "required": list(properties or {}), **rest}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": schema}}


WEATHER = tool("get_weather", {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}})
ADD = tool("add", {"a": {"type": "number"}, "b": {"type": "number"}})
NOTHING = tool("nothing")
NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.fixture(scope="module")
def drawn() -> Iterator[App]:
    """The app over a model that draws whatever the grammar lets it."""
    with app(RandomModel(), request_timeout=60) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture
def echo() -> Iterator[App]:
    with app(echo_model(context_length=20_000)) as running:
        yield running


def chat(running: App, **body: Any) -> httpx.Response:  # noqa: ANN401
    answer: httpx.Response = running.client.post(CHAT, json={"messages": USER, "max_tokens": 3000, **body})
    return answer


def choice_of(response: httpx.Response) -> Json:
    assert response.status_code == 200, response.text
    found: Json = response.json()["choices"][0]
    return found


def called(choice: Json) -> list[tuple[str, Any]]:
    calls = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert len({call["id"] for call in calls}) == len(calls) and all(call["type"] == "function" for call in calls)
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


def refused(response: httpx.Response) -> tuple[int, str | None, str]:
    error = response.json()["error"]
    return response.status_code, error["param"], error["message"]


# Whatever is asked for, nothing is cut

SCALARS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "maxLength": 5},
        {"type": "integer", "minimum": 3},
        {"type": "boolean"},
        {"enum": ["x", "yy", 3, None]},
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        {"type": "string", "format": "date"},
        {"type": "object"},
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.builds(
        lambda item, least: {"type": "array", "items": item, "minItems": least}, inner, st.integers(0, 2)
    ),
    max_leaves=3,
)
DRAWN = st.lists(st.tuples(st.lists(VALUES, max_size=4), st.integers(0, 15)), min_size=1, max_size=4)


def made(drawn: list[tuple[list[Json], int]]) -> tuple[Tool, ...]:
    schemas = [
        {
            "type": "object",
            "properties": {f"p{at}": value for at, value in enumerate(values)},
            "required": [f"p{at}" for at in range(len(values)) if required >> at & 1],
            "additionalProperties": False,
        }
        for values, required in drawn
    ]
    return tuple(Tool(f"tool_{at}", "", json.dumps(schema)) for at, schema in enumerate(schemas))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=DRAWN,
    seed=st.integers(0, 2**32 - 1),
    extra=st.one_of(st.integers(0, 40), st.integers(0, 900)),
    favours=st.sampled_from([b"", b"[{", b"0123456789-.", b'aaaa "\\', b" \xf0\x9f\x98\x80"]),
    parallel=st.booleans(),
    routes=st.booleans(),
)
def test_row_14_no_call_is_ever_cut(
    drawn: list[tuple[list[Json], int]], seed: int, extra: int, favours: bytes, parallel: bool, routes: bool
) -> None:
    tools, model = made(drawn), RandomModel(favours)
    writer = ToolWriter(model, TOOLS, SchemaWriter(model))
    specialists = tuple(f"/{each.name}" for each in tools) if routes else ()
    request = GenerateRequest("t", "p", output="calls", tools=tools, parallel=parallel, specialists=specialists)
    limit = writer._smallest(request) + extra
    request = GenerateRequest(
        "t", "p", SamplingParams(limit, seed=seed), "calls", tools=tools, parallel=parallel, specialists=specialists
    )
    chunks = list(writer.write(request, lambda: False))
    calls: list[tuple[str, str]] = []
    for chunk in chunks:
        if chunk.call is not None:
            calls.append((chunk.call, ""))
        if chunk.text:
            calls[-1] = (calls[-1][0], calls[-1][1] + chunk.text)
    schemas = {each.name: each.parameters for each in tools}
    assert calls and (parallel or len(calls) == 1)
    for name, arguments in calls:
        jsonschema_rs.validate(json.loads(schemas[name]), json.loads(arguments))
    assert chunks[-1].finish_reason == "stop" and chunks[-1].usage.completion_tokens <= limit


def test_budget_below_the_smallest_call_names_it(drawn: App) -> None:
    status, param, message = refused(chat(drawn, tools=[ADD], tool_choice="required", max_tokens=5))
    assert (status, param) == (400, "max_tokens")
    least = int(message.rpartition(" ")[2])
    assert called(choice_of(chat(drawn, tools=[ADD], tool_choice="required", max_tokens=least)))[0][0] == "add"


# What is called


def test_required_calls_one_of_them_and_named_the_one_that_is_named(drawn: App) -> None:
    names = set()
    for seed in range(12):
        body = {"tools": [WEATHER, ADD], "seed": seed, "parallel_tool_calls": False}
        [(name, _)] = called(choice_of(chat(drawn, tool_choice="required", **body)))
        names.add(name)
        [(only, arguments)] = called(choice_of(chat(drawn, tool_choice=NAMED, **body)))
        assert only == "add" and list(arguments) == ["a", "b"]
    assert names == {"get_weather", "add"}


def test_allowed_tools_are_the_only_ones(drawn: App) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    for seed in range(6):
        calls = called(choice_of(chat(drawn, tools=[WEATHER, ADD], tool_choice=choice, seed=seed)))
        assert {name for name, _ in calls} == {"add"}


def test_several_calls_unless_they_are_not_wanted(drawn: App) -> None:
    counts = [
        len(called(choice_of(chat(drawn, tools=[WEATHER, ADD], tool_choice="required", seed=seed))))
        for seed in range(12)
    ]
    assert max(counts) > 1


def test_tool_without_parameters_takes_none(drawn: App) -> None:
    bare = {"type": "function", "function": {"name": "bare"}}
    for each in (NOTHING, bare):
        assert called(choice_of(chat(drawn, tools=[each], tool_choice="required")))[0][1] == {}


def test_functions_of_older_clients(drawn: App) -> None:
    functions = [each["function"] for each in (WEATHER, ADD)]
    choice = choice_of(chat(drawn, functions=functions, function_call={"name": "add"}))
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "add" and "tool_calls" not in choice["message"]
    assert set(json.loads(choice["message"]["function_call"]["arguments"])) == {"a", "b"}


def test_auto_may_speak_and_may_call(echo: App) -> None:
    spoken = choice_of(chat(echo, tools=[WEATHER], messages=[{"role": "system", "content": "Be brief."}, *USER]))
    assert spoken["message"]["content"] == "one two three" and spoken["finish_reason"] == "stop"
    assert "tool_calls" not in spoken["message"]
    assert '"unit"' in echo.model.seen[-1].history[0].content, "the model reads the tools"
    calling = echo_model(context_length=20_000)
    calling.script = lambda request: says_plans(request) if request.grammar else f"{OPENS} and more"
    with app(calling) as running:
        assert called(choice_of(chat(running, tools=[NOTHING]))) == [("nothing", {})]
        small = choice_of(chat(running, tools=[WEATHER], max_tokens=12))
        assert small["finish_reason"] == "length" and small["message"]["content"] == "", "no piece of a call"


def test_auto_beside_a_format_is_a_call_or_keeps_the_format(drawn: App) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    called_or_said = set()
    for seed in range(16):
        choice = choice_of(chat(drawn, tools=[ADD], response_format=wanted, seed=seed))
        if choice["finish_reason"] == "tool_calls":
            called_or_said.add(called(choice)[0][0])
        else:
            jsonschema_rs.validate(schema, json.loads(choice["message"]["content"]))
            called_or_said.add("said")
    assert called_or_said == {"add", "said"}


def test_none_is_text_by_the_rule_of_no_format(echo: App) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    choice = choice_of(chat(echo, tools=[WEATHER], tool_choice="none", messages=messages))
    assert choice["message"]["content"] == "one two three"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"functions": [ADD["function"]], "function_call": "any"}, "function_call"),
        ({"tools": [ADD, ADD]}, "tools"),
        ({"tools": [ADD], "functions": [ADD["function"]]}, "functions"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
        ({"tools": [tool("x", {"a": {"type": "string", "not": {}}})]}, "tools.0.function.parameters.properties.a"),
        ({"tools": [tool("bad name")]}, "tools.0.function.name"),
        ({"tools": [ADD], "logprobs": True}, "logprobs"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "y"}]}, "messages.0.tool_call_id"),
        (
            {"messages": [{"role": "user", "content": "x", "function_call": {"name": "f", "arguments": ""}}]},
            "messages.0.function_call",
        ),
    ],
)
def test_what_is_wrong_with_tools_is_told_by_name(echo: App, body: Json, param: str) -> None:
    assert refused(chat(echo, **body))[:2] == (400, param)
    assert not echo.model.seen


# Streams


def test_stream_has_openais_deltas(drawn: App) -> None:
    body = {"tools": [ADD, WEATHER], "tool_choice": "required", "seed": 3}
    whole = called(choice_of(chat(drawn, **body)))
    response = chat(drawn, stream=True, stream_options={"include_usage": True}, **body)
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    *pieces, usage = [json.loads(line) for line in lines[:-1]]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] > 0
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    first = deltas[0]
    assert first["role"] == "assistant" and first["content"] is None
    assert set(first["tool_calls"][0]) == {"index", "id", "type", "function"}
    assert first["tool_calls"][0]["function"]["arguments"] == ""
    assert all("role" not in delta and "content" not in delta for delta in deltas[1:])
    said: list[list[str]] = []
    for delta in deltas:
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(said)
                said.append([call["function"]["name"], ""])
            else:
                assert set(call) == {"index", "function"} and set(call["function"]) == {"arguments"}
            said[call["index"]][1] += call["function"]["arguments"]
    assert [(name, json.loads(arguments)) for name, arguments in said] == whole
    reasons = [piece["choices"][0]["finish_reason"] for piece in pieces]
    assert reasons[-1] == "tool_calls" and set(reasons[:-1]) == {None}


# The conversation


def test_calls_and_results_are_texts_where_the_template_knows_no_tools(echo: App) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages: list[Json] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "c2"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "tool", "tool_call_id": "c2", "content": "4"},
    ]
    chat(echo, messages=messages, response_format={"type": "text"})
    seen = echo.model.seen[-1].turns
    assert [turn.role for turn in seen] == ["user", "assistant", "user"], "roles alternate"
    assert seen[1].content.count('{"name": "add", "arguments": {"a": 1}}') == 2
    assert seen[2].content == "Result of add:\n3\n\nResult of add:\n4"
    chat(echo, messages=[*messages, {"role": "user", "content": "and?"}], response_format={"type": "text"})
    assert echo.model.seen[-1].prompt.endswith("Result of add:\n4\n\nand?")


def test_conversation_without_tools_is_as_it_was() -> None:
    request = GenerateRequest("t", "p", history=(Turn("user", "a"), Turn("user", "b")))
    assert as_text(request) is request
    told = as_text(GenerateRequest("t", "r", history=(Turn("assistant", "", (Call("f", "{}"),)),), result_of="f"))
    assert told.result_of is None and told.prompt == "Result of f:\nr"


# Hand-offs


def test_set_of_hand_offs_is_the_routers_tool_set(drawn: App) -> None:
    system = {"role": "system", "content": "You coordinate three agents."}
    seen = set()
    for seed in range(6):
        body = {"tools": HANDOFFS, "messages": [system, *USER], "seed": seed, "max_tokens": 4000}
        [(name, arguments)] = called(choice_of(chat(drawn, **body)))
        seen.add(name)
        jsonschema_rs.validate(HANDOFFS[0]["function"]["parameters"], arguments)
        assert not findings_of(arguments, KEYS, [f"/{each}" for each in NAMES])
        assert arguments["route_plan"][0].startswith(f"/{name}("), "the route begins with who is called"
    assert len(seen) > 1
    first = drawn.model.seen[-1]
    assert "You coordinate three agents." in first.prompt and f"/{NAMES[0]}:" in first.prompt


def test_one_tool_that_takes_a_plan_keeps_the_servers_tools(drawn: App) -> None:
    plan = {**HANDOFFS[0]["function"], "name": "Plan"}
    told = {"tools": [{"type": "function", "function": plan}], "tool_choice": "required", "parallel_tool_calls": False}
    [(_, arguments)] = called(choice_of(chat(drawn, **told, max_tokens=4000)))
    assert not findings_of(arguments, KEYS, TOOLS)


def test_hand_offs_without_arguments(drawn: App) -> None:
    tools = [tool(f"transfer_to_{name}_agent") for name in ("math", "code")]
    [(name, arguments)] = called(choice_of(chat(drawn, tools=tools)))
    assert name in ("transfer_to_math_agent", "transfer_to_code_agent") and arguments == {}


# Where no format is asked for


@pytest.mark.parametrize(
    ("body", "plan"),
    [
        ({}, True),
        ({"messages": [{"role": "system", "content": " "}, *USER]}, True),
        ({"messages": [{"role": "system", "content": router_prompt("q")}, *USER]}, True),
        ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": router_prompt("q")}]}, True),
        ({"messages": [{"role": "system", "content": "Answer with a haiku."}, *USER]}, False),
        ({"messages": [{"role": "developer", "content": "Answer with a haiku."}, *USER]}, False),
        ({"model": "router-text"}, False),
        ({"model": "router-text", "messages": [{"role": "user", "content": router_prompt("q")}]}, False),
        ({"model": "router"}, True),
    ],
)
def test_own_instructions_ask_for_text_and_a_routers_prompt_for_a_plan(echo: App, body: Json, plan: bool) -> None:
    content = choice_of(chat(echo, **body))["message"]["content"]
    assert content.startswith('{"route_plan"') is plan


class Person(BaseModel):
    name: str
    age: Annotated[int, Field(ge=0, le=150)]


SHOWN = json.dumps(Person.model_json_schema(), indent=2)
WORDS = (
    f"Always respond with a JSON object that's compatible with this schema:\n\n{SHOWN}\n\nNo fences.",
    f"Provide the parsed objects in json that match the following json_schema:\n\n{SHOWN}\n\nReturn an instance.",
)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("asked", [None, {"type": "json_object"}])
def test_schema_that_instructions_show_is_kept(drawn: App, words: str, asked: Json | None) -> None:
    """As pydantic-ai's prompted mode and instructor's JSON and MD_JSON ask: in the system's message alone."""
    messages = [{"role": "system", "content": words}, *USER]
    wanted = {"response_format": asked} if asked else {}
    for seed in range(4):
        message = choice_of(chat(drawn, messages=messages, seed=seed, **wanted))["message"]
        Person.model_validate_json(message["content"])


def test_object_that_shows_a_schema_in_a_field_is_kept(drawn: App) -> None:
    """As dspy's JSON adapter asks: the answer is an object whose fields are described where their values will be."""
    note = f"{{person}}  # note: the value must adhere to the JSON schema: {json.dumps(Person.model_json_schema())}"
    shape = json.dumps({"person": note, "reason": "{reason}"}, indent=2)
    words = f"Outputs will be a JSON object with the following fields.\n\n{shape}\nYour objective is to answer."
    for seed in range(4):
        message = choice_of(chat(drawn, messages=[{"role": "system", "content": words}, *USER], seed=seed))["message"]
        answer = json.loads(message["content"])
        assert answer.keys() == {"person", "reason"}
        Person.model_validate(answer["person"])


@pytest.mark.parametrize(
    "words",
    [
        "Answer in json. The schema is {none}.",
        'As JSON:\n{"person": "by the schema {not one}", "other": 1}',
        'The schema: {"properties": {"a": {"type": "string"}}}.',
        'In JSON, by the schema {"type": "object"}',
        'In JSON, by the schema {"properties": {"a": {"if": {}}}}',
        "json schema " + "{" * 5000,
    ],
)
def test_what_is_no_schema_in_words_is_text(echo: App, words: str) -> None:
    messages = [{"role": "system", "content": words}, *USER]
    assert choice_of(chat(echo, messages=messages))["message"]["content"] == "one two three"


def test_completions_know_the_text_model_too(echo: App) -> None:
    for model, plan in (("router", True), ("router-text", False)):
        answer = echo.client.post("/v1/completions", json={"prompt": "one two", "model": model}).json()
        assert answer["choices"][0]["text"].startswith('{"route_plan"') is plan


# Clients, unmodified, on a port


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(RandomModel(), request_timeout=60) as server:  # type: ignore[arg-type]
        yield f"{server.url}/v1"


def test_openais_client_with_tools_and_its_stream(url: str) -> None:
    asked: Any = {"model": "router", "messages": USER, "tools": [ADD], "tool_choice": "required", "max_tokens": 600}
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        completions: Any = client.chat.completions
        message = completions.create(**asked).choices[0].message
        assert message.tool_calls[0].function.name == "add"
        with completions.stream(**asked) as stream:
            final = stream.get_final_completion()
        call = final.choices[0].message.tool_calls[0]
        assert set(json.loads(call.function.arguments)) == {"a", "b"}


def test_langchains_bound_tools_and_results(url: str) -> None:
    model = ChatOpenAI(
        base_url=url, api_key=SecretStr("x"), model="router", temperature=1, max_retries=0, max_tokens=4000
    )  # type: ignore[call-arg]
    bound = model.bind_tools(HANDOFFS, parallel_tool_calls=True)
    conversation: list[BaseMessage] = [SystemMessage("Call one of the tools."), HumanMessage("Prove it.")]
    answer = bound.invoke(conversation)
    assert isinstance(answer, AIMessage) and not answer.invalid_tool_calls
    call = answer.tool_calls[0]
    assert call["name"] in NAMES
    jsonschema_rs.validate(HANDOFFS[0]["function"]["parameters"], call["args"])
    conversation += [answer, ToolMessage("done", tool_call_id=call["id"]), HumanMessage("And now?")]
    assert bound.invoke(conversation).tool_calls


# What clients send around tools and schemas


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")  # its own
def test_openais_client_sends_back_what_it_parsed(url: str) -> None:
    asked: Any = {"model": "router", "tools": [openai.pydantic_function_tool(Person)], "max_tokens": 600}
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        said: list[Any] = [*USER]
        first = client.chat.completions.parse(messages=said, response_format=Person, model="router", max_tokens=600)
        said += [first.choices[0].message, *USER]
        second = client.chat.completions.parse(messages=said, tool_choice="required", **asked).choices[0].message
        assert second.tool_calls and second.tool_calls[0].function.parsed_arguments
        said.append(second)
        said += [{"role": "tool", "tool_call_id": each.id, "content": "done"} for each in second.tool_calls]
        assert client.chat.completions.create(messages=said, **asked).choices


def test_schema_that_instructions_show_is_kept_beside_tools(drawn: App) -> None:
    messages = [{"role": "system", "content": WORDS[0]}, *USER]
    for wanted in ({}, {"response_format": {"type": "json_object"}}):
        said = [choice_of(chat(drawn, messages=messages, tools=[ADD], seed=at, **wanted)) for at in range(12)]
        texts = [each["message"]["content"] for each in said if each["finish_reason"] == "stop"]
        assert 0 < len(texts) < len(said)
        for text in texts:
            Person.model_validate_json(text)


INSTRUCTIONS = PydanticOutputParser(pydantic_object=Person).get_format_instructions()
OTHER_WORDS = (
    f"Answer in JSON by this schema: {json.dumps(tool('x', {'a': {'type': 'integer'}})['function']['parameters'])}"
)


@pytest.mark.parametrize(
    "messages",
    [
        [f"Answer the query.\n{INSTRUCTIONS}\nWho is it?\n"],
        [WORDS[1]],
        [OTHER_WORDS, INSTRUCTIONS],  # the last one that says how
        [INSTRUCTIONS, "That was not valid. Try again."],
    ],
)
@pytest.mark.parametrize("tools", [{}, {"tools": [ADD], "tool_choice": "none"}])
def test_schema_in_the_users_own_words_is_kept_where_json_is_asked_for(
    drawn: App, messages: list[str], tools: Json
) -> None:
    said = [{"role": "user", "content": each} for each in messages]
    asked = {"messages": said, "response_format": {"type": "json_object"}, **tools}
    Person.model_validate_json(choice_of(chat(drawn, **asked))["message"]["content"])
    other = [{"role": "system", "content": OTHER_WORDS}, *said]
    assert json.loads(choice_of(chat(drawn, **asked | {"messages": other}))["message"]["content"]).keys() == {"a"}


def test_schema_in_the_users_own_words_is_no_wish_where_no_json_is_asked_for(drawn: App) -> None:
    said = [{"role": "user", "content": INSTRUCTIONS}]
    plan = json.loads(choice_of(chat(drawn, messages=said))["message"]["content"])
    assert "route_plan" in plan


def test_the_example_in_langchains_instructions_is_not_the_schema() -> None:
    for parser in (PydanticOutputParser(pydantic_object=Person), JsonOutputParser(pydantic_object=Person)):
        shown = json.loads(schema_shown(parser.get_format_instructions()) or "{}")
        assert shown["required"] == ["name", "age"]


class Home(BaseModel):
    owner: Person
    guests: list[Person]


def test_definitions_of_a_schema_in_a_field_are_found(drawn: App) -> None:
    note = f"{{home}}  # note: the value must adhere to the JSON schema: {json.dumps(Home.model_json_schema())}"
    words = "Outputs will be a JSON object.\n\n" + json.dumps({"home": note, "reason": "{reason}"}, indent=2)
    message = choice_of(chat(drawn, messages=[{"role": "system", "content": words}, *USER]))["message"]
    Home.model_validate(json.loads(message["content"])["home"])


def test_definitions_of_one_name_that_differ_are_no_schema() -> None:
    fields = {}
    for name, kind in (("one", "string"), ("other", "integer")):
        schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"type": kind}}}
        fields[name] = f"adhere to the JSON schema: {json.dumps(schema)}"
    assert schema_shown(json.dumps({"one": fields["one"]}))
    assert schema_shown(json.dumps(fields)) is None


class Reply(BaseModel):
    reply: str
    plan: Plan | None


class Plans(BaseModel):
    plans: Annotated[list[Plan], Field(min_length=1, max_length=1)]


@pytest.mark.parametrize("kind", [Reply, Plans])
def test_plan_that_may_be_none_or_stands_in_a_list_keeps_the_rules(drawn: App, kind: type[BaseModel]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": kind.model_json_schema()}}
    found: list[Json] = []
    for seed in range(6):
        choice = choice_of(chat(drawn, response_format=wanted, seed=seed, max_tokens=4000))
        answer = json.loads(choice["message"]["content"])
        kind.model_validate(answer)
        found += [each for each in answer.get("plans") or [answer.get("plan")] if each]
    assert found and not [each for plan in found for each in findings_of(plan, KEYS, TOOLS)]


@pytest.mark.parametrize("kind", [Reply, Plans])
def test_plan_in_a_list_or_a_union_is_checked_once_more(kind: type[BaseModel]) -> None:
    schema = json.dumps(kind.model_json_schema())
    plan = {**read_gold(BUNDLED)[0].plan, "handoff_plan": "to nobody"}
    answer = {"reply": "x", "plan": plan} if kind is Reply else {"plans": [plan]}
    with pytest.raises(AnswerError, match="breaks a rule"):
        check(json.dumps(answer), schema, with_plans(read(schema), TOOLS))


ONE, OTHER = (tool("x", {name: {"type": "integer"}})["function"]["parameters"] for name in "ab")


@pytest.mark.parametrize(
    "schema", [{"anyOf": [ONE, OTHER]}, {"allOf": [ONE]}, {"$ref": "#/$defs/One", "$defs": {"One": ONE}}]
)
def test_arguments_may_be_said_by_a_union_or_a_reference(drawn: App, schema: Json) -> None:
    each = {"type": "function", "function": {"name": "x", "parameters": schema}}
    for seed in range(3):
        for _, arguments in called(choice_of(chat(drawn, tools=[each], tool_choice="required", seed=seed))):
            jsonschema_rs.validate(schema, arguments)
            assert arguments


def test_marks_and_ids_beside_a_text_change_nothing(echo: App) -> None:
    mark = {"type": "ephemeral"}
    part = {"type": "text", "text": "a", "id": "lc_1", "cache_control": mark}
    said = {**part, "text": "b", "index": 0, "annotations": [], "prompt_cache_breakpoint": {"mode": "explicit"}}
    messages = [
        {"role": "system", "content": "s", "cache_control": mark},
        {"role": "user", "content": [part]},
        {"role": "assistant", "content": [said, {"type": "refusal", "refusal": "no"}]},
        *USER,
    ]
    tools = [{**ADD, "cache_control": mark}]
    choice_of(chat(echo, messages=messages, response_format={"type": "text"}, tools=tools, tool_choice="none"))
    assert [turn.content for turn in echo.model.seen[-1].turns] == ["s", "a", "b\nno", "one two three"]
