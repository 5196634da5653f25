"""What a plan is: one JSON object, ten keys, in this order."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

Difficulty = Literal["introductory", "intermediate", "advanced"]
DIFFICULTIES: tuple[Difficulty, ...] = ("introductory", "intermediate", "advanced")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
Texts = Annotated[list[Text], Field(min_length=1)]
Guidance = Text | dict[str, Any]


class Metrics(BaseModel):
    """How success is measured. The optional keys are texts, in a few reference plans objects."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _never_null(cls, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        if value is None:
            raise ValueError("must be a text or an object")
        return value

    primary: Texts
    secondary: Texts
    primary_guidance: Guidance | None = None
    secondary_guidance: Guidance | None = None
    primary_computation: Guidance | None = None
    secondary_computation: Guidance | None = None
    computation_guidance: Guidance | None = None
    guidance: Guidance | None = None
    diagnostic: Guidance | None = None


class Plan(BaseModel):
    """A routing plan."""

    model_config = ConfigDict(extra="forbid", strict=True)

    route_plan: Texts
    route_rationale: Text
    expected_artifacts: Texts
    thinking_outline: Texts
    handoff_plan: Text
    todo_list: Texts
    difficulty: Difficulty
    tags: Texts
    acceptance_criteria: Texts
    metrics: Metrics


KEYS = tuple(Plan.model_fields)
OPTIONAL_METRICS = tuple(key for key in Metrics.model_fields if key not in ("primary", "secondary"))


def as_schema() -> str:
    """The plan as JSON Schema, as JSON text: what servers keep that keep no more than that. The rules are not in it."""
    text, texts = {"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}

    def all_of(fields: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}

    single = {"route_rationale": text, "handoff_plan": text, "difficulty": {"type": "string", "enum": [*DIFFICULTIES]}}
    metrics = all_of({"primary": texts, "secondary": texts})
    return json.dumps(all_of({key: single.get(key, texts) for key in KEYS} | {"metrics": metrics}))
