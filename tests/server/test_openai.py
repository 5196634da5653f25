"""`/v1/chat/completions`, `/v1/completions`, `/v1/models` over the echo engine."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from router_backend.checkpoints.ladder import Candidate, Loaded, Rung
from router_backend.engines.base import Engine
from router_backend.engines.echo import EchoModel
from router_backend.plan.rules import validate
from router_backend.plan.schema import Plan
from router_backend.server.openai.bodies import ChatBody, CompletionBody
from router_backend.types import ModelInfo, Turn
from tests.fakes.random_model import RandomModel
from tests.fakes.running import App, app, echo_model, echo_service, says_plans, served, until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "one two three"}]
TEXT = {"type": "text"}


@pytest.fixture(scope="module")
def shared() -> Iterator[App]:
    with app() as running:
        yield running


@pytest.fixture
def echo(shared: App) -> Iterator[App]:
    """The module's app. At the test's end every slot is free."""
    shared.model.script = says_plans
    shared.model.fail_after = None
    shared.model.seen.clear()
    yield shared
    until(lambda: shared.engine.free_slots == shared.model.info.slots)


def chat(echo: App, **body: Any) -> Any:  # noqa: ANN401
    return echo.client.post(CHAT, json={"messages": USER, **body})


def answered(response: httpx.Response) -> Any:  # noqa: ANN401
    assert response.status_code == 200, response.text
    return response.json()


def refused(response: httpx.Response, status: int, code: str, param: str | None) -> str:
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
    return str(error["message"])


def events(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_plan_is_the_default_and_the_prompt_is_that_of_generate(echo: App) -> None:
    answer = answered(chat(echo, seed=4, temperature=0))
    text = answer["choices"][0]["message"]["content"]
    assert not validate(json.loads(text), ("/general-search", "/math", "/code"))[1]
    assert echo.generate("one two three", seed=4, temperature=0).json()["text"] == text
    mine, native = echo.model.seen[0], echo.model.seen[len(echo.model.seen) // 2]
    assert (mine.prompt, mine.history, mine.sampling) == (native.prompt, (), native.sampling)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["model"] == "echo" and answer["id"].startswith("chatcmpl-") and answer["object"] == "chat.completion"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


def test_text_has_a_true_finish_reason(echo: App) -> None:
    whole = answered(chat(echo, response_format=TEXT))
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "one two three", "refusal": None}
    assert whole["choices"][0]["finish_reason"] == "stop"
    cut = answered(chat(echo, response_format=TEXT, max_tokens=2))
    assert cut["choices"][0]["message"]["content"] == "one two"
    assert cut["choices"][0]["finish_reason"] == "length"
    stopped = answered(chat(echo, response_format=TEXT, stop=" three"))
    assert stopped["choices"][0]["message"]["content"] == "one two"
    assert stopped["choices"][0]["finish_reason"] == "stop"


def test_roles_reach_the_engine(echo: App) -> None:
    messages = [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "d"},
    ]
    answer = answered(chat(echo, messages=messages, response_format=TEXT))
    assert echo.model.seen[0].turns == (
        Turn("system", "rules"),
        Turn("user", "a\nb"),
        Turn("assistant", "c"),
        Turn("user", "d"),
    )
    assert answer["usage"]["prompt_tokens"] == 5


def test_what_clients_send_back_of_a_conversation(echo: App) -> None:
    """A turn without content, as after a refusal or a call of a tool, and names of who speaks."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s", "name": "rules"},
        {"role": "user", "content": "a", "name": "bob"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "b"},
        {"role": "assistant"},
        {"role": "user", "content": " "},
        {"role": "assistant", "content": None, "refusal": "no", "name": "router"},
        {"role": "user", "content": "c"},
    ]
    answered(chat(echo, messages=messages, response_format=TEXT))
    said = [(turn.role, turn.content) for turn in echo.model.seen[0].turns]
    assert said == [
        *(("system", "s"), ("user", "a"), ("assistant", ""), ("user", "b")),
        *(("assistant", ""), ("user", " "), ("assistant", "no"), ("user", "c")),
    ]
    for role in ("user", "system", "developer"):
        for content in ({"content": None}, {}):
            last = [{"role": role, **content}, *USER]
            error = refused(chat(echo, messages=last), 400, "invalid_value", "messages.0.content")
            assert "must be a text" in error


BLANKS = [" ", "\n\t", "\u00a0\u3000", "\u200b\ufeff", "\u2028\r\n", "\x1f \u202e", " " * 9999]
BLANKS += ["\u3164\u115f", "\u2800 \u2800", "\ufe0f\u034f"]


