"""create_app: the service behind its routes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from router_backend import __version__
from router_backend.server import errors
from router_backend.server.access_log import AccessLog
from router_backend.server.guard import Guard
from router_backend.server.health import health_router
from router_backend.server.native import native_router
from router_backend.server.pages import pages_router
from router_backend.service import GenerationService
from router_backend.ui.mount import LazyUI, mount_ui


def create_app(service: GenerationService, *, ui: bool = True) -> FastAPI:
    """The whole HTTP side. The service is started and closed with the app; `ui` adds Gradio at `/gradio`."""

    page: LazyUI | None = None

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        if page is not None:
            await page.close()
        await service.close()

    app = FastAPIOffline(  # FastAPI, with the files of /docs from here rather than from elsewhere on the net
        redoc_url=None,
        title="ZeroGPU Router Backend",
        version=__version__,
        summary="Serves router checkpoints: every answer is a whole routing plan inside its token budget.",
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    errors.install(app)
    app.include_router(native_router(service))
    app.include_router(health_router(service))
    app.include_router(pages_router())
    if ui:
        page = mount_ui(app, service)
    app.add_middleware(Guard, settings=service.settings)
    app.add_middleware(AccessLog)
    return app
