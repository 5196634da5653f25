"""Reads a JSON body: bounded, typed, strict, and wrong in one readable line."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError

from router_backend.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType

M = TypeVar("M", bound=BaseModel)


class Body(BaseModel):
    """Base of all request bodies: no conversion between types, no unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


async def read_body(request: Request, model: type[M], limit: int) -> M:
    """The validated body.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
        PayloadTooLarge: more than `limit` bytes; the rest is not read.
        InvalidRequest: broken JSON or a wrong field, which it names.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not (
        content_type.startswith("application/") and content_type.endswith("+json")
    ):
        raise UnsupportedMediaType("send JSON with Content-Type: application/json")
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
    try:
        return model.model_validate_json(bytes(raw))
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(
            f"the body is no valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    name = ".".join(str(part) for part in first["loc"] if not str(part).startswith("(")) or None
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"unknown field: {name}", param=name, code="unknown_field")
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{name}: {message}" if name else message, param=name, code="invalid_value")
