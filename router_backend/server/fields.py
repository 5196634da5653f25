"""What the bodies of several routes have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from router_backend.server.errors import ErrorBody

LARGEST_BUDGET = 131_072
_TEXT_LENGTH = 4_000_000


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not hold a NUL character")
    return text


Text = Annotated[str, AfterValidator(_no_nul), Field(max_length=_TEXT_LENGTH)]
NonEmptyText = Annotated[Text, Field(min_length=1)]
Stop = Annotated[str, AfterValidator(_no_nul), Field(min_length=1, max_length=256)]

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 413, 415, 429, 500, 502, 503, 504)
}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Puts a body's schema into OpenAPI, since the body is read by `read_body` and not by FastAPI."""
    schema = model.model_json_schema()
    whole = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": whole}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    """With what its references mean in their place: there is nowhere else that they could lead to."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items() if name != "discriminator"}
