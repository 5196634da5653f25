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
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from types import FrameType

import gradio as gr
import spaces
from fastapi import FastAPI, Request
from gradio.context import LocalContext
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from router_backend import engines, logs
from router_backend.checkpoints import machine
from router_backend.checkpoints.ladder import Attempt, Loaded, NothingLoads
from router_backend.checkpoints.machine import Accelerator
from router_backend.engines.base import Engine, LocalModel
from router_backend.engines.threaded import ThreadedEngine
from router_backend.errors import NotReady
from router_backend.plan.write import PlanWriter
from router_backend.server.app import create_app
from router_backend.server.serve import bind
from router_backend.service import tracing
from router_backend.service.loader import load_first, logged
from router_backend.service.service import GenerationService
from router_backend.settings import Settings, load_settings, outdated
from router_backend.space.engine import SpaceEngine, memory_gb
from router_backend.ui.blocks import build_blocks
from router_backend.ui.boundary import PATH, boundary
from router_backend.ui.look import options
from router_backend.ui.mount import attach, calls_of

_STARTUP = "/gradio_api/startup-events"
_log = logging.getLogger(__name__)


def serve(*, host: str | None = None, port: int | None = None) -> int:
    """Places the model, launches, and serves until SIGTERM or SIGINT ends the process. For the main thread.

    Raises:
        SettingsError: a variable is wrong, or the address cannot be bound.
        LoadError: nothing could be loaded, and ALLOW_WARM_START_FAILURE is not set.
    """
    settings = load_settings(host=host, port=port)
    logs.configure(settings)
    for line in outdated():
        _log.warning(line)
    tracing.configure(settings)
    bind(settings.host, settings.port).close()
    if settings.skip_warm_start:
        _log.info("SKIP_WARM_START has no meaning here: ZeroGPU wants the weights in place before it starts")
        settings = settings.model_copy(update={"skip_warm_start": False})
    with logs.captured():
        launch(GenerationService(settings, place(settings), reread=_cannot_reload))
    return 0


def place(settings: Settings) -> Callable[[Callable[[Attempt], None]], Loaded[Engine]]:
    """Loads the first rung that fits into the slice, in this thread, and returns what a service's `load` is.

    There is no GPU to try a rung on: what does not fit is known by arithmetic. In this thread, because ZeroGPU's
    stand-in for CUDA is in this one only.
    """
    name = f"ZeroGPU {settings.zerogpu_size}"
    room = round(memory_gb(settings) * 1e9)
    here = replace(machine.inspect(), accelerators=(Accelerator(name, room, room),))
    try:
        placed = load_first(settings, lambda rung: engines.load(rung, settings), logged(lambda attempt: None), here)
    except NothingLoads as error:
        if not settings.allow_warm_start_failure:
            raise
        spaces.GPU(_nothing)
        return partial(_fail, error)
    engine = _engine(placed, settings)
    return lambda report: Loaded(engine, placed.rung, placed.attempts)


def _engine(placed: Loaded[LocalModel], settings: Settings) -> Engine:
    """What runs on the processor needs no GPU, and costs nobody's quota."""
    model, rung = placed.model, placed.rung
    writer = PlanWriter(model, settings.tools)
    if model.info.engine == "llamacpp" or rung.strategy == "cpu" or settings.model_device == "cpu":
        spaces.GPU(_nothing)
        return ThreadedEngine(model, writer)
    return SpaceEngine(model, writer, settings, weights=rung.needs.weights if rung.needs else 0)


def _nothing() -> None:
    """A Space without a function for the GPU is not let start."""


def _cannot_reload() -> Callable[[Callable[[Attempt], None]], Loaded[Engine]]:
    raise NotReady("ZeroGPU takes weights at the start only: restart the Space to serve another checkpoint")


def _fail(error: NothingLoads, report: Callable[[Attempt], None]) -> Loaded[Engine]:
    raise error


def launch(service: GenerationService) -> None:
    """Serves the app and the UI until a signal comes, then drains."""
    settings = service.settings
    running: list[asyncio.AbstractEventLoop] = []
    app = create_app(service, ui=False)

    blocks = build_blocks(service)
    calls = calls_of(blocks, service)

    @contextlib.asynccontextmanager
    async def lifespan(gradio: FastAPI) -> AsyncIterator[None]:
        running.append(asyncio.get_running_loop())
        # In the place of all of Gradio's middleware, whose CORS layer answers before what `middleware` would add.
        stack, gradio.middleware_stack = gradio.middleware_stack, Door(app, blocks)
        assert stack is not None

        async def files(scope: Scope, receive: Receive, send: Send) -> None:
            await stack({**scope, "app": gradio}, receive, send)

        attach(app, boundary(blocks, files, calls, settings.max_body_bytes))
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
    while not told.wait(0.2):  # another thread may get the signal, which does not wake this one to handle it
        pass
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
