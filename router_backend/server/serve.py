"""Runs the server, or the page alone, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import uvicorn

from router_backend import logs
from router_backend.engines.daemon import any_at_work
from router_backend.errors import RouterError, SettingsError
from router_backend.server.app import create_app, create_page
from router_backend.server.middleware.connection import ACCEPTED_AT_ONCE, Limits, connections
from router_backend.service import tracing
from router_backend.service.loader import Loader
from router_backend.service.service import GenerationService
from router_backend.settings import Settings, load_settings, outdated
from router_backend.ui.backend import RemoteBackend

Handler = Callable[[int, FrameType | None], None]
_log = logging.getLogger(__name__)
_BACKLOG = 2048  # connections that the system keeps until they are accepted


def serve(*, host: str | None = None, port: int | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns 0. SIGHUP reloads the checkpoint.

    Raises:
        SettingsError: a variable is wrong, or the address cannot be bound.
        LoadError: the warm start failed and must not.
    """
    settings = begin(host, port)
    listening = bind(settings.host, settings.port)
    fatal: list[RouterError] = []
    loader = Loader(settings)
    service = GenerationService(settings, loader.load, reread=lambda: loader.reread().load)
    server = Server(configuration(create_app(service)), service)

    def stop(error: RouterError) -> None:
        fatal.append(error)
        server.should_exit = True

    service.host.on_fatal = stop
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{name}:{listening.getsockname()[1]}"
    _log.info("serving on %s (UI at /gradio, console at /console, API at /docs)", address)
    with logs.captured():
        server.run(sockets=[listening])
    if fatal:
        raise fatal[0]
    if any_at_work():
        # Fetching and loading cannot be interrupted, only left; what was fetched so far is gone on from next time.
        logging.shutdown()
        os._exit(0)
    return 0


def serve_page(url: str, api_key: str | None, *, host: str | None = None, port: int | None = None) -> int:
    """Serves the page alone, for the backend at `url`, until SIGTERM or SIGINT; returns 0.

    No model is here, and of that backend its public API is used only.

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
        PageServer(configuration(create_page(settings, backend))).run(sockets=[listening])
    return 0


def configuration(app: Callable[..., Any], limits: Limits | None = None) -> uvicorn.Config:
    """uvicorn, told what this server wants. Its own shutdown comes after the service has drained."""
    return uvicorn.Config(
        app,
        http=connections(limits or Limits()),
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=1,
    )


class Server(uvicorn.Server):
    """uvicorn's server, whose socket stays open until the service has drained: what is new gets its 503.

    A drained shutdown is a success, and a second signal of either kind ends at once.
    """

    def __init__(self, config: uvicorn.Config, service: GenerationService) -> None:
        super().__init__(config)
        self._service = service
        self._tasks: set[asyncio.Task[None]] = set()
        self._told = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():  # asyncio has taken the number that it accepts at once for this one
            each.listen(_BACKLOG)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override] # as it is used
        """uvicorn's own closes the socket first, and raises the signal again at the end, which makes the code 143."""
        loop = asyncio.get_running_loop()

        def stop(number: int, frame: FrameType | None) -> None:
            if self._told:  # uvicorn's own way waits for open connections from Python 3.12 on
                os._exit(128 + number)
            self._told = True
            loop.call_soon_threadsafe(self._begin, self._drain())

        def reload(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._begin, self._reload())

        handlers: dict[int, Handler] = {signal.SIGINT: stop, signal.SIGTERM: stop}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = reload
        return handled(handlers)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        _log.info("draining: what is new is refused, what runs may finish")
        try:
            await self._service.drain()
        finally:
            self.should_exit = True

    async def _reload(self) -> None:
        _log.info("reloading the checkpoint")
        with contextlib.suppress(RouterError):  # told in the log, and the old one goes on
            await self._service.host.reload()


class PageServer(uvicorn.Server):
    """uvicorn's server, for which to be told to stop is a success: its own raises the signal again at the end."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override] # as it is used
        return handled(dict.fromkeys((signal.SIGINT, signal.SIGTERM), self.handle_exit))


@contextlib.contextmanager
def handled(handlers: dict[int, Handler]) -> Iterator[None]:
    """Signals are handled by these within it, and as before after it."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def begin(host: str | None, port: int | None) -> Settings:
    """The settings of a server, whose logs and traces begin here. Raises SettingsError where a variable is wrong."""
    settings = load_settings(host=host, port=port)
    logs.configure(settings)
    for line in outdated():
        _log.warning(line)
    tracing.configure(settings)
    return settings


def bind(host: str, port: int) -> socket.socket:
    """A socket bound before anything is loaded, so that a taken port is the first thing one hears."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's delay (40 ms an answer) off only where it is.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, TypeError) as error:  # TypeError: a name that cannot be one
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"HOST={host} PORT={port}: cannot serve there: {reason}; choose another (PORT, --port)"
        ) from None
    return listening
