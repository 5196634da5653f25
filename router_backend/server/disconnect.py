"""Ends work whose client has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

T = TypeVar("T")


class ClientGone(Exception):
    """The client left before its answer was there."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Races `work` against the client's disconnect. The body must have been read before.

    Raises:
        ClientGone: after `work` was cancelled and has ended.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await ended(task)
        await ended(gone)


async def ended(task: asyncio.Future[Any]) -> None:
    """Cancels a task, if it goes on, and waits until it has ended, however that is."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
