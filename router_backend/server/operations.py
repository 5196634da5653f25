"""What whoever runs the server asks: the health family, `/metrics` and `/admin/reload`.

The health family never touches the model and never waits for a generation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from router_backend import __version__
from router_backend.checkpoints.ladder import Attempt
from router_backend.errors import Forbidden
from router_backend.server.errors import ErrorBody
from router_backend.service.caller import caller
from router_backend.service.health import Health
from router_backend.service.service import GenerationService
from router_backend.types import ModelInfo


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
    stand_in: bool
    attempts: list[Attempt]
    context_length: int | None
    smallest_budget: int | None
    queue: Queue
    gpu: dict[str, Any] | None
    upstream: dict[str, Any] | None
    warnings: list[str]
    version: str


class Probe(BaseModel):
    state: str
    phase: str
    detail: str
    elapsed_seconds: float


class Reloaded(BaseModel):
    model: str
    strategy: str
    engine: str


UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"description": "Not now", "model": Probe}}


def health_router(service: GenerationService, figures: Callable[[], Awaitable[bytes]] | None = None) -> APIRouter:
    """`figures` gives the metrics, where they are more than this service's own."""
    router = APIRouter(tags=["health"])

    @router.get("/health", response_model=HealthBody, responses={503: {"model": HealthBody}})
    async def health() -> JSONResponse:
        """What is served and why. 200 while `ok` or `idle`, 503 while `loading`, `failed` or `stopping`."""
        now = service.health()
        return JSONResponse(health_body(now), 200 if now.status in ("ok", "idle") else 503)

    def probe(name: str, what: str, passes: Callable[[Health], bool]) -> None:
        @router.get(f"/{name}", name=name, description=what, response_model=Probe, responses=UNAVAILABLE)
        async def answer() -> JSONResponse:
            now = service.health()
            said = Probe(state=now.status, phase=now.phase, detail=now.reason, elapsed_seconds=now.elapsed_seconds)
            return JSONResponse(said.model_dump(), 200 if passes(now) else 503)

    probe("livez", "The process is alive, and can help; where only a new one can, 503.", lambda now: now.alive)
    probe("readyz", "Takes traffic now.", lambda now: now.status in ("ok", "idle"))
    probe("startupz", "Has finished starting.", lambda now: now.status not in ("loading", "failed"))

    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    @router.get("/metrics", response_class=Response, responses={200: text}, summary="Prometheus text")
    async def metrics() -> Response:
        text = await figures() if figures else generate_latest(service.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router


def admin_router(service: GenerationService) -> APIRouter:
    """`/admin/reload`, for the holder of the admin key. There is no such route where none is set."""
    router = APIRouter(prefix="/admin", tags=["admin"])
    if not service.settings.admin_key:
        return router

    @router.post("/reload", response_model=Reloaded, responses={403: {"model": ErrorBody}, 503: {"model": ErrorBody}})
    async def reload() -> ModelInfo:
        """Loads what the settings name by now (`.env` is read again). Answers when it serves; nothing is dropped."""
        if not caller.get().admin:
            raise Forbidden("this needs the admin key")
        return await service.host.reload()

    return router


def health_body(now: Health) -> dict[str, Any]:
    """What `/health` says, as JSON."""
    return {
        "status": now.status,
        "model": now.model,
        "strategy": now.strategy,
        "engine": now.engine,
        "reason": now.reason,
        "stand_in": now.stand_in,
        "attempts": [asdict(attempt) for attempt in now.attempts],
        "context_length": now.info.context_length if now.info else None,
        "smallest_budget": now.smallest_budget,
        "queue": {"running": now.running, "waiting": now.waiting, "slots": now.info.slots if now.info else 0},
        "gpu": asdict(now.gpu) if now.gpu else None,
        "upstream": asdict(now.info.upstream) if now.info and now.info.upstream else None,
        "warnings": list(now.info.warnings) if now.info else [],
        "version": __version__,
    }