@pytest.mark.parametrize("blank", BLANKS)
def test_nothing_is_asked_by_blanks_alone(echo: App, blank: str) -> None:
    """A plan about nothing would be whole, valid and useless."""
    for path, body, param in (
        ("/v1/generate", {"prompt": blank}, "prompt"),
        ("/v1/plan", {"query": blank}, "query"),
        (COMPLETIONS, {"prompt": blank}, "prompt"),
        (COMPLETIONS, {"prompt": ["x", blank]}, "prompt.1"),
        (CHAT, {"messages": [*USER, {"role": "user", "content": blank}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": blank}] * 2}]}, "messages"),
    ):
        assert "blank" in refused(echo.client.post(path, json=body), 400, "invalid_value", param)
    assert echo.model.seen == []


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": 1}}, "response_format.json_schema.schema"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": None}, "response_format.json_schema"),
        ({"type": "json_object", "strict": True}, "response_format.strict"),
        ({"type": "xml"}, "response_format"),
        ({"type": None}, "response_format"),
        ({"type": ["text"]}, "response_format"),
        ({}, "response_format"),
        ("text", "response_format"),
        ([], "response_format"),
    ],
)
def test_what_is_wrong_is_named_as_the_client_wrote_it(echo: App, wanted: object, param: str) -> None:
    for path, asked in ((CHAT, {"messages": USER}), (COMPLETIONS, {"prompt": "x"})):
        response = echo.client.post(path, json={"response_format": wanted, **asked})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert "(" not in error["message"].partition(":")[0]


@pytest.mark.parametrize(
    "wish",
    [{"top_p": 0}, {"top_p": 0.0}, {"top_p": 1e-40}, *({"temperature": each} for each in (0, 1e-40, 1e-38, 5e-324))],
)
def test_what_leaves_the_likeliest_token_alone_is_greedy(echo: App, wish: dict[str, float]) -> None:
    for path, body in (
        ("/v1/generate", {"prompt": "x", "output": "text"}),
        (CHAT, {"messages": USER, "response_format": TEXT}),
        (COMPLETIONS, {"prompt": "x", "response_format": TEXT}),
    ):
        assert echo.client.post(path, json=body | wish).status_code == 200
        assert echo.model.seen[-1].sampling.temperature == 0
        assert echo.model.seen[-1].sampling.top_p >= 1e-6


def test_operators_defaults_and_clients_wishes(echo: App) -> None:
    chat(echo, response_format=TEXT)
    sampling = echo.model.seen[-1].sampling
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (600, 0.2, 0.9)
    chat(echo, response_format=TEXT, max_completion_tokens=7, temperature=0, top_p=1, seed=-1, stop=["x", "y"])
    sampling = echo.model.seen[-1].sampling
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (7, 0.0, 1.0)
    assert (sampling.seed, sampling.stop) == (2**32 - 1, ("x", "y"))


NEUTRAL: dict[str, list[Any]] = {
    "user": [None, "u"],
    "metadata": [None, {}, {"a": "b"}],
    "store": [None, False, True],
    "service_tier": [None, "auto", "default", "flex", "priority", "fast"],
    "safety_identifier": [None, "s"],
    "prompt_cache_key": [None, "k"],
    "prompt_cache_options": [None, {"mode": "explicit", "ttl": "30m"}],
    "prompt_cache_retention": [None, "in_memory", "24h"],
    "parallel_tool_calls": [None, False, True],
    "frequency_penalty": [None, 0],
    "presence_penalty": [None, 0.0],
    "logit_bias": [None, {}],
    "n": [None, 1],
    "stop": [None, []],
    "seed": [None],
    "response_format": [TEXT],
}
OF_CHATS: dict[str, list[Any]] = {
    "tools": [None, []],
    "functions": [None, []],
    "tool_choice": [None, "none", "auto"],
    "function_call": [None, "none", "auto"],
    "modalities": [None, ["text"]],
    "reasoning_effort": [None, "none"],
    "verbosity": [None, "medium"],
    "logprobs": [None, False],
    "top_logprobs": [None, 0],
    **{key: [None] for key in ("audio", "prediction", "moderation", "web_search_options")},
}
OF_COMPLETIONS: dict[str, list[Any]] = {"suffix": [None, ""], "best_of": [None, 1], "echo": [None, False]}


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        *((path, name, value) for path in (CHAT, COMPLETIONS) for name in NEUTRAL for value in NEUTRAL[name]),
        *((CHAT, name, value) for name in OF_CHATS for value in OF_CHATS[name]),
        *((COMPLETIONS, name, value) for name in OF_COMPLETIONS for value in OF_COMPLETIONS[name]),
    ],
)
def test_fields_that_change_nothing_are_taken(echo: App, path: str, name: str, value: Any) -> None:  # noqa: ANN401
    body = {"response_format": TEXT, name: value} | ({"messages": USER} if path == CHAT else {"prompt": "one"})
    choice = answered(echo.client.post(path, json=body))["choices"][0]
    assert (choice["message"]["content"] if path == CHAT else choice["text"]).startswith("one")


