"""The apps: the service behind its routes, and the page alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline

from router_backend import __version__
from router_backend.server import errors
from router_backend.server.gradio.mount import LazyUI, attach
from router_backend.server.mcp import mount_mcp
from router_backend.server.middleware.access_log import AccessLog
from router_backend.server.middleware.connection import Limits
from router_backend.server.middleware.door import Door
from router_backend.server.middleware.guard import Guard, Heads
from router_backend.server.middleware.scope import HeadAsGet, Prefix
from router_backend.server.native import native_router
from router_backend.server.openai.decisions import decisions_router
from router_backend.server.openai.routes import openai_router
from router_backend.server.operations import admin_router, health_router
from router_backend.server.pages import pages_router
from router_backend.service.metrics import Metrics
from router_backend.service.service import GenerationService
from router_backend.settings import Settings, split_list
from router_backend.ui.backend import LocalBackend, RemoteBackend


def create_app(
    service: GenerationService,
    *,
    ui: bool = True,
    limits: Limits | None = None,
    figures: Callable[[], Awaitable[bytes]] | None = None,
) -> FastAPI:
    """The whole HTTP side. The service is started and closed with the app; `ui` adds Gradio at `/gradio`.

    `figures` gives what `/metrics` says, where it is more than this service's own.
    """
    page = LazyUI(LocalBackend(service))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
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
    app.include_router(health_router(service, figures))
    app.include_router(openai_router(service))
    app.include_router(decisions_router(service))
    app.include_router(admin_router(service))
    app.include_router(pages_router())
    mount_mcp(app, service)
    if ui:
        attach(app, page)
    protect(app, service.settings, service, limits or Limits())
    return app


def create_page(settings: Settings, backend: RemoteBackend) -> FastAPI:
    """The page alone, for a backend elsewhere: behind what every request passes in the whole server, too."""
    page = LazyUI(backend)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await page.close()

    app = FastAPI(openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    errors.install(app)
    app.include_router(pages_router())
    attach(app, page)
    protect(app, settings, None, Limits())
    return app


def protect(app: FastAPI, settings: Settings, service: GenerationService | None, limits: Limits) -> None:
    """What every request passes before it reaches its route, from the inside out."""
    app.add_middleware(HeadAsGet)
    app.add_middleware(Door, service=service, limits=limits)
    app.add_middleware(Guard, settings=settings)
    if origins := split_list(settings.cors_origins):  # before the guard, which no preflight can satisfy
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_private_network=True,  # of those origins: older Chromes ask where this is a laptop
            allow_headers=["*"],  # what is asked for is echoed: the clients of browsers send a dozen of their own
            expose_headers=["x-request-id", "retry-after", "x-router-route", "x-router-confidence"],
        )
    app.add_middleware(Heads, settings=settings, limits=limits)
    app.add_middleware(AccessLog, metrics=service.metrics if service else Metrics(), settings=settings)
    app.add_middleware(Prefix, root_path=settings.root_path)
