"""Calls: what a page or a client of Gradio has asked for, until its answer is read.

Gradio's own queue is not used. It runs every call in the context of whoever came first, keeps what a call left behind,
and prints what it does not understand.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from pydantic_core import to_jsonable_python

from router_backend.errors import InvalidRequest, Overloaded, RouterError

if TYPE_CHECKING:
    import gradio as gr
    from gradio.block_function import BlockFunction

Message = dict[str, Any]
Owner = tuple[str, str]  # the name of a key, and what its client calls a session
_log = logging.getLogger(__name__)
_UNREAD_SECONDS = 30.0
_BEAT_SECONDS = 15.0
_SETTLES = 0.5  # seconds
_AHEAD = 16  # answers in the making that wait for their reader; then the call waits


@dataclass(eq=False)
class _Session:
    """Calls whose messages go out in one stream."""

    calls: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    messages: deque[Message] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AHEAD))
    reader: object = None  # the latest
    unread: asyncio.TimerHandle | None = None

    def say(self, message: Message) -> None:
        self.messages.append(message)
        self.news.set()


class Calls:
    """The calls of all sessions. A key reaches its own alone. All methods belong to one event loop."""

    def __init__(self, blocks: gr.Blocks, most: int) -> None:
        """`most`: calls that a key may have open."""
        self._blocks = blocks
        self._most = most
        self._sessions: dict[Owner, _Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: dict[Owner, float] = {}  # when a stream was told to close, if that was just now

    def begin(self, key: str, name: str | None, function: BlockFunction, data: Sequence[object]) -> str:
        """Starts a call in the context of its request; returns its id. Without a `name` its session is its own.

        Raises:
            InvalidRequest: the function does not take so many values.
            Overloaded: the key has too many calls open.
        """
        work = function.fn
        assert work is not None, "the door lets functions through alone"
        try:
            inspect.signature(work).bind(*data)
        except TypeError:
            raise InvalidRequest(f"data: {len(data)} values are not what this function takes", param="data") from None
        if sum(len(each.calls) for (owner, _), each in self._sessions.items() if owner == key) >= self._most:
            raise Overloaded(f"{self._most} calls are open already; read their answers first", retry_after=1)
        number = secrets.token_hex(16)
        owner = key, name or number
        session = self._sessions.setdefault(owner, _Session())
        task = asyncio.create_task(self._run(session, number, function, data))
        session.calls[number] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if session.reader is None:
            self._await_reader(owner, session)
        return number

    async def settled(self, key: str, name: str) -> None:
        """Waits until a page knows that its stream was closed: it would wait there for the answer to its next call."""
        await asyncio.sleep(self._closing.get((key, name), -_SETTLES) + _SETTLES - time.monotonic())

    def knows(self, key: str, name: str) -> bool:
        return (key, name) in self._sessions

    async def read(self, key: str, name: str, linger: float = 0.0) -> AsyncGenerator[Message, None]:
        """Yields a session's messages until its calls have ended, and for `linger` seconds no other began.

        Closing it ends them.
        """
        owner = key, name
        session = self._sessions[owner]
        reader = session.reader = object()
        session.news.set()  # one before this one, whose client has gone on, ends
        if session.unread:
            session.unread.cancel()
        begun: set[str] = set()
        try:
            while session.reader is reader:
                if not session.calls:
                    session.news.clear()
                    if not linger or not await _comes(session.news, linger):
                        break
                if not session.messages:
                    session.news.clear()
                    if not await _comes(session.news, _BEAT_SECONDS):
                        yield {"msg": "heartbeat"}
                    continue
                message = session.messages.popleft()
                begun.add(message["event_id"])
                if message["msg"] == "process_generating":
                    session.room.release()
                elif message["msg"] == "process_completed":
                    session.calls.pop(message["event_id"], None)
                yield message
            now = time.monotonic()
            self._closing = {who: at for who, at in self._closing.items() if now - at < _SETTLES} | {owner: now}
            yield {"msg": "close_stream"}
        finally:
            if session.reader is reader:
                # A client may have sent its next call before it hung up; that one is for its next stream.
                session.reader = None
                self._end(owner, session, begun)

    def cancel(self, key: str, name: str, number: str) -> None:
        """Ends a call, if it is one of this session; its reader is told that it is over."""
        session = self._sessions.get((key, name))
        if session is not None and number in session.calls:
            session.calls[number].cancel()
            session.say(_message("process_completed", number, {}))

    async def close(self) -> None:
        """Ends every call, and returns when all have ended."""
        for owner, session in list(self._sessions.items()):
            self._end(owner, session)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _await_reader(self, owner: Owner, session: _Session) -> None:
        if session.unread:
            session.unread.cancel()
        session.unread = asyncio.get_running_loop().call_later(_UNREAD_SECONDS, self._end, owner, session)

    def _end(self, owner: Owner, session: _Session, numbers: Collection[str] | None = None) -> None:
        """Ends these calls, or all of them, and the session where it has no other."""
        for number in list(session.calls if numbers is None else numbers):
            if task := session.calls.pop(number, None):
                task.cancel()
        if session.calls:
            self._await_reader(owner, session)
            return
        if session.unread:
            session.unread.cancel()
        if self._sessions.get(owner) is session:
            del self._sessions[owner]

    async def _run(self, session: _Session, number: str, function: BlockFunction, data: Sequence[object]) -> None:
        session.say({"msg": "process_starts", "event_id": number})
        began = time.monotonic()
        output: Message = {"data": []}
        error: str | None = None
        try:
            assert function.fn is not None
            async with aclosing(_values(function.fn(*data))) as values:
                async for value in values:
                    output["data"] = to_jsonable_python(await self._blocks.postprocess_data(function, value, None))
                    if inspect.isasyncgenfunction(function.fn):
                        await session.room.acquire()
                        session.say(_message("process_generating", number, {**output, "is_generating": True}))
        except RouterError as failure:
            error = failure.message
        except Exception:
            _log.exception("unhandled error in a call")
            error = "internal error; the server's log says more"
        seconds = time.monotonic() - began
        done = {**output, "is_generating": False, "duration": seconds, "average_duration": seconds}
        told = {"error": error, "title": "Error", "visible": True, "duration": 10}
        good = error is None
        session.say(_message("process_completed", number, done if good else told, success=good))


async def _comes(news: asyncio.Event, seconds: float) -> bool:
    with anyio.move_on_after(seconds):
        return await news.wait()
    return False


def _message(kind: str, number: str, output: Message, *, success: bool = True) -> Message:
    return {"msg": kind, "event_id": number, "success": success, "output": output}


async def _values(made: Any) -> AsyncGenerator[Any, None]:  # noqa: ANN401 - what a page's function returns
    """What a function yields, or the one value that it returns."""
    if isinstance(made, AsyncIterator):
        async with aclosing(made) as values:  # type: ignore[type-var] # an async generator
            async for value in values:
                yield value
    else:
        yield await made if inspect.isawaitable(made) else made


def change(old: object, new: object) -> list[list[object]]:
    """What Gradio's clients do to an output's value before: nothing, or one step at its root."""
    if old == new:
        return []
    if isinstance(old, str) and isinstance(new, str) and old and new.startswith(old):
        return [["append", [], new[len(old) :]]]
    return [["replace", [], new]]