def test_fields_that_are_taken_stand_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "openai.md").read_text("utf-8")
    for name in {*ChatBody.model_fields, *CompletionBody.model_fields}:
        assert f"`{name}" in page, name


def test_streams_may_be_padded_or_not(echo: App) -> None:
    for wish in (True, False, None):
        options = {"include_obfuscation": wish, "include_usage": True}
        assert events(chat(echo, stream=True, stream_options=options, response_format=TEXT))[-1]["usage"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"frequency_penalty": False}, "frequency_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"verbosity": "low"}, "verbosity"),
        ({"messages": [{"role": "assistant", "content": None, "audio": {"id": "a"}}, *USER]}, "messages.0.audio"),
    ],
)
def test_fields_that_would_change_the_answer_are_refused_by_name(echo: App, body: Any, param: str) -> None:  # noqa: ANN401
    assert "not supported here" in refused(chat(echo, **body), 400, "invalid_value", param)
    assert echo.model.seen == []


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "the last message must be the user's"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "a tool's message needs it"),
        ({"messages": [{"role": "pirate", "content": "x"}]}, "messages.0.role", "'tool' or 'function'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
            "messages.0.content.0.type",
            "'text'",
        ),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "differs"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs=true"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only for stream=true"),
        ({"response_format": {"type": "grammar"}}, "response_format", "whose type is"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"(one)": 1}, "(one)", "unknown field: (one)"),
    ],
)
def test_what_is_wrong_is_a_400_in_words_and_a_place(echo: App, body: Any, param: str, words: str) -> None:  # noqa: ANN401
    response = chat(echo, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param) and words in error["message"]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"type": "strin"}, "properties.x"),
        ({"type": "array", "items": {"not": {}}}, "properties.x.items"),
        ({"anyOf": [{"type": "null"}, {"properties": {"y": {"enum": []}}}]}, "properties.x.anyOf.1.properties.y"),
        ({"additionalProperties": {"type": "integer", "minimum": "1"}}, "properties.x.additionalProperties"),
        ({"$ref": "#/$defs/a~1b"}, "$defs.a/b.properties.z"),
        ({"$ref": "#/$defs/Nothing"}, "properties.x"),
    ],
)
def test_what_is_wrong_in_a_schema_has_its_path(echo: App, value: object, place: str) -> None:
    wrong = {"a/b": {"properties": {"z": {"type": "array", "minItems": -1}}}}
    schema = {"type": "object", "properties": {"x": value}, "$defs": wrong}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    refused(chat(echo, response_format=asked), 400, "invalid_schema", f"response_format.json_schema.schema.{place}")


def test_stream_is_role_pieces_reason_usage_done(echo: App) -> None:
    found = events(chat(echo, response_format=TEXT, stream=True, stream_options={"include_usage": True}))
    deltas = [each["choices"][0]["delta"] for each in found[:-1]]
    assert deltas[0] == {"role": "assistant", "content": "one"}
    assert "".join(delta.get("content", "") for delta in deltas) == "one two three"
    assert [each["choices"][0]["finish_reason"] for each in found[:-1]] == [None, None, None, "stop"]
    assert found[-1]["choices"] == [] and found[-1]["usage"]["completion_tokens"] == 3
    assert {each["usage"] for each in map(dict, found[:-1])} == {None}
    assert len({each["id"] for each in found}) == 1
    assert all("usage" not in each for each in events(chat(echo, response_format=TEXT, stream=True)))


def test_choices_have_seeds_of_their_own_and_stream_side_by_side(echo: App) -> None:
    answer = answered(chat(echo, response_format=TEXT, n=3, seed=9))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert sorted(seen.sampling.seed for seen in echo.model.seen) == [9, 10, 11]
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 9,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    texts = ["", ""]
    for each in events(chat(echo, response_format=TEXT, n=2, stream=True)):
        texts[each["choices"][0]["index"]] += each["choices"][0]["delta"].get("content", "")
    assert texts == ["one two three"] * 2


