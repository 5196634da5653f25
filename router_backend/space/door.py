"""The door: Gradio's app is what ZeroGPU must see launched, and ours answers in it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator
from types import FrameType

import gradio as gr
import spaces
from fastapi import FastAPI, Request
from gradio.context import LocalContext
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from router_backend import logs
from router_backend.server.app import create_app
from router_backend.server.gradio.boundary import PATH, boundary
from router_backend.server.gradio.mount import attach, calls_of
from router_backend.server.serve import begin, bind
from router_backend.service.service import GenerationService
from router_backend.space.placing import Placing
from router_backend.ui.backend import LocalBackend
from router_backend.ui.blocks import build_blocks
from router_backend.ui.look import options

_STARTUP = "/gradio_api/startup-events"
_log = logging.getLogger(__name__)


def serve(*, host: str | None = None, port: int | None = None) -> int:
    """Places the model, launches, and serves until SIGTERM or SIGINT ends the process. For the main thread.

    Raises:
        SettingsError: a variable is wrong, or the address cannot be bound.
        LoadError: nothing could be loaded, and ALLOW_WARM_START_FAILURE is not set.
    """
    settings = begin(host, port)
    bind(settings.host, settings.port).close()
    if settings.skip_warm_start:
        _log.info("SKIP_WARM_START has no meaning here: ZeroGPU wants the weights in place before it starts")
        settings = settings.model_copy(update={"skip_warm_start": False})
    spaces.GPU(_nothing)
    fork_in_turn()
    with logs.captured():
        placing = Placing(settings)
        launch(GenerationService(settings, placing.load, reread=placing.reread), placing)
    return 0


def fork_in_turn() -> None:
    """From now on a thread of this process forks when no other does.

    `spaces` forks a worker in each call's thread, and filelock 4 refuses a fork while another one is under way (from
    Python 3.12 on). The GPU of the call would have been lent by then, and stay so.
    """
    fork, turn = os.fork, threading.Lock()

    def alone() -> int:
        with turn:  # in the child it is this thread that goes on, and lets go
            return fork()

    os.fork = alone


def _nothing() -> None:
    """A Space without a function for the GPU is not let start."""


def launch(service: GenerationService, placing: Placing) -> None:
    """Serves the app and the UI until a signal comes, then drains."""
    settings = service.settings
    running: list[asyncio.AbstractEventLoop] = []
    app = create_app(service, ui=False)

    backend = LocalBackend(service)
    blocks = build_blocks(backend)
    calls = calls_of(blocks, settings)

    @contextlib.asynccontextmanager
    async def lifespan(gradio: FastAPI) -> AsyncIterator[None]:
        running.append(asyncio.get_running_loop())
        # In the place of all of Gradio's middleware, whose CORS layer answers before what `middleware` would add.
        stack, gradio.middleware_stack = gradio.middleware_stack, Door(app, blocks)
        assert stack is not None

        async def files(scope: Scope, receive: Receive, send: Send) -> None:
            await stack({**scope, "app": gradio}, receive, send)

        attach(app, boundary(blocks, files, calls, backend))
        async with app.router.lifespan_context(app):
            yield

    told = _on_signals()
    blocks.launch(
        server_name=settings.host,
        server_port=settings.port,
        root_path=PATH,
        app_kwargs={"lifespan": lifespan},
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        **options(),
    )
    _log.info(
        "serving on http://%s:%d (UI at /gradio, console at /console, API at /docs)", settings.host, settings.port
    )
    placing.work(until=told)
    draining = asyncio.run_coroutine_threadsafe(service.close(), running[0])
    with contextlib.suppress(concurrent.futures.TimeoutError):
        draining.result(settings.drain_timeout + 5)
    _end_workers()
    logging.shutdown()
    os._exit(0)  # a thread that waits for a GPU would be waited for


class Door:
    """ASGI app in the place of Gradio's: all that comes is for ours, which asks Gradio for what is below /gradio.

    So keys, request ids, errors and the log are the same for both, and the same as without ZeroGPU.
    """

    def __init__(self, ours: FastAPI, blocks: gr.Blocks) -> None:
        self._ours, self._blocks = ours, blocks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == _STARTUP:  # asked by `launch`, to start a queue that is not used
            await JSONResponse(True)(scope, receive, send)
            return
        # `spaces` looks here for the token that says whose quota a call uses, and for the server's port, whose sockets
        # a worker must not keep open. Each request is a task, with a context of its own.
        LocalContext.blocks.set(self._blocks)
        if scope["type"] == "http":
            LocalContext.request.set(gr.Request(Request(scope)))
        await self._ours({**scope, "root_path": ""}, receive, send)


def _on_signals() -> threading.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once."""
    told = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if told.is_set():
            _end_workers()
            os._exit(128 + number)
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return told


def _end_workers() -> None:
    """They outlive a process that is ended by a signal, and hold the GPU."""
    for worker in multiprocessing.active_children():
        worker.kill()
