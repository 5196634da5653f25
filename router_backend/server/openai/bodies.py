"""What OpenAI's clients send.

A documented field that would change the answer, and is not done here, is refused by name unless it has the value that
changes nothing. One that changes nothing anyway is taken.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import Discriminator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from router_backend.server.body import Body, Budget, Prompt, Stop, Text, unless
from router_backend.types import is_blank

MOST_CHOICES = 8
MOST_MESSAGES = 256
MOST_TOOLS = 128


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


# One or several: a client that sends a list is told what is wrong with the list. `body.TAGS` are in no message.
One = TypeVar("One")
List = TypeVar("List")
OneOr: TypeAlias = Annotated[
    Annotated[One, Tag("(one)")] | Annotated[List, Tag("(list)")],
    Discriminator(lambda value: "(list)" if isinstance(value, list) else "(one)"),
]


def type_of(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """An object's `type`."""
    return value.get("type") if isinstance(value, dict) else None


class TextPart(Body):
    """A text. What stands beside it in parts that clients keep changes no answer: ids, and marks of caches."""

    type: Literal["text"]
    text: Text
    id: Text | None = None
    index: int | None = None
    annotations: NoList = None
    cache_control: dict[str, Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class RefusalPart(Body):
    type: Literal["refusal"]
    refusal: Text

    @property
    def text(self) -> str:
        return self.refusal


Part = Annotated[
    Annotated[TextPart, Tag("(text)")] | Annotated[RefusalPart, Tag("(refusal)")],
    Discriminator(lambda value: "(refusal)" if type_of(value) == "refusal" else "(text)"),
]


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class CalledBody(Body):
    name: Name
    arguments: Text
    parsed_arguments: Any = None  # what OpenAI's clients made of the arguments, and send back beside them


class CallBody(Body):
    """A call of a tool, as an earlier answer had it."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledBody
    index: int | None = None


_ASSISTANTS = unless(lambda calls, of: calls and of.get("role") != "assistant", "only an assistant's message has calls")


class MessageBody(Body):
    """A message. What a client may send back of an earlier answer is taken."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        OneOr[Text, Annotated[list[Part], Field(min_length=1, max_length=256)]] | None,
        unless(
            lambda content, of: content is None and of.get("role") != "assistant",
            "must be a text or a list of text parts",
        ),
    ] = Field(None, validate_default=True, description="Only an assistant's message may have none.")
    name: Annotated[
        Text | None,
        unless(lambda name, of: name is None and of.get("role") == "function", "a function's message needs its name"),
    ] = Field(None, validate_default=True)
    refusal: Text | None = None
    audio: Nothing = None
    function_call: Annotated[CalledBody | None, _ASSISTANTS] = None
    tool_calls: Annotated[Annotated[list[CallBody], Field(max_length=128)] | None, _ASSISTANTS] = None
    tool_call_id: Annotated[
        Text | None,
        unless(
            lambda called, of: (of.get("role") == "tool") is (called is None),
            "a tool's message needs it, and no other has one",
        ),
    ] = Field(None, validate_default=True, description="Of a tool's message: the call whose result this is.")
    annotations: NoList = None
    reasoning_content: Text | None = None
    parsed: Any = None  # what OpenAI's clients made of the content, and send back beside it
    cache_control: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        if self.content is None:
            return self.refusal or ""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class FunctionBody(Body):
    """What a client's program can do; without `parameters` it takes none."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Body):
    type: Literal["function"]
    function: FunctionBody
    cache_control: dict[str, Any] | None = None


class NamedBody(Body):
    name: Name


class NamedToolBody(Body):
    type: Literal["function"]
    function: NamedBody


class SomeToolsBody(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedToolBody], Field(min_length=1, max_length=MOST_TOOLS)]


class AllowedToolsBody(Body):
    type: Literal["allowed_tools"]
    allowed_tools: SomeToolsBody


# A word, or an object that names a tool or some: a client is told what is wrong with what it sent.
_WORD = "(word)"


def _choice(value: Any) -> str:  # noqa: ANN401 - any JSON
    return _WORD if isinstance(value, str) else "(some)" if type_of(value) == "allowed_tools" else "(named)"


ToolChoice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(_WORD)]
    | Annotated[NamedToolBody, Tag("(named)")]
    | Annotated[AllowedToolsBody, Tag("(some)")],
    Discriminator(_choice),
]
FunctionChoice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto"], Tag(_WORD)] | Annotated[NamedBody, Tag("(named)")], Discriminator(_choice)
]


class PlainFormat(Body):
    type: Literal["text", "json_object"]


class JsonSchema(Body):
    name: Name
    description: Text | None = None
    definition: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class SchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


_FORMATS = {"text": "(plain)", "json_object": "(plain)", "json_schema": "(schema)"}
Format = Annotated[
    Annotated[PlainFormat, Tag("(plain)")] | Annotated[SchemaFormat, Tag("(schema)")],
    Discriminator(
        lambda value: _FORMATS.get(str(type_of(value))),
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
        None, description="The served model's id, `router`, or `router-text` for text. Default: whatever is served."
    )
    max_tokens: Budget | None = Field(
        None,
        description="Token budget of the answer; a plan and JSON are written to fit. Default: MAX_NEW_TOKENS (600).",
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: OneOr[Stop, Annotated[list[Stop], Field(max_length=4)]] | None = Field(
        None, description="Texts that end a raw answer. A plan and JSON are never cut."
    )
    stream: bool | None = None
    stream_options: Annotated[
        StreamOptions | None,
        unless(lambda options, of: options is not None and not of.get("stream"), "is only for stream=true"),
    ] = None
    response_format: Format | None = Field(
        None, description="Default: a routing plan, or text where the messages have instructions of their own."
    )
    # Taken and without effect: none of them changes an answer.
    user: Text | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: bool | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Text | None = None
    parallel_tool_calls: bool | None = Field(None, description="Of chats. False: one call at the most.")
    # Refused, unless they ask for nothing.
    frequency_penalty: NoPenalty = None
    presence_penalty: NoPenalty = None
    logit_bias: NoObject = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def budget_name(self) -> str:
        return "max_tokens"

    @property
    def budget(self) -> int | None:
        value: int | None = getattr(self, self.budget_name)
        return value


class ChatBody(SharedBody):
    """The body of `/v1/chat/completions`."""

    prompt_name: ClassVar[str] = "messages"
    messages: Annotated[
        list[MessageBody],
        Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True),
        unless(
            lambda messages, _: messages[-1].role not in ("user", "tool", "function"),
            "the last message must be the user's, or a tool's result",
        ),
        unless(
            lambda messages, _: messages[-1].role == "user" and is_blank(messages[-1].text),
            "the last message must not be blank",
        ),
    ]
    max_completion_tokens: Annotated[
        Budget | None,
        unless(
            lambda budget, of: budget is not None and of.get("max_tokens") not in (None, budget),
            "differs from max_tokens; send one of them",
        ),
    ] = None
    logprobs: bool | None = Field(None, description="Only with response_format text, where the engine has them.")
    top_logprobs: Annotated[
        Annotated[int, Field(ge=0, le=20)] | None,
        unless(lambda alternatives, of: alternatives and not of.get("logprobs"), "needs logprobs=true"),
    ] = None
    tools: Annotated[list[ToolBody], Field(max_length=MOST_TOOLS)] | None = Field(
        None, description="What may be called. Arguments keep their schema and close within the budget."
    )
    tool_choice: ToolChoice | None = Field(None, description="Default: auto.")
    functions: Annotated[list[FunctionBody], Field(max_length=MOST_TOOLS)] | None = Field(
        None, description="As `tools`, for older clients."
    )
    function_call: FunctionChoice | None = None
    modalities: Annotated[Any, Only(None, ["text"])] = None
    reasoning_effort: Annotated[Any, Only(None, "none")] = None
    verbosity: Annotated[Any, Only(None, "medium")] = None
    audio: Nothing = None
    prediction: Nothing = None
    moderation: Nothing = None
    web_search_options: Nothing = None

    @property
    def offered(self) -> list[FunctionBody]:
        """All tools, or the older functions."""
        return [each.function for each in self.tools or ()] or list(self.functions or ())

    @property
    def choice(self) -> str | NamedToolBody | NamedBody | AllowedToolsBody | None:
        """Which of them the client wants to be called."""
        return self.function_call if self.functions else self.tool_choice

    @property
    def chosen(self) -> list[str]:
        """The names that the client's choice is about; none for all."""
        choice = self.choice
        if isinstance(choice, AllowedToolsBody):
            return [each.function.name for each in choice.allowed_tools.tools]
        named = choice.function if isinstance(choice, NamedToolBody) else choice
        return [named.name] if isinstance(named, NamedBody) else []

    @property
    def must_call(self) -> bool:
        choice = self.choice
        if isinstance(choice, AllowedToolsBody):
            return choice.allowed_tools.mode == "required"
        return choice == "required" or isinstance(choice, NamedToolBody | NamedBody)

    @property
    def called(self) -> list[FunctionBody]:
        """The tools that the answer may call."""
        if self.choice == "none":
            return []
        return [each for each in self.offered if not self.chosen or each.name in self.chosen]

    @property
    def budget_name(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def alternatives(self) -> int | None:
        """How many likeliest tokens are told with each token; None for no probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(SharedBody):
    """The body of `/v1/completions`."""

    prompt_name: ClassVar[str] = "prompt"
    prompt: Annotated[
        OneOr[Prompt, Annotated[list[Prompt], Field(min_length=1, max_length=MOST_CHOICES)]],
        unless(
            lambda prompt, of: (of.get("n") or 1) * (len(prompt) if isinstance(prompt, list) else 1) > MOST_CHOICES,
            f"n times the number of prompts must be at most {MOST_CHOICES}",
        ),
    ]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[Any, Only(None, 1)] = None
    echo: No = None
    suffix: Annotated[Any, Only(None, "")] = None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def alternatives(self) -> int | None:
        return self.logprobs
