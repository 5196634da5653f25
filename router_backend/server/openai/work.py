"""From a body to what the service is asked for."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from router_backend.errors import InvalidRequest, UnknownModel
from router_backend.plan.schema import Plan
from router_backend.schema.read import ANYTHING, LONGEST_SCHEMA
from router_backend.server.openai.bodies import ChatBody, CompletionBody, SchemaFormat
from router_backend.service.service import GenerationService
from router_backend.settings import Settings
from router_backend.types import GenerateRequest, Output, Role, SamplingParams, Turn

# The name for whatever is served.
ALIAS = "router"
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What says nothing about which values there are, or which the transforms of clients write differently.
_NOTES = {"title", "description", "default", "required", "additionalProperties", "$defs"}
_MOST_REFERENCES = 8


def check_model(name: str | None, service: GenerationService) -> None:
    """Raises UnknownModel where another model is asked for than the one that is served."""
    info = service.health().info
    if name not in (None, ALIAS) and info is not None and name != info.model:
        raise UnknownModel(f"the model {name!r} is not served here; {info.model!r} is", param="model")


def requests(body: ChatBody | CompletionBody, request_id: str, service: GenerationService) -> list[GenerateRequest]:
    """One request for each choice, by cheap checks alone: a schema is read once it is admitted.

    Raises:
        UnknownModel: another model is asked for than the one that is served.
        InvalidRequest: the body contradicts itself.
    """
    with in_clients_words(body):
        return _requests(body, request_id, service)


def _requests(body: ChatBody | CompletionBody, request_id: str, service: GenerationService) -> list[GenerateRequest]:
    check_model(body.model, service)
    output, schema = _output(body)
    if body.alternatives is not None and output != "text":
        raise InvalidRequest('logprobs are for response_format={"type": "text"} alone', param="logprobs")
    sampling = _sampling(body, service.settings)
    conversations = [(_prompt(body), _history(body))] if isinstance(body, ChatBody) else [(p, ()) for p in body.prompts]
    return [
        GenerateRequest(
            request_id,
            prompt,
            SamplingParams(**{**sampling, "seed": (sampling["seed"] + number) % 2**32}),
            output,
            history=history,
            schema=schema,
        )
        for prompt, history in conversations
        for number in range(body.n or 1)
    ]


def _prompt(body: ChatBody) -> str:
    return body.messages[-1].text


def _history(body: ChatBody) -> tuple[Turn, ...]:
    return tuple(Turn(_ROLES[message.role], message.text) for message in body.messages[:-1])


def _sampling(body: ChatBody | CompletionBody, settings: Settings) -> dict[str, Any]:
    """The client's wishes over the operator's defaults. 0 is a wish."""
    return {
        "max_new_tokens": settings.max_new_tokens if body.budget is None else body.budget,
        "temperature": settings.default_temperature if body.temperature is None else body.temperature,
        "top_p": settings.default_top_p if body.top_p is None else body.top_p,
        "seed": secrets.randbits(32) if body.seed is None else body.seed % 2**32,
        "stop": body.stops,
        "logprobs": body.alternatives,
    }


def _output(body: ChatBody | CompletionBody) -> tuple[Output, str | None]:
    """What is written, and the schema that it must keep."""
    wanted = body.response_format
    if wanted is None:
        return "plan", None
    if not isinstance(wanted, SchemaFormat):
        return ("text", None) if wanted.type == "text" else ("json", ANYTHING)
    schema = wanted.json_schema.definition
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        raise InvalidRequest("the schema is no JSON, or nests too deep", param="schema") from None
    if len(text) <= LONGEST_SCHEMA and is_plan(schema):
        return "plan", None
    return "json", text


def is_plan(schema: dict[str, Any]) -> bool:
    """Whether a schema is that of a routing plan, as pydantic writes it or as a client's strict mode rewrites it."""
    return _alike(schema, _PLAN, schema)


def _alike(theirs: Any, plans: Any, root: dict[str, Any]) -> bool:  # noqa: ANN401 - any JSON
    """Whether two schemas are one, notes and references apart. Goes no further than the plan's own does."""
    theirs, plans = _target(theirs, root), _target(plans, _PLAN)
    if isinstance(plans, list):
        return (
            isinstance(theirs, list)
            and len(theirs) == len(plans)
            and all(_alike(*pair, root) for pair in zip(theirs, plans, strict=True))
        )
    if not isinstance(plans, dict):
        return bool(theirs == plans)
    if not isinstance(theirs, dict):
        return False
    theirs, plans = ({key: each[key] for key in each if key not in _NOTES} for each in (theirs, plans))
    if theirs.keys() != plans.keys():
        return False
    for key, value in plans.items():
        if key == "properties":
            fields = theirs[key]
            if not isinstance(fields, dict) or list(fields) != list(value):
                return False
            if not all(_alike(fields[name], value[name], root) for name in value):
                return False
        elif not _alike(theirs[key], value, root):
            return False
    return True


def _target(schema: Any, root: dict[str, Any]) -> Any:  # noqa: ANN401
    """What a few references lead to."""
    definitions = root.get("$defs")
    for _ in range(_MOST_REFERENCES):
        name = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(name, str) or not isinstance(definitions, dict):
            break
        schema = definitions.get(name.removeprefix("#/$defs/"))
    return schema


_PLAN = Plan.model_json_schema()


@contextmanager
def in_clients_words(body: ChatBody | CompletionBody) -> Iterator[None]:
    """Names the client's own fields in what is wrong with a request."""
    budget = body.budget_name
    names = {"max_new_tokens": budget, "prompt": body.prompt_name, "schema": "response_format"}
    try:
        yield
    except InvalidRequest as error:
        error.message = error.message.replace("max_new_tokens", budget)
        error.param = names.get(error.param or "", error.param)
        raise
