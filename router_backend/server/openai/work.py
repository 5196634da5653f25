"""From a body to what the service is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

from router_backend.errors import InvalidRequest, UnknownModel
from router_backend.plan.part import form_of, is_plan
from router_backend.plan.prompt import is_routers_own
from router_backend.schema.nodes import Node, Object, resolved
from router_backend.schema.read import ANYTHING, read
from router_backend.schema.shown import schema_shown
from router_backend.server.body import sampling
from router_backend.server.openai.bodies import ChatBody, CompletionBody, FunctionBody, NamedToolBody, SchemaFormat
from router_backend.service.caller import caller
from router_backend.service.service import GenerationService
from router_backend.types import Call, GenerateRequest, Output, Role, Tool, Turn, is_blank

Settle = Callable[[GenerateRequest], GenerateRequest]
# The name for whatever is served.
ALIAS = "router"
# The same, for text where no format is asked for.
TEXT_ALIAS = "router-text"
_ROLES: dict[str, Role] = {"developer": "system", "function": "tool"}
# A tool that gives the task to a specialist, by its name.
_HANDS_OFF = re.compile(r"(?:^|[_-])(?:hand_?off|transfer_to|delegate_to)(?:[_-]|$)", re.IGNORECASE)
_ANY_STEP = (f"/{'x' * 64}",)
# What says elsewhere which arguments there are.
_ELSEWHERE = frozenset({"$ref", "allOf", "anyOf", "oneOf", "enum", "const"})
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def check_model(name: str | None, service: GenerationService) -> None:
    """Raises UnknownModel where another model is asked for than the one that is served."""
    info = service.health().info
    if name not in (None, ALIAS, TEXT_ALIAS) and info is not None and name != info.model:
        raise UnknownModel(f"the model {name!r} is not served here; {info.model!r} is", param="model")


def requests(body: ChatBody | CompletionBody, service: GenerationService) -> list[GenerateRequest]:
    """One request for each choice, by cheap checks alone: a schema is read once it is admitted.

    Raises:
        UnknownModel: another model is asked for than the one that is served.
        InvalidRequest: the body contradicts itself.
    """
    check_model(body.model, service)
    output, schema, settle = _output(body)
    if body.alternatives is not None and output != "text":
        raise InvalidRequest("logprobs are for text alone", param="logprobs")
    wishes = body.budget, body.temperature, body.top_p, body.seed, body.stops, body.alternatives
    drawn = sampling(service.settings, *wishes)
    if isinstance(body, ChatBody):
        *history, last = _turns(body)
        conversations = [(last, tuple(history))]
    else:
        conversations = [(Turn("user", prompt), ()) for prompt in body.prompts]
    return [
        GenerateRequest(
            caller.get().request_id,
            last.content,
            replace(drawn, seed=(drawn.seed + number) % 2**32),
            output,
            history=history,
            schema=schema,
            result_of=last.name if last.role == "tool" else None,
            settle=settle,
        )
        for last, history in conversations
        for number in range(body.n or 1)
    ]


def _turns(body: ChatBody) -> list[Turn]:
    """The conversation. A tool's result is told by the name of the tool, not by the id of its call."""
    names = {call.id: call.function.name for message in body.messages for call in message.tool_calls or ()}
    turns = []
    for message in body.messages:
        called = [call.function for call in message.tool_calls or ()] + list(filter(None, [message.function_call]))
        name = names.get(message.tool_call_id or "", message.name or "")
        turns.append(
            Turn(
                _ROLES.get(message.role) or cast("Role", message.role),
                message.text,
                tuple(Call(each.name, each.arguments) for each in called),
                name if message.role in ("tool", "function") else "",
            )
        )
    return turns


def _with_calls(body: ChatBody, request: GenerateRequest) -> GenerateRequest:
    """With what it says of tools. Raises InvalidRequest where the schema of one's arguments is not understood."""
    place = "functions.{}" if body.functions else "tools.{}.function"
    offered = [_tool(each, place.format(index), request.owner) for index, each in enumerate(body.offered)]
    if isinstance(body.response_format, SchemaFormat):
        read(request.schema or ANYTHING, request.owner)
    elif not body.must_call and (body.response_format is None or body.response_format.type == "json_object"):
        # What is said instead of a call, as without tools.
        shown = schema_shown(_showing(body), request.owner)
        request = replace(request, schema=shown or request.schema)
    chosen = tuple(tool for tool, _ in offered if tool.name in {each.name for each in body.called})
    # Several tools that each take a plan are specialists, whatever they are called.
    planned = [tool for tool, root in offered if isinstance(root, Object) and form_of(root, _ANY_STEP) is not None]
    handed = [tool for tool, _ in offered if _HANDS_OFF.search(tool.name) or (len(planned) > 1 and tool in planned)]
    # A router routes: what the user asks is handed off, what a tool has answered may be spoken of.
    may_speak = not body.must_call and not (body.messages[-1].role == "user" and set(chosen) <= set(handed))
    # Older clients read one call, and who names a tool wants one.
    single = body.functions or isinstance(body.choice, NamedToolBody) or body.parallel_tool_calls is False
    specialists = tuple(f"/{tool.name}" for tool in handed)
    return replace(request, tools=chosen, may_speak=may_speak, parallel=not single, specialists=specialists)


