"""The health family: never touches the model, never waits for a generation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from router_backend import __version__
from router_backend.service.service import GenerationService, Health


class AttemptBody(BaseModel):
    candidate: str
    strategy: str
    outcome: str
    reason: str
    seconds: float


class Queue(BaseModel):
    running: int
    waiting: int
    slots: int


class HealthBody(BaseModel):
    status: str
    model: str | None
    strategy: str
    engine: str | None
    reason: str
    attempts: list[AttemptBody]
    context_length: int | None
    smallest_budget: int | None
    queue: Queue
    gpu: dict[str, Any] | None
    version: str


class Probe(BaseModel):
    state: str
    phase: str
    detail: str
    elapsed_seconds: float


UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"description": "Not now", "model": Probe}}


def health_router(service: GenerationService) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/health", response_model=HealthBody, responses={503: {"model": HealthBody}})
    async def health() -> JSONResponse:
        """What is served and why. 200 while `ok` or `idle`, 503 while `loading`, `failed` or `stopping`."""
        now = service.health()
        return JSONResponse(_health_body(now), 200 if now.status in ("ok", "idle") else 503)

    @router.get("/livez", response_model=Probe, responses=UNAVAILABLE)
    async def livez() -> JSONResponse:
        """The process is alive, and can help; where only a new one can, 503."""
        now = service.health()
        return JSONResponse(_probe(now), 200 if now.alive else 503)

    @router.get("/readyz", response_model=Probe, responses=UNAVAILABLE)
    async def readyz() -> JSONResponse:
        """Takes traffic now."""
        now = service.health()
        return JSONResponse(_probe(now), 200 if now.status in ("ok", "idle") else 503)

    @router.get("/startupz", response_model=Probe, responses=UNAVAILABLE)
    async def startupz() -> JSONResponse:
        """Has finished starting."""
        now = service.health()
        return JSONResponse(_probe(now), 503 if now.status in ("loading", "failed") else 200)

    return router


def _probe(now: Health) -> dict[str, Any]:
    detail = now.reason
    return {"state": now.status, "phase": now.phase, "detail": detail, "elapsed_seconds": now.elapsed_seconds}


def _health_body(now: Health) -> dict[str, Any]:
    return {
        "status": now.status,
        "model": now.model,
        "strategy": now.strategy,
        "engine": now.engine,
        "reason": now.reason,
        "attempts": [asdict(attempt) for attempt in now.attempts],
        "context_length": now.info.context_length if now.info else None,
        "smallest_budget": now.smallest_budget,
        "queue": {
            "running": now.running,
            "waiting": now.waiting,
            "slots": now.info.slots if now.info else 0,
        },
        "gpu": asdict(now.gpu) if now.gpu else None,
        "version": __version__,
    }
