"""The page alone, as a client of a backend elsewhere: no model here, and of that backend its public API only."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

import uvicorn
from fastapi import FastAPI

from router_backend import logs
from router_backend.server import errors
from router_backend.server.app import protect
from router_backend.server.gradio.mount import mount_ui
from router_backend.server.middleware.connection import Limits
from router_backend.server.pages import pages_router
from router_backend.server.serve import bind, configuration, handled
from router_backend.service.metrics import Metrics
from router_backend.settings import Settings, load_settings
from router_backend.ui.backend import RemoteBackend

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn's server, for which to be told to stop is a success: its own raises the signal again at the end."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override] # as it is used
        return handled(dict.fromkeys((signal.SIGINT, signal.SIGTERM), self.handle_exit))


def create_page(settings: Settings, backend: RemoteBackend) -> FastAPI:
    """The page behind the same middleware as the whole server: names, keys, limits and log are those of `serve`."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await page.close()

    app = FastAPI(openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    errors.install(app)
    app.include_router(pages_router())
    page = mount_ui(app, backend)
    protect(app, settings, backend, Metrics(), Limits())
    return app


def serve_page(url: str, api_key: str | None, *, host: str | None = None, port: int | None = None) -> int:
    """Serves the page until SIGTERM or SIGINT; returns 0.

    Raises:
        SettingsError: a variable, the URL or the key is wrong, or the address cannot be bound.
    """
    settings = load_settings(host=host, port=port)
    logs.configure(settings)
    backend = RemoteBackend(settings, url, api_key)
    listening = bind(settings.host, settings.port)
    listening.listen()  # who comes before the server is ready waits for it
    address = f"http://{settings.host}:{listening.getsockname()[1]}"
    _log.info("serving on %s (UI at /gradio), for the backend at %s", address, backend.client.url)
    with logs.captured():
        Server(configuration(create_page(settings, backend))).run(sockets=[listening])
    return 0