def _check_tools(body: ChatBody) -> None:
    choice = "function_call" if body.functions else "tool_choice"
    names = [each.name for each in body.offered]
    if body.tools and body.functions:
        raise InvalidRequest("send tools or functions, not both", param="functions")
    if len(set(names)) < len(names):
        raise InvalidRequest("two tools have the same name", param="functions" if body.functions else "tools")
    if not names and body.must_call:
        raise InvalidRequest(f"{choice} asks for a call, and there are no tools", param=choice)
    if unknown := [name for name in body.chosen if name not in names]:
        raise InvalidRequest(f"{choice} names {unknown[0]!r}, which is none of the tools", param=choice)


def _tool(body: FunctionBody, where: str, owner: str) -> tuple[Tool, Node | None]:
    schema = body.parameters or _NO_PARAMETERS
    named = schema.get("properties") or not _ELSEWHERE.isdisjoint(schema)
    if not named and schema.get("additionalProperties") in (None, False):
        schema = {**_NO_PARAMETERS, **schema, "additionalProperties": False}
    try:
        text = _json(schema)
        return Tool(body.name, body.description or "", text), resolved(read(text, owner))
    except InvalidRequest as error:
        _, dot, path = (error.param or "").partition(".")
        param = f"{where}.parameters{dot}{path}"
        raise InvalidRequest(f"tool {body.name}: {error.message}", param=param, code=error.code) from None


def _output(body: ChatBody | CompletionBody) -> tuple[Output, str | None, Settle | None]:
    """What is written, the schema that it must keep, and what is left to find out of it."""
    wanted = body.response_format
    schema = _json(wanted.json_schema.definition) if isinstance(wanted, SchemaFormat) else None
    if isinstance(body, ChatBody):
        _check_tools(body)
        if body.called:
            free = wanted is None or wanted.type == "text" or body.must_call
            return "calls", None if free else schema or ANYTHING, partial(_with_calls, body)
    if schema is not None:
        return "json", schema, _as_plan
    if wanted is not None and wanted.type == "text":
        return "text", None, None
    if wanted is None and not _wants_text(body):
        return "plan", None, None
    shown = partial(_as_shown, _showing(body)) if body.alternatives is None else None
    return ("json", ANYTHING, shown) if wanted else ("text", None, shown)


def _as_plan(request: GenerateRequest) -> GenerateRequest:
    """For a plan, where the schema is that of one. Raises InvalidRequest where it is not understood."""
    root = read(request.schema or ANYTHING, request.owner)
    return replace(request, output="plan", schema=None) if is_plan(root) else request


def _as_shown(instructions: str, request: GenerateRequest) -> GenerateRequest:
    """For JSON that keeps the schema which the instructions show, where they do."""
    shown = schema_shown(instructions, request.owner)
    return replace(request, output="json", schema=shown) if shown else request


def _wants_text(body: ChatBody | CompletionBody) -> bool:
    """Where no format is asked for: instructions of the client's own are not asking for a plan, nor is the text model.

    What names a plan's ten keys is a router's own prompt, whatever stands beside it.
    """
    if body.model == TEXT_ALIAS:
        return True
    if not isinstance(body, ChatBody) or any(is_routers_own(message.text) for message in body.messages):
        return False
    return any(not is_blank(text) for text in _instructions(body))


def _instructions(body: ChatBody | CompletionBody) -> list[str]:
    messages = body.messages if isinstance(body, ChatBody) else ()
    return [message.text for message in messages if message.role in ("system", "developer")]


def _showing(body: ChatBody | CompletionBody) -> str:
    """Where a schema may be shown: the client's instructions. Where a JSON object is asked for, they may stand in what
    the user says, the last of it first."""
    said = _instructions(body)
    if isinstance(body, ChatBody) and body.response_format is not None and body.response_format.type == "json_object":
        said += [message.text for message in reversed(body.messages) if message.role == "user"]
    return "\n".join(said)


def _json(schema: dict[str, Any]) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        raise InvalidRequest("the schema is not JSON, or nests too deep", param="schema") from None


@contextmanager
def in_clients_words(body: ChatBody | CompletionBody) -> Iterator[None]:
    """Names the client's own fields in what is wrong with a request."""
    budget = body.budget_name
    names = {"max_new_tokens": budget, "prompt": body.prompt_name, "schema": "response_format.json_schema.schema"}
    try:
        yield
    except InvalidRequest as error:
        error.message = error.message.replace("max_new_tokens", budget)
        name, dot, path = (error.param or "").partition(".")
        error.param = f"{names.get(name, name)}{dot}{path}" or None
        raise