def test_one_choice_that_fails_ends_all(echo: App) -> None:
    echo.model.script = lambda request: "x " * (2 if request.sampling.seed == 1 else 500)
    echo.model.fail_after = 3
    refused(chat(echo, response_format=TEXT, n=2, seed=1), 500, "engine_error", None)


def test_error_in_a_stream_is_a_status_first_and_an_event_later(echo: App) -> None:
    echo.model.fail_after = 0
    refused(chat(echo, response_format=TEXT, stream=True), 500, "engine_error", None)
    echo.model.fail_after = 2
    found = events(chat(echo, response_format=TEXT, stream=True))
    assert found[-1]["error"]["code"] == "engine_error" and len(found) == 3


def test_row_14_budget_below_the_smallest_is_named_in_the_clients_words(echo: App) -> None:
    message = refused(chat(echo, max_tokens=10), 400, "budget_too_small", "max_tokens")
    assert "max_tokens is 10; the smallest budget" in message
    for stream in (False, True):
        response = chat(echo, max_completion_tokens=10, stream=stream)
        assert "max_completion_tokens is 10" in refused(response, 400, "budget_too_small", "max_completion_tokens")


def test_row_09_both_counts_are_named(echo: App) -> None:
    text = "x " * 5000
    messages = [{"role": "user", "content": text}]
    for response, name in (
        (chat(echo, messages=messages, max_tokens=900), "messages"),
        (echo.client.post(COMPLETIONS, json={"prompt": text, "max_tokens": 900}), "prompt"),
    ):
        message = refused(response, 400, "context_length_exceeded", name)
        assert re.search(r"500\d tokens.*900.*4096", message)


def test_model_is_the_one_that_is_served(echo: App) -> None:
    for name in ("echo", "router", None):
        answered(chat(echo, model=name, response_format=TEXT))
    assert "'gpt-4' is not served here; 'echo' is" in refused(
        chat(echo, model="gpt-4"), 404, "model_not_found", "model"
    )
    listed = answered(echo.client.get("/v1/models"))
    assert [each["id"] for each in listed["data"]] == ["echo", "router", "router-text"]
    assert answered(echo.client.get("/v1/models/")) == listed
    assert answered(echo.client.get("/v1/models/echo")) == listed["data"][0]
    refused(echo.client.get("/v1/models/owner/other"), 404, "model_not_found", "model")


def test_completions_take_several_prompts(echo: App) -> None:
    body = {"prompt": ["a b", "c d e"], "n": 2, "response_format": TEXT}
    answer = answered(echo.client.post(COMPLETIONS, json=body))
    assert [choice["text"] for choice in answer["choices"]] == ["a b", "a b", "c d e", "c d e"]
    assert answer["usage"]["prompt_tokens"] == 5 and answer["usage"]["completion_tokens"] == 10
    found = events(echo.client.post(COMPLETIONS, json={"prompt": "a b", "response_format": TEXT, "stream": True}))
    assert "".join(each["choices"][0]["text"] for each in found) == "a b"
    plan = answered(echo.client.post(COMPLETIONS, json={"prompt": "a b"}))["choices"][0]["text"]
    assert next(iter(json.loads(plan))) == "route_plan"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"prompt": [1, 2]}, "prompt.0"),
    ],
)
def test_completions_refuse_what_is_not_done(echo: App, body: Any, param: str) -> None:  # noqa: ANN401
    response = echo.client.post(COMPLETIONS, json={"prompt": "x", **body})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_logprobs_are_for_text_and_for_engines_that_have_them(echo: App) -> None:
    assert "text" in refused(chat(echo, logprobs=True), 400, "invalid_request", "logprobs")
    words = refused(chat(echo, logprobs=True, response_format=TEXT), 400, "invalid_request", "logprobs")
    assert words == "the echo engine gives no logprobs"


# JSON to a schema


@pytest.fixture(scope="module")
def random_app() -> Iterator[App]:
    """A model that draws at random under its grammar."""
    model = echo_model()
    random = RandomModel(b"ab ")
    model.generate = random.generate  # type: ignore[method-assign]
    model.count_tokens = random.count_tokens  # type: ignore[method-assign]
    with app(model) as running:
        yield running


def schema_format(schema: Any, **more: Any) -> Any:  # noqa: ANN401
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"enum": [1, 2]}}, "required": ["a", "b"]}


