"""`/admin/reload`, for the holder of the admin key. There is no such route where none is set."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from router_backend.errors import Forbidden
from router_backend.server.errors import ErrorBody
from router_backend.service.caller import caller
from router_backend.service.service import GenerationService


class Reloaded(BaseModel):
    model: str
    strategy: str
    engine: str


def admin_router(service: GenerationService) -> APIRouter:
    router = APIRouter(prefix="/admin", tags=["admin"])
    if not service.settings.admin_key:
        return router

    @router.post("/reload", response_model=Reloaded, responses={403: {"model": ErrorBody}, 503: {"model": ErrorBody}})
    async def reload() -> Reloaded:
        """Loads what the settings name by now (`.env` is read again). Answers when it serves; nothing is dropped."""
        if not caller.get().admin:
            raise Forbidden("this needs the admin key")
        info = await service.reload()
        return Reloaded(model=info.model, strategy=info.strategy, engine=info.engine)

    return router
