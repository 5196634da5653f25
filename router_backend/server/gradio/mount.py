"""Mounts the Gradio UI without paying for it at start: Gradio takes seconds to import."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router_backend.server.gradio.boundary import API, PATH, boundary
from router_backend.server.gradio.calls import Calls
from router_backend.server.middleware.scope import first_of_each, path_of
from router_backend.server.pages import moved
from router_backend.settings import Settings
from router_backend.ui.backend import Backend

if TYPE_CHECKING:
    import gradio as gr

_PATIENCE = 1.0  # seconds without a byte
_MISSING = "Gradio is not installed. Install it with <code>pip install 'router-backend[ui]'</code> and start again."
_log = logging.getLogger(__name__)
# A browser gets a page at once; what is written there goes along into the whole page.
_STARTING, _UNAVAILABLE = (Path(__file__).with_name(f"{name}.html") for name in ("starting", "unavailable"))


def attach(app: FastAPI, ui: ASGIApp) -> None:
    """Adds the UI to an app: at `/gradio` and below, and at the root, where clients look for it."""
    app.add_route(PATH, _to_folder, include_in_schema=False)
    for path in ("/config", f"{API}/{{path:path}}"):
        app.add_route(path, ui, include_in_schema=False)  # type: ignore[arg-type] # Route takes an ASGI app too
    app.mount(PATH, ui)


async def _to_folder(request: Request) -> RedirectResponse:
    """Gradio's page asks for its assets relative to a folder."""
    return moved(request, f"{PATH}/")


class LazyUI:
    """ASGI app: starts Gradio with the first request, which waits until it is there. Close it before the service."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ready: asyncio.Task[ASGIApp] | None = None
        self._calls: Calls | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready = self._started()
        if path_of(scope) == "/config" and not (await asyncio.wait({ready}, timeout=_PATIENCE))[0]:
            await _config_later(ready, scope, receive, send)
        elif path_of(scope) == "/" and not ready.done() and b"text/html" in first_of_each(scope).get(b"accept", b""):
            starting = HTMLResponse(_STARTING.read_text("utf-8"), headers={"Cache-Control": "no-store"})
            await starting(scope, receive, send)
        else:
            await (await asyncio.shield(ready))(scope, receive, send)

    async def close(self) -> None:
        """Ends its calls. Does nothing where Gradio was never started."""
        if self._ready is not None:
            await self._ready
        if self._calls is not None:
            await self._calls.close()

    def _started(self) -> asyncio.Task[ASGIApp]:
        if self._ready is None:
            self._ready = asyncio.create_task(self._start(), name="gradio")
        return self._ready

    async def _start(self) -> ASGIApp:
        try:
            inner = await asyncio.to_thread(_build, self._backend)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == "gradio"
            _log.log(logging.INFO if missing else logging.ERROR, "no UI: %s", error)
            return _unavailable(_MISSING if missing else "Gradio is installed, but cannot be imported.")
        except Exception:
            _log.exception("no UI")
            return _unavailable("Gradio could not be started; the server's log says why.")
        blocks = inner.get_blocks()
        self._calls = calls_of(blocks, self._backend.settings)
        return boundary(blocks, inner, self._calls, self._backend)


def calls_of(blocks: gr.Blocks, settings: Settings) -> Calls:
    """A key may have as many calls open as the server holds requests, and some whose answer is not read yet."""
    return Calls(blocks, 2 * (settings.slots + settings.queue_limit))


async def _config_later(ready: asyncio.Task[ASGIApp], scope: Scope, receive: Receive, send: Send) -> None:
    """Blanks, which JSON may begin with, until Gradio is there: its clients give up after five silent seconds."""

    async def rest(message: Message) -> None:
        if message["type"] == "http.response.body":
            await send(message)

    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while not ready.done():
        await send({"type": "http.response.body", "body": b" ", "more_body": True})
        await asyncio.wait({ready}, timeout=_PATIENCE)
    plain = [header for header in scope["headers"] if header[0] != b"accept-encoding"]
    await ready.result()({**scope, "headers": plain}, receive, rest)


def _build(backend: Backend) -> Any:  # noqa: ANN401 - Gradio is not imported yet
    """Gradio's own app. Blocks."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    from router_backend.ui.blocks import build_blocks
    from router_backend.ui.look import options

    outer = FastAPI(openapi_url=None)
    # When it makes its locks, Gradio opens an event loop for a thread that has none, and never closes it.
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        asyncio.set_event_loop(loop)
        try:
            gr.mount_gradio_app(outer, build_blocks(backend), PATH, **options())
        finally:
            asyncio.set_event_loop(None)
    return next(route for route in outer.routes if isinstance(route, Mount)).app


def _unavailable(why: str) -> HTMLResponse:
    return HTMLResponse(Template(_UNAVAILABLE.read_text("utf-8")).substitute(why=why), 503)