def test_schema_is_kept_within_max_tokens_and_streams(random_app: App) -> None:
    for stream in (False, True):
        body = {"response_format": schema_format(SCHEMA, strict=True), "max_tokens": 60, "stream": stream}
        response = chat(random_app, **body)
        if stream:
            text = "".join(each["choices"][0]["delta"].get("content", "") for each in events(response))
        else:
            answer = answered(response)
            text = answer["choices"][0]["message"]["content"]
            assert answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] <= 60
        value = json.loads(text)
        assert isinstance(value["a"], str) and value["b"] in (1, 2) and len(text.encode()) <= 60


@pytest.mark.parametrize("budget", [30, 80])
def test_json_object_is_any_object(random_app: App, budget: int) -> None:
    def said(seed: int) -> object:
        body = {"response_format": {"type": "json_object"}, "max_tokens": budget, "seed": seed}
        return json.loads(answered(chat(random_app, **body))["choices"][0]["message"]["content"])

    objects = [said(seed) for seed in range(12)]
    assert all(isinstance(each, dict) for each in objects) and any(objects), "the model is asked for its members"


def test_row_14_schema_that_does_not_fit_names_the_smallest_budget(random_app: App) -> None:
    response = chat(random_app, response_format=schema_format(SCHEMA), max_tokens=8)
    message = refused(response, 400, "budget_too_small", "max_tokens")
    least = int(message.rpartition(" ")[2])
    answered(chat(random_app, response_format=schema_format(SCHEMA), max_tokens=least))


def test_answer_that_does_not_keep_the_schema_is_no_200(echo: App) -> None:
    echo.model.script = lambda request: "nonsense"
    refused(chat(echo, response_format=schema_format(SCHEMA)), 502, "invalid_answer", None)


def test_plans_schema_goes_the_plans_way(echo: App) -> None:
    answer = answered(chat(echo, response_format=schema_format(Plan.model_json_schema())))
    Plan.model_validate_json(answer["choices"][0]["message"]["content"])
    assert echo.model.seen[0].prefix == '{"route_plan": ["'


# On a real port


def test_schema_of_a_plan_that_the_client_rewrote_goes_the_plans_way() -> None:
    """OpenAI's client makes every field required, the optional ones too."""
    with served() as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        answer = client.chat.completions.parse(
            model="router", messages=[{"role": "user", "content": "x"}], response_format=Plan
        )
        assert isinstance(answer.choices[0].message.parsed, Plan)
        assert server.model.seen[0].prefix == '{"route_plan": ["'


def test_row_18_client_that_leaves_frees_every_slot() -> None:
    with served(echo_model()) as server:
        server.model.seconds_per_token = 0.1
        for stream in (False, True):
            body = {
                "messages": [{"role": "user", "content": "x " * 800}],
                "response_format": TEXT,
                "n": 3,
                "stream": stream,
            }
            with httpx.Client(timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
                if not stream:
                    client.post(f"{server.url}{CHAT}", json=body)
                with client.stream("POST", f"{server.url}{CHAT}", json=body) as response:
                    next(response.iter_lines())
                    raise httpx.ReadTimeout("enough")
            until(lambda: server.idle, 30)  # half a minute before it would have ended


def test_fault_f_chunks_and_details_after_a_reload_name_the_model_that_writes() -> None:
    with served() as server:
        free = server.model.stuck = threading.Event()
        _, engine = echo_service(EchoModel(ModelInfo("next", "native", "echo", 4096, 4)), server.service.settings)
        loaded: Loaded[Engine] = Loaded(engine, Rung(Candidate("next", "echo"), "native"), ())
        server.service.host._reread = lambda: lambda report: loaded
        said: dict[str, str] = {}

        def ask(path: str, body: dict[str, Any]) -> None:
            said[path] = httpx.post(server.url + path, json=body, timeout=60).text

        asked = {
            CHAT: {"messages": USER, "response_format": TEXT, "stream": True},
            COMPLETIONS: {"prompt": "x y", "response_format": TEXT},
            "/v1/generate": {"prompt": "x y", "output": "text", "details": True},
        }
        threads = [threading.Thread(target=ask, args=each) for each in asked.items()]
        for thread in threads:
            thread.start()
        until(lambda: len(server.model.active) == 3)
        server.run(server.service.host.reload()).result(60)
        assert server.service.health().model == "next"
        free.set()
        for thread in threads:
            thread.join(60)
    assert len(said) == 3
    named = {name for text in said.values() for name in re.findall(r'"model":"(\w+)"', text)}
    assert named == {"echo"}, "in each chunk, the first one too"
