"""What Ray's HTTP proxies do in front of the replicas, so that a client sees one server.

A request whose replica died is a 503 that may be sent again, in our shape. What a proxy says of its own is too. One
client's calls of the UI go to one replica, which keeps them. Each proxy finds `middlewares` by `PROXY_VARIABLE`.
"""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router_backend.errors import EngineLost, NotReady
from router_backend.server.errors import describe, respond
from router_backend.server.middleware.scope import first_of_each
from router_backend.server.sse import DONE, event

SESSION = b"x-session-id"  # the header by whose value Serve chooses a replica
_OURS = b"x-content-type-options"  # stands in each answer of the app, and in none of Ray's
_ID = b"x-request-id"


def middlewares() -> list[Middleware]:
    """As Ray asks for them."""
    return [Middleware(Front)]


class Front:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Ray's own probes
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        await self._app(_with_session(scope), receive, answer)
        await answer.end(scope, receive)


class _Answer:
    """What was sent so far, and how it ends where the replica does not end it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None  # waits for the body: a replica may die between the two
        self._refused = self._started = self._ended = self._streams = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"]
            self._refused = message["status"] >= 400 and _OURS not in {name.lower() for name, _ in headers}
            self._streams = any(value.startswith(b"text/event-stream") for _, value in headers)
            self._head = {**message, "headers": _one_id(headers)}
            return
        if self._refused:
            return
        if self._head is not None:
            head, self._head, self._started = self._head, None, True
            await self._send(head)
        self._ended = not message.get("more_body", False)
        await self._send(message)

    async def end(self, scope: Scope, receive: Receive) -> None:
        lost = EngineLost("the replica that worked on this request is gone; send it again", retry_after=1)
        if self._refused:
            busy = NotReady("no replica can take this request now; send it again", retry_after=2)
            await respond(busy)(scope, receive, self._send)
        elif not self._started:
            await respond(lost)(scope, receive, self._send)
        elif not self._ended and self._streams:
            await self._send({"type": "http.response.body", "body": event(describe(lost)) + DONE})


def _with_session(scope: Scope) -> Scope:
    """A request of the UI, with a session: the client's own, or the address that it comes from."""
    path = scope["path"]
    if SESSION in first_of_each(scope) or not ("/gradio" in path or path.endswith("/config")):
        return scope
    address = str((scope.get("client") or ("",))[0])
    session = hashlib.sha256(address.encode()).hexdigest()[:16].encode()
    return {**scope, "headers": [*scope["headers"], (SESSION, session)]}


def _one_id(headers: Any) -> list[tuple[bytes, bytes]]:  # noqa: ANN401 - pairs, however ASGI servers give them
    """The headers without the second request id: the app has said it, then the proxy did."""
    pairs = [(bytes(name), bytes(value)) for name, value in headers]
    first = next((pair for pair in pairs if pair[0].lower() == _ID), None)
    return [pair for pair in pairs if pair is first or pair[0].lower() != _ID]
