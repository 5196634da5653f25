"""Mounts the Gradio UI without paying for it at start: Gradio takes seconds to import."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from router_backend.service.service import GenerationService

PATH = "/gradio"
_log = logging.getLogger(__name__)
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">
<title>Router</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:12vh auto;padding:0 1.25rem}}
code{{font-family:ui-monospace,monospace}}</style>
<h1>The UI is not available</h1><p>{why}</p>
<p>The <a href="{console}">console</a> needs nothing more, and the API works as ever.</p></html>"""


def mount_ui(app: FastAPI, service: GenerationService) -> LazyUI:
    """Adds the UI to an app, at `/gradio` and below. Await its `close` before the service's."""
    ui = LazyUI(service)
    app.add_route(PATH, ui, include_in_schema=False)  # type: ignore[arg-type] # Route takes an ASGI app too
    app.mount(PATH, ui)
    return ui


class LazyUI:
    """ASGI app: starts Gradio with the first request (or `warm`), which waits until it is there."""

    def __init__(self, service: GenerationService) -> None:
        self._service = service
        self._life: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[ASGIApp] | None = None
        self._stop = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "").removesuffix(PATH)
        app: ASGIApp
        if (
            scope["type"] == "http" and scope["path"] == root + PATH
        ):  # Gradio's page asks for its assets relative to a folder
            query = scope["query_string"].decode("latin-1")
            app = RedirectResponse(f"{root}{PATH}/" + (f"?{query}" if query else ""), 307)
        else:
            app = await self._started()
        await app({**scope, "root_path": root}, receive, send)

    async def warm(self) -> None:
        """Starts Gradio now, and returns when it can answer (or is known not to be installed)."""
        await self._started()

    async def close(self) -> None:
        """Ends the queue and its tasks. Does nothing where Gradio was never started."""
        self._stop.set()
        if self._life is not None:
            await self._life

    async def _started(self) -> ASGIApp:
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._life = asyncio.create_task(self._live(self._ready), name="gradio")
        return await asyncio.shield(self._ready)

    async def _live(self, ready: asyncio.Future[ASGIApp]) -> None:
        """One task from start to end, so that Gradio's contexts are left where they were entered."""
        try:
            outer, inner = await asyncio.to_thread(_build, self._service)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == "gradio"
            _log.log(logging.INFO if missing else logging.ERROR, "no UI: %s", error)
            ready.set_result(_unavailable(None if missing else "Gradio is installed, but cannot be imported."))
            return
        except Exception:
            _log.exception("no UI")
            ready.set_result(_unavailable("Gradio could not be started; the server's log says why."))
            return
        blocks = inner.get_blocks()
        async with inner.router.lifespan_context(inner):
            # Gradio looks for work every millisecond, which costs 5 % of a core; this is its own value for Windows.
            blocks._queue.sleep_when_free = blocks._queue.progress_update_sleep_when_free = 0.05
            before = asyncio.all_tasks()
            blocks.run_startup_events()
            queue_tasks = asyncio.all_tasks() - before
            await blocks.run_extra_startup_events()
            ready.set_result(outer)
            await self._stop.wait()
            blocks.close(verbose=False)
            for task in queue_tasks:
                task.cancel()
            await asyncio.gather(*queue_tasks, return_exceptions=True)


def _build(service: GenerationService) -> tuple[FastAPI, Any]:
    """A small app with Gradio at its path, and Gradio's own app in it, whose life the caller leads. Blocks."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    from router_backend.ui.blocks import build_blocks
    from router_backend.ui.look import options

    outer = FastAPI(openapi_url=None, redirect_slashes=False)
    with _loop_of_its_own():
        gr.mount_gradio_app(
            outer,
            build_blocks(service),
            PATH,
            **options(),
        )
    mount = next(route for route in outer.routes if isinstance(route, Mount))
    return outer, mount.app


@contextlib.contextmanager
def _loop_of_its_own() -> Iterator[None]:
    """Gradio opens an event loop for a thread that has none when it makes its locks, and never closes it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _unavailable(why: str | None) -> HTMLResponse:
    how = "Gradio is not installed. Install it with <code>pip install 'router-backend[ui]'</code> and start again."
    return HTMLResponse(_PAGE.format(why=why or how, console="../console"), 503)
