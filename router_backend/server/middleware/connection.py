"""uvicorn's HTTP/1.1 connection, with patience that ends: for a head that does not come, a reader who does not read.

There are never so many that the process runs out of descriptors, and with them of the means to answer a probe.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from router_backend.errors import Overloaded
from router_backend.server.errors import error_body, respond
from router_backend.server.middleware.scope import path_of

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

PROBES = frozenset({"/health", "/livez", "/readyz", "/startupz"})
_log = logging.getLogger(__name__)
_SAID = json.dumps(error_body("the request is not valid HTTP", "invalid_request_error", None, "invalid_http")).encode()
_NOT_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_SAID), _SAID)
)
# Connections at most, and what of the limit of descriptors is left to the rest of the process: half of a small one.
_MOST, _RESERVE = 4096, 256
# Sockets that asyncio accepts before it lets one of them speak. Its own number fits no small limit.
ACCEPTED_AT_ONCE = 8


def _most_connections() -> int:
    """As many as the limit of descriptors leaves."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else 2 * _MOST
    soft = soft if 0 < soft < 2 * _MOST else 2 * _MOST  # there may be none at all
    return min(_MOST, soft - min(_RESERVE, soft // 2))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may cost before it is refused or cut off.

    Attributes:
        url_bytes: of path and query; a longer one is a 414.
        header_bytes: of all request headers; more are a 431.
        header_seconds: until the request headers are complete.
        body_seconds: until the body is complete; then a 408.
        write_seconds: for which a reader may leave unread what was sent to it.
        connections: at once. For one more, an idle one is closed; where all are at work, it is for probes alone, and
            beyond `spare` more it is closed at once.
    """

    url_bytes: int = 8192
    header_bytes: int = 32_768
    header_seconds: float = 10
    body_seconds: float = 30
    write_seconds: float = 30
    connections: int = field(default_factory=_most_connections)

    @property
    def spare(self) -> int:
        """Connections beyond the limit on which probes are answered."""
        return max(8, min(_RESERVE, self.connections) // 4)


class Crowd:
    """Says that there are too many, once a second at most."""

    def __init__(self, most: int) -> None:
        self._most, self._since, self._said_at = most, 0, 0.0

    def closed(self, now_open: int) -> None:
        self._since += 1
        now = time.monotonic()
        if now - self._said_at >= 1:
            _log.warning(
                "too many connections: the idle ones are closed, the surplus is refused",
                extra={"open": now_open, "limit": self._most, "times": self._since},
            )
            self._since, self._said_at = 0, now


def probes_only(app: ASGIApp) -> ASGIApp:
    """The app for a surplus connection: probes are answered, all else is told to come back."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and path_of(scope) not in PROBES:
            busy = respond(Overloaded("the server has too many connections; try again later", retry_after=1))
            busy.headers["Connection"] = "close"
            await busy(scope, receive, send)
            return
        await app(scope, receive, send)

    return answer


def connections(limits: Limits) -> type[H11Protocol]:
    """The protocol class for these limits. (A slow body is the door's matter, which can say so.)"""
    open_ones: dict[Connection, None] = {}  # the oldest first
    crowd = Crowd(limits.connections)

    class Connection(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _read: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()
            self._make_room()
            open_ones[self] = None

        def _make_room(self) -> None:
            """Closes the oldest connection that has sent no request yet, or else one between two requests."""
            if len(open_ones) < limits.connections:
                return
            idle = [each for each in open_ones if each.is_idle]
            victim = next((each for each in idle if each.cycle is None), idle[0] if idle else None)
            crowd.closed(len(open_ones))
            if victim is not None:
                del open_ones[victim]
                victim.transport.abort()
            elif len(open_ones) < limits.connections + limits.spare:
                self.app = probes_only(self.app)
            else:
                self.transport.abort()

        @property
        def is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP, told in our shape; in the midst of an answer by the end of the connection alone."""
            if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
                self.transport.write(_NOT_HTTP)
            self.transport.close()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            if before is not None and before.response_complete:
                self._await_head()
            super().data_received(data)
            if self.cycle is not before or self.transport.get_protocol() is not self:
                self._has_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._read = self._read or self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._is_read()

        def connection_lost(self, exc: Exception | None) -> None:
            open_ones.pop(self, None)
            self._has_head()
            self._is_read()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._head = self._head or self.loop.call_later(limits.header_seconds, self.transport.abort)

        def _has_head(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _is_read(self) -> None:
            if self._read is not None:
                self._read.cancel()
                self._read = None

    return Connection
