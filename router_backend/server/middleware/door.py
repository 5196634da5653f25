"""The door: a body must come in time; while the server drains, what is new is told to come back."""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router_backend.errors import NotReady, RequestTimeout
from router_backend.server.errors import respond
from router_backend.server.middleware.connection import Limits
from router_backend.server.middleware.guard import ALWAYS_PUBLIC
from router_backend.server.middleware.scope import is_ui, path_of
from router_backend.service.service import GenerationService

_OPEN = (ALWAYS_PUBLIC - {"/"}) | {"/metrics"}


class Door:
    """ASGI middleware. Without a service it never closes: there is nothing to drain."""

    def __init__(self, app: ASGIApp, service: GenerationService | None, limits: Limits) -> None:
        self._app = app
        self._service = service
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope) if scope["type"] == "http" else ""
        if scope["type"] != "http" or path in _OPEN:
            await self._app(scope, receive, send)
            return
        if self._service and self._service.is_stopping:
            answer = respond(NotReady("the server is shutting down", retry_after=5))
            answer.headers["Connection"] = "close"
            await answer(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            receive = in_time(receive, self._limits.body_seconds)
        if self._service is None or is_ui(path):  # its streams never end by themselves; the service knows what runs
            await self._app(scope, receive, send)
        else:
            with self._service.accepted():
                await self._app(scope, receive, send)


def in_time(receive: Receive, seconds: float) -> Receive:
    """Receives a body that is whole within `seconds`, and then whatever comes. Raises RequestTimeout."""
    until = anyio.current_time() + seconds
    whole = False

    async def body() -> Message:
        nonlocal whole
        if whole:
            return await receive()
        with anyio.CancelScope(deadline=until):
            message = await receive()
            whole = not message.get("more_body", False)
            return message
        raise RequestTimeout(f"the body did not come within {seconds:g} seconds")

    return body
