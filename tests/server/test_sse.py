"""One framing for every stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

import pytest

from router_backend.errors import EngineError, Overloaded
from router_backend.server.sse import DONE, PING, merged, stream

Event = Mapping[str, object]


async def slowly(*events: object, pause: float = 0.0) -> AsyncGenerator[Event, None]:
    """Events, or errors to raise."""
    for each in events:
        await asyncio.sleep(pause)
        if isinstance(each, Exception):
            raise each
        yield {"text": each}


async def read(events: AsyncGenerator[Event, None], ping_seconds: float = 15) -> list[bytes]:
    response = await stream(events, ping_seconds)
    return [bytes(piece) async for piece in response.body_iterator]  # type: ignore[arg-type]


def test_events_then_done() -> None:
    assert asyncio.run(read(slowly("é", "b"))) == ['data: {"text":"é"}\n\n'.encode(), b'data: {"text":"b"}\n\n', DONE]


def test_error_before_the_first_event_is_raised_and_a_later_one_is_an_event() -> None:
    with pytest.raises(Overloaded):
        asyncio.run(read(slowly(Overloaded("full"))))
    pieces = asyncio.run(read(slowly("a", EngineError("broken"))))
    assert b'"message":"broken"' in pieces[1] and pieces[2] == DONE
    hidden = asyncio.run(read(slowly("a", ValueError("/secret/path"))))[1]
    assert b"secret" not in hidden and b"internal_error" in hidden


def test_pings_while_there_is_nothing_to_send() -> None:
    async def main() -> list[bytes]:
        pinged, pieces = asyncio.Event(), list[bytes]()

        async def events() -> AsyncGenerator[Event, None]:
            yield {"text": "a"}
            await pinged.wait()
            yield {"text": "b"}

        response = await stream(events(), 0.01)
        async for piece in response.body_iterator:
            pieces.append(bytes(piece))  # type: ignore[arg-type]
            if pieces.count(PING) == 3:
                pinged.set()
        return pieces

    pieces = asyncio.run(asyncio.wait_for(main(), 60))
    assert pieces[0].startswith(b"data") and pieces[1] == PING and pieces[-1] == DONE
    assert b"".join(each for each in pieces if each != PING).count(b"data: {") == 2, "nothing is lost"
    assert PING.startswith(b":") and PING.endswith(b"\n\n"), "a comment"


def test_next_event_is_made_when_the_last_was_taken() -> None:
    made = []

    async def events() -> AsyncGenerator[Event, None]:
        for number in range(100):
            made.append(number)
            yield {"n": number}

    async def run() -> None:
        response = await stream(events())
        body = response.body_iterator.__aiter__()
        for _ in range(3):
            await anext(body)
        await asyncio.sleep(0.05)
        assert len(made) == 3
        await body.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())


@pytest.mark.parametrize("pause", [0.0, 5.0])
def test_closing_the_body_closes_the_events(pause: float) -> None:
    closed = []

    async def events() -> AsyncGenerator[Event, None]:
        try:
            yield {}
            await asyncio.sleep(pause)
            yield {}
        finally:
            closed.append(True)

    async def run() -> None:
        response = await stream(events(), 0.01)
        body = response.body_iterator.__aiter__()
        await anext(body)
        if pause:
            assert await anext(body) == PING
        await body.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())
    assert closed == [True]


def test_merged_streams_keep_their_numbers_and_end_together() -> None:
    async def run() -> None:
        found = [each async for each in merged([slowly("a", "b"), slowly("c", pause=0.01), slowly()])]
        assert sorted((index, event["text"]) for index, event in found) == [(0, "a"), (0, "b"), (1, "c")]
        left = slowly("x", "y", pause=0.2)
        with pytest.raises(EngineError):
            async for _ in merged([slowly(EngineError("broken")), left]):
                pass
        with pytest.raises(StopAsyncIteration):
            await anext(left)

    asyncio.run(run())
