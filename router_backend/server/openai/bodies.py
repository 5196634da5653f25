"""What OpenAI's clients send.

A documented field that would change the answer, and is not done here, is refused by name unless it has the value that
changes nothing. One that changes nothing anyway is taken.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from typing_extensions import Self

from router_backend.server.body import LARGEST_BUDGET, Body, Prompt, Stop, Text
from router_backend.types import is_blank

MOST_CHOICES = 8
MOST_MESSAGES = 256


class Only:
    """A field that is not done here: only the values that ask for nothing are taken."""

    def __init__(self, *values: Any) -> None:  # noqa: ANN401 - any JSON
        self._values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": list(self._values)}

    def _check(self, value: object) -> object:
        # JSON's true is no 1 here.
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in self._values):
            raise ValueError("is not supported here; leave it out")
        return value


Nothing = Annotated[Any, Only(None)]
NoList = Annotated[Any, Only(None, [])]
NoObject = Annotated[Any, Only(None, {})]
NoPenalty = Annotated[Any, Only(None, 0)]
No = Annotated[Any, Only(None, False)]


# One or several: a client that sends a list is told what is wrong with the list. Tags in brackets are in no message.
_KIND = Discriminator(lambda value: "(list)" if isinstance(value, list) else "(one)")


class TextPart(Body):
    type: Literal["text"]
    text: Text


class MessageBody(Body):
    """A message. What a client may send back of an earlier answer is taken where it is empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Annotated[
            Annotated[Text, Tag("(one)")]
            | Annotated[list[TextPart], Field(min_length=1, max_length=256), Tag("(list)")],
            _KIND,
        ]
        | None
    ) = Field(None, description="Only an assistant's message may have none.")
    name: Text | None = None
    refusal: Text | None = None
    audio: Nothing = None
    function_call: Nothing = None
    tool_calls: NoList = None
    annotations: NoList = None
    reasoning_content: Nothing = None

    @model_validator(mode="after")
    def _people_say_something(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError("content must be a text or a list of text parts")
        return self

    @property
    def text(self) -> str:
        if self.content is None:
            return self.refusal or ""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class PlainFormat(Body):
    type: Literal["text", "json_object"]


class JsonSchema(Body):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Text | None = None
    definition: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class SchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


def _format(value: Any) -> str | None:  # noqa: ANN401 - any JSON, or what was made of it
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return {"text": "(plain)", "json_object": "(plain)", "json_schema": "(schema)"}.get(str(kind))


Format = Annotated[
    Annotated[PlainFormat, Tag("(plain)")] | Annotated[SchemaFormat, Tag("(schema)")],
    Discriminator(
        _format,
        custom_error_type="response_format",
        custom_error_message="give an object whose type is text, json_object or json_schema",
    ),
]


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SharedBody(Body):
    """What both routes take."""

    model: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="The served model's id, or `router`. Default: whatever is served."
    )
    max_tokens: Annotated[int, Field(ge=1, le=LARGEST_BUDGET)] | None = Field(
        None,
        description="Token budget of the answer; a plan and JSON are written to fit. Default: MAX_NEW_TOKENS (600).",
    )
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[Annotated[Stop, Tag("(one)")] | Annotated[list[Stop], Field(max_length=4), Tag("(list)")], _KIND]
        | None
    ) = Field(None, description="Texts that end a raw answer. A plan and JSON are never cut.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Format | None = Field(None, description="Default: a routing plan.")
    # Taken and without effect: none of them changes an answer.
    user: Text | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: bool | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Text | None = None
    parallel_tool_calls: bool | None = None
    # Refused, unless they ask for nothing.
    frequency_penalty: NoPenalty = None
    presence_penalty: NoPenalty = None
    logit_bias: NoObject = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @model_validator(mode="after")
    def _options_are_for_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream=true")
        return self


class ChatBody(SharedBody):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=LARGEST_BUDGET)] | None = None
    logprobs: bool | None = Field(None, description="Only with response_format text, where the engine has them.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: NoList = None
    functions: NoList = None
    tool_choice: Annotated[Any, Only(None, "none", "auto")] = None
    function_call: Annotated[Any, Only(None, "none", "auto")] = None
    modalities: Annotated[Any, Only(None, ["text"])] = None
    reasoning_effort: Annotated[Any, Only(None, "none")] = None
    verbosity: Annotated[Any, Only(None, "medium")] = None
    audio: Nothing = None
    prediction: Nothing = None
    moderation: Nothing = None
    web_search_options: Nothing = None

    @field_validator("messages")
    @classmethod
    def _something_is_asked(cls, messages: list[MessageBody]) -> list[MessageBody]:
        if is_blank(messages[-1].text):
            raise ValueError("the last message must not be blank")
        return messages

    @model_validator(mode="after")
    def _budget_is_said_once(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return self

    @property
    def prompt_name(self) -> str:
        return "messages"

    @property
    def budget_name(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def budget(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """How many likeliest tokens are told with each token; None for no probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(SharedBody):
    """The body of `/v1/completions`."""

    prompt: Annotated[
        Annotated[Prompt, Tag("(one)")]
        | Annotated[list[Prompt], Field(min_length=1, max_length=MOST_CHOICES), Tag("(list)")],
        _KIND,
    ]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[Any, Only(None, 1)] = None
    echo: No = None
    suffix: Annotated[Any, Only(None, "")] = None

    @model_validator(mode="after")
    def _choices_are_bounded(self) -> Self:
        if (self.n or 1) * len(self.prompts) > MOST_CHOICES:
            raise ValueError(f"n times the number of prompts must be at most {MOST_CHOICES}")
        return self

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def prompt_name(self) -> str:
        return "prompt"

    @property
    def budget_name(self) -> str:
        return "max_tokens"

    @property
    def budget(self) -> int | None:
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return self.logprobs
