"""The router's own API: `/v1/generate` and `/v1/plan`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from router_backend.plan.prompt import router_prompt
from router_backend.plan.schema import Difficulty, Plan
from router_backend.server.body import (
    ERRORS,
    STREAM,
    Body,
    Budget,
    NonEmptyText,
    Prompt,
    Stop,
    Text,
    asked,
    post,
    sampling,
    usage_body,
)
from router_backend.server.disconnect import unless_gone
from router_backend.server.middleware import access_log
from router_backend.server.sse import stream
from router_backend.service.caller import caller
from router_backend.service.service import GenerationService
from router_backend.settings import Settings
from router_backend.types import Answer, Chunk, GenerateRequest, Output


class Sampling(Body):
    """The fields that say how to draw and what to send back."""

    max_new_tokens: Budget | None = Field(
        None, description="Token budget of the answer; a plan is written to fit. Default: MAX_NEW_TOKENS (600)."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0 is greedy. Default: DEFAULT_TEMPERATURE (0.2)."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Nucleus sampling; 0 is greedy. Default: DEFAULT_TOP_P (0.9)."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(None, description="Makes the answer repeatable.")
    stop: Annotated[list[Stop], Field(max_length=4)] | None = Field(
        None, description="Texts that end a raw answer (output=text). A plan is never cut."
    )
    stream: bool = Field(False, description="Server-sent events instead of one JSON object.")
    details: bool = Field(False, description="Adds usage, timings and the budget.")


class GenerateBody(Sampling):
    path: ClassVar[str] = "/v1/generate"
    prompt: Prompt
    output: Literal["plan", "text"] = Field("plan", description="A whole routing plan, or the model's raw text.")

    def asks(self) -> tuple[str, Output]:
        """The prompt, and what is to come."""
        return self.prompt, self.output


class Task(Body):
    """A query, and what the client knows about it; the canonical router prompt is built from these."""

    query: Prompt
    context: Text | None = None
    acceptance: Text | None = Field(None, description="What an acceptable answer must do.")
    guidance: Text | None = Field(None, description="How to go about it.")
    difficulty: Difficulty | None = None
    tags: Annotated[list[NonEmptyText], Field(max_length=32)] | None = None

    def prompt(self) -> str:
        return router_prompt(
            self.query,
            context=self.context,
            acceptance=self.acceptance,
            guidance=self.guidance,
            difficulty=self.difficulty,
            tags=tuple(self.tags or ()),
        )


class PlanBody(Sampling, Task):
    path: ClassVar[str] = "/v1/plan"

    def asks(self) -> tuple[str, Output]:
        return self.prompt(), "plan"


Asked: TypeAlias = GenerateBody | PlanBody
B = TypeVar("B", GenerateBody, PlanBody)


class Details(BaseModel):
    model: str
    strategy: str
    engine: str
    finish_reason: str
    seed: int
    usage: dict[str, Any]
    timings: dict[str, float]
    budget: dict[str, Any] | None
    route: list[dict[str, Any]] | None = Field(
        description="Of a plan: each step's tool, and the probabilities of all that could be in its place."
    )


class GenerateAnswer(BaseModel):
    text: str
    details: Details | None = None


class PlanAnswer(BaseModel):
    plan: Plan
    text: str
    report: Details


def work_of(body: Asked, settings: Settings) -> GenerateRequest:
    prompt, output = body.asks()
    drawn = sampling(settings, body.max_new_tokens, body.temperature, body.top_p, body.seed, body.stop)
    return GenerateRequest(caller.get().request_id, prompt, drawn, output)


def details(last: Chunk, seed: int) -> dict[str, Any]:
    """What an answer's last chunk tells of it."""
    info = last.info
    assert info is not None, "the service sets it"
    return {
        "model": info.model,
        "strategy": info.strategy,
        "engine": info.engine,
        "finish_reason": last.finish_reason,
        "seed": seed,
        "usage": usage_body(last.usage),
        "timings": {
            **{name: getattr(last.usage, name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")},
            **{name: round(value, 6) for name, value in asdict(last.timings).items()},
        },
        "budget": asdict(last.budget) if last.budget else None,
        "route": [
            {"tool": step.tool, "probabilities": dict(zip(step.odds.options, step.odds.probabilities, strict=True))}
            for step in last.route
        ]
        or None,
    }


def native_router(service: GenerationService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["router"], responses={**ERRORS, **STREAM})

    @post(router, "/generate", GenerateBody, GenerateAnswer, "Answer a prompt with a routing plan")
    async def generate(request: Request) -> Response:
        def content(body: GenerateBody, answer: Answer) -> dict[str, Any]:
            report = {"details": details(answer.last, answer.seed)} if body.details else {}
            return {"text": answer.text, **report}

        return await _respond(request, service, GenerateBody, content)

    @post(router, "/plan", PlanBody, PlanAnswer, "Answer a query with a parsed routing plan")
    async def plan(request: Request) -> Response:
        def content(body: PlanBody, answer: Answer) -> dict[str, Any]:
            report = details(answer.last, answer.seed)
            return {"plan": json.loads(answer.text), "text": answer.text, "report": report}

        return await _respond(request, service, PlanBody, content)

    return router


async def _respond(
    request: Request,
    service: GenerationService,
    model: type[B],
    content: Callable[[B, Answer], dict[str, Any]],
) -> Response:
    """Answers with a stream or, with `content` made of the answer, with one JSON object; nobody who has left."""
    body, work = await asked(request, service, model, lambda body: work_of(body, service.settings))
    if body.stream:
        return await unless_gone(request, stream(_events(request, service, work, body.details)))
    answer = await unless_gone(request, service.answer(work))
    access_log.note(request, answer.last, work.prompt)
    access_log.routed(request, answer.last)
    return JSONResponse(content(body, answer))


async def _events(
    request: Request, service: GenerationService, work: GenerateRequest, with_details: bool
) -> AsyncGenerator[dict[str, object], None]:
    async with aclosing(service.generate(work)) as chunks:
        async for chunk in chunks:
            access_log.routed(request, chunk)
            if chunk.text:
                yield {"text": chunk.text}
            if chunk.finish_reason is not None:
                access_log.note(request, chunk, work.prompt)
                last: dict[str, object] = {"text": "", "finish_reason": chunk.finish_reason}
                if with_details:
                    last["details"] = details(chunk, work.sampling.seed)
                yield last
