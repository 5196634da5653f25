"""uvicorn's HTTP/1.1 connection, with patience that ends: for a head that does not come, a reader who does not read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may cost before it is refused or cut off.

    Attributes:
        url_bytes: of path and query; a longer one is a 414.
        header_bytes: of all request headers; more are a 431.
        header_seconds: until the request headers are complete.
        body_seconds: until the body is complete; then a 408.
        write_seconds: for which a reader may leave unread what was sent to it.
    """

    url_bytes: int = 8192
    header_bytes: int = 32_768
    header_seconds: float = 10
    body_seconds: float = 30
    write_seconds: float = 30


def connections(limits: Limits) -> type[H11Protocol]:
    """The protocol class for these limits. (A slow body is the door's matter, which can say so.)"""

    class Connection(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _read: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

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
