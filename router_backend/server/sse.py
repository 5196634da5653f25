"""Server-sent events: one framing for every stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from starlette.responses import StreamingResponse

from router_backend.server.errors import describe

DONE = b"data: [DONE]\n\n"
# A comment, which readers skip: it tells them and what lies between that the line is alive.
PING = b": ping\n\n"
PING_SECONDS = 15.0


def event(data: Mapping[str, object]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def stream(
    events: AsyncGenerator[Mapping[str, object], None], ping_seconds: float = PING_SECONDS
) -> StreamingResponse:
    """A response that has begun well: the first event is made before the headers go out, so an error is a status.

    After that an error is an event of its own, and a comment goes out whenever there was nothing to send for
    `ping_seconds`. The next event is made when the reader has taken the one before. Closing the response closes
    `events`; how long a reader may take is up to the connection.
    """
    first = await anext(events)

    async def body() -> AsyncIterator[bytes]:
        upcoming: asyncio.Future[Mapping[str, object]] | None = None
        try:
            yield event(first)
            while True:
                upcoming = upcoming or asyncio.ensure_future(anext(events))
                if not (await asyncio.wait({upcoming}, timeout=ping_seconds))[0]:
                    yield PING
                    continue
                data, upcoming = upcoming.result(), None
                yield event(data)
        except StopAsyncIteration:
            pass
        except Exception as error:
            yield event(describe(error))
        finally:
            if upcoming is not None and not upcoming.done():
                upcoming.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await upcoming
            await events.aclose()
        yield DONE

    return StreamingResponse(
        body(), media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
