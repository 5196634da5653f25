"""Server-sent events: one framing for every stream, and several streams as one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import TypeVar

from starlette.responses import StreamingResponse

from router_backend.errors import RouterError
from router_backend.server.disconnect import ended
from router_backend.server.errors import describe

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
# A comment, which readers skip: it tells them and what lies between that the line is alive.
PING = b": ping\n\n"
PING_SECONDS = 15.0


# Many readers take these for the end of a line, where the format has line feeds alone.
_NO_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def event(data: object) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.translate(_NO_ENDS).encode() + b"\n\n"


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
            if upcoming is not None:
                await ended(upcoming)
            await events.aclose()
        yield DONE

    return streamed(body())


def streamed(events: AsyncIterator[bytes]) -> StreamingResponse:
    """A response of events that are framed already, which no proxy keeps back."""
    quiet = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=quiet)


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yields what any of the streams has, with its number. Each goes on only when its last item was taken.

    The first error ends all. Closing it closes all of them.
    """
    if len(streams) == 1:  # needs no task for each item
        async with contextlib.aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    waiting = {asyncio.ensure_future(anext(each)): index for index, each in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                index = waiting.pop(task)
                try:
                    item = task.result()
                except StopAsyncIteration:
                    continue
                yield index, item
                waiting[asyncio.ensure_future(anext(streams[index]))] = index
    finally:
        for task in waiting:
            await ended(task)
        for each in streams:
            await each.aclose()


async def paced(answer: AsyncGenerator[T, None], seconds: float = 0.2) -> AsyncGenerator[T, None]:
    """Now and then what an answer has come to, and at its end, also where that is an error."""
    latest: list[T] = []
    shown = time.monotonic()
    async with contextlib.aclosing(answer) as pieces:
        try:
            async for piece in pieces:
                latest = [piece]
                if time.monotonic() - shown >= seconds:
                    shown = time.monotonic()
                    yield piece
        except RouterError:
            for piece in latest:
                yield piece
            raise
    for piece in latest:
        yield piece
