"""Plan classes as clients have their own: the ten keys or some of them, in types that a plan satisfies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class Free(BaseModel):
    """The ten keys as plain strings and lists, in an order of its own, with descriptions."""

    metrics: dict[str, list[str]]
    tags: list[str]
    difficulty: str = Field(description="How hard it is.")
    route_plan: list[str] = Field(description="The steps.")
    route_rationale: str
    expected_artifacts: list[str]
    thinking_outline: list[str]
    handoff_plan: str
    todo_list: list[str]
    acceptance_criteria: list[str]


class FewMetrics(BaseModel):
    secondary: list[str]
    guidance: str


class Bounded(BaseModel):
    route_plan: Annotated[list[str], Field(min_length=3, max_length=3)]
    route_rationale: Annotated[str, Field(max_length=60)]
    todo_list: Annotated[list[Annotated[str, Field(max_length=50)]], Field(min_length=6, max_length=7)]
    handoff_plan: Annotated[str, Field(max_length=70, min_length=30)]
    thinking_outline: list[Annotated[str, Field(max_length=12)]]
    tags: Annotated[list[Literal["a-b", "c", "Not One"]], Field(min_length=2)]
    difficulty: Literal["advanced", "expert", "introductory"] | None
    metrics: FewMetrics


class Within(BaseModel):
    """A plan deeper down, and fields of the client's own beside it."""

    summary: str
    plan: Bounded
    confidence: float


class Beside(Free):
    confidence: Annotated[float, Field(ge=0, le=1)]


class Steps(BaseModel):
    route_plan: list[str] | None
    todo_list: Annotated[list[str], Field(max_length=2)]


class NoRoute(BaseModel):
    handoff_plan: str
    todo_list: list[str]
    tags: Annotated[list[Annotated[str, Field(max_length=3)]], Field(min_length=3)]
    difficulty: str
    acceptance_criteria: Annotated[list[str], Field(max_length=1)]
    expected_artifacts: list[Annotated[str, Field(min_length=20, max_length=25)]]


class OneTool(BaseModel):
    todo_list: list[str]
    route_plan: list[Annotated[str, Field(max_length=19)]]
    handoff_plan: Annotated[str, Field(max_length=32)]


class Texts(BaseModel):
    """Lists or one text, as a client's language has them."""

    route_plan: str | list[str]
    todo_list: str | list[str]
    tags: list[str] | str
    handoff_plan: str
    metrics: str | dict[str, list[str]]


class Optional(BaseModel):
    """What may be missing, and what may be null."""

    route_plan: list[str]
    thinking_outline: list[str] | None
    expected_artifacts: list[str] = []
    acceptance_criteria: list[str] | None = None
    difficulty: str | None


class Wrapped(BaseModel):
    """A router's answer in an envelope, with a plan of few steps."""

    route_plan: Annotated[list[Annotated[str, Field(max_length=80)]], Field(max_length=2)]
    route_rationale: Annotated[str, Field(min_length=20)]
    todo_list: Annotated[list[str], Field(max_length=4)]
    needs_browser: bool
    language: Literal["en", "de", "fr"]


OWN: tuple[type[BaseModel], ...] = (
    Free,
    Bounded,
    Within,
    Beside,
    Steps,
    NoRoute,
    OneTool,
    Texts,
    Optional,
    Wrapped,
)
