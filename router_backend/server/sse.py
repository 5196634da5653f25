"""Server-sent events: one framing for every stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.responses import StreamingResponse

from router_backend.server.errors import describe

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def stream(events: AsyncGenerator[dict[str, object], None]) -> StreamingResponse:
    """A response that has begun well: the first event is made before the headers go out, so an error is a status.

    An error after that is an event of its own. Closing the response closes `events`.
    """
    first = await anext(events)

    async def body() -> AsyncIterator[bytes]:
        try:
            yield event(first)
            async for data in events:
                yield event(data)
        except Exception as error:
            yield event(describe(error))
        finally:
            await events.aclose()
        yield DONE

    return StreamingResponse(
        body(), media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
