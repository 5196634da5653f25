"""Runs the server until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import uvicorn

from router_backend import logs
from router_backend.errors import RouterError, SettingsError
from router_backend.server.app import create_app
from router_backend.settings import load_settings
from router_backend.start import build_service

_log = logging.getLogger(__name__)


def serve(*, host: str | None = None, port: int | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns 0.

    Raises:
        SettingsError: a variable is wrong, or the address cannot be bound.
        LoadError: the warm start failed and must not.
    """
    settings = load_settings(host=host, port=port)
    logs.configure(settings)
    listening = bind(settings.host, settings.port)
    fatal: list[RouterError] = []
    service = build_service(settings)
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
    )
    server = Server(config)

    def stop(error: RouterError) -> None:
        fatal.append(error)
        server.should_exit = True

    service.on_fatal = stop
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{name}:{listening.getsockname()[1]}"
    _log.info("serving on %s (UI at /gradio, console at /console, API at /docs)", address)
    server.run(sockets=[listening])
    if fatal:
        raise fatal[0]
    if service.is_loading:
        # Fetching and loading cannot be interrupted, only left; what was fetched so far is gone on from next time.
        logging.shutdown()
        os._exit(0)
    return 0


class Server(uvicorn.Server):
    """uvicorn's server; a drained shutdown is a success, and a second signal of either kind ends at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again at the end, which makes the exit code 143."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.should_exit:  # uvicorn's own way waits for open connections from Python 3.12 on
                os._exit(128 + number)
            self.should_exit = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


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
