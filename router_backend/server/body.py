"""JSON bodies: their common fields, and how one is read: bounded, typed, strict, and wrong in one readable line."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from router_backend.errors import InvalidRequest, PayloadTooLarge, RateLimited, RouterError, UnsupportedMediaType
from router_backend.server.errors import ErrorBody
from router_backend.service.caller import caller
from router_backend.service.service import GenerationService
from router_backend.settings import Settings
from router_backend.types import SamplingParams, Usage, is_blank

M = TypeVar("M", bound=BaseModel)
W = TypeVar("W")
F = TypeVar("F", bound=Callable[..., Any])

LARGEST_BUDGET = 131_072
_TEXT_LENGTH = 4_000_000


def unless(wrong: Callable[[Any, Mapping[str, Any]], object], why: str) -> AfterValidator:
    """A rule of a field: whether its value is wrong beside the fields before it, by their names, and why."""

    def check(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - the field's own type
        if wrong(value, info.data):
            raise ValueError(why)
        return value

    return AfterValidator(check)


_NO_NUL = unless(lambda text, _: "\x00" in text, "must not hold a NUL character")
Text = Annotated[str, _NO_NUL, Field(max_length=_TEXT_LENGTH)]
NonEmptyText = Annotated[Text, Field(min_length=1)]
Prompt = Annotated[NonEmptyText, unless(lambda text, _: is_blank(text), "must not be blank")]
Stop = Annotated[str, _NO_NUL, Field(min_length=1, max_length=256)]
Budget = Annotated[int, Field(ge=1, le=LARGEST_BUDGET)]

# Names of alternatives in a union, which pydantic puts into the place of an error.
TAGS = frozenset(
    {"(one)", "(list)", "(plain)", "(schema)", "(word)", "(named)", "(some)"}
    | {"(text)", "(refusal)", "(message)", "(call)", "(output)", "(truth)"}
)


def sampling(
    settings: Settings,
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stop: Iterable[str] | None = None,
    logprobs: int | None = None,
) -> SamplingParams:
    """The client's wishes over the operator's defaults. 0 is a wish."""
    return SamplingParams(
        settings.max_new_tokens if max_new_tokens is None else max_new_tokens,
        settings.default_temperature if temperature is None else temperature,
        settings.default_top_p if top_p is None else top_p,
        secrets.randbits(32) if seed is None else seed % 2**32,
        tuple(stop or ()),
        logprobs,
    )


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 413, 415, 429, 500, 502, 503, 504)
}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


class Body(BaseModel):
    """Base of all request bodies: no conversion between types, no unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


async def asked(request: Request, service: GenerationService, model: type[M], work_of: Callable[[M], W]) -> tuple[M, W]:
    """The body of a request, and the work that it asks for. The order of every request that costs something:

    1. Its head is read within bounds, and the guard knows whose it is.
    2. A key whose share is used up is refused (429), before anything is read for it.
    3. The body is read and parsed, within its bounds.
    4. `work_of` makes cheap checks: no template, no tokens, no schema, no grammar. It runs in the event loop.
    5. The service admits the work, or refuses it: it counts for its key, and so does what steps 3 and 4 refuse.
    6. All that costs is done in the thread of a slot, under the deadline of the request.

    Raises:
        RateLimited: the key has had its share.
        RouterError: as `read_body` and `work_of` do.
    """
    with charged(service):
        body = await read_body(request, model, service.settings.max_body_bytes)
        return body, work_of(body)


@contextmanager
def charged(service: GenerationService, *, check: bool = True) -> Iterator[None]:
    """Around steps 3 and 4: what they refuse counts for the key. Raises RateLimited where it has had its share.

    Without `check` it may have had it: the page asks for more than answers.
    """
    key = caller.get().key
    try:
        if check:
            service.admission.check(key)
        yield
    except RouterError as error:
        service.metrics.requests.labels(key, error.code).inc()
        if not isinstance(error, RateLimited):
            service.admission.count(key)
        raise


async def read_body(request: Request, model: type[M], limit: int) -> M:
    """The validated body.

    Raises:
        RouterError: as `read_json` does.
        InvalidRequest: broken JSON or a wrong field, which it names.
    """
    try:
        return model.model_validate_json(await read_json(request, limit))
    except ValidationError as error:
        raise _explain(error) from None


async def read_json(request: Request, limit: int) -> bytes:
    """The body as it came, not parsed.

    Raises:
        UnsupportedMediaType: the content type is not JSON, or the body is compressed.
        PayloadTooLarge: more than `limit` bytes; the rest is not read.
        InvalidRequest: there is none.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not (
        content_type.startswith("application/") and content_type.endswith("+json")
    ):
        raise UnsupportedMediaType("send JSON with Content-Type: application/json")
    if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("send the body uncompressed, without Content-Encoding")
    too_large = PayloadTooLarge(f"the body has more than {limit} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > limit:
            raise too_large
    if not raw.strip():
        raise InvalidRequest("the body is empty; send a JSON object", code="invalid_json")
    return bytes(raw)


def checked(model: type[M], /, **fields: object) -> M:
    """The same of values that came in another way. Raises InvalidRequest."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(
            f"the body is no valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    path = [str(part) for at, part in enumerate(first["loc"]) if part not in TAGS or at == 0]
    name = ".".join(path) if path else None
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"unknown field: {name}", param=name, code="unknown_field")
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{name}: {message}" if path else message, param=name, code="invalid_value")


def post(
    router: APIRouter,
    path: str,
    body: type[BaseModel],
    answer: type[BaseModel],
    summary: str,
    responses: dict[int | str, dict[str, Any]] | None = None,
) -> Callable[[F], F]:
    """A route as FastAPI describes it, although its body is read by `read_body` and not by FastAPI."""
    schema = body.model_json_schema()
    whole = _inlined(schema, schema.pop("$defs", {}))
    said = {"requestBody": {"required": True, "content": {"application/json": {"schema": whole}}}}
    return router.post(path, response_model=answer, responses=responses, openapi_extra=said, summary=summary)


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    """With what its references mean in their place: there is nowhere else that they could lead to."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items() if name != "discriminator"}
