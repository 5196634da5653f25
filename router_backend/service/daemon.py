"""Blocking calls that nobody can be made to wait for: each in a thread that ends with the process at the latest."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def in_daemon_thread(work: Callable[[], T], name: str) -> tuple[threading.Thread, Awaitable[T]]:
    """Starts `work` now; its result can be awaited, or left. (A pool's threads are waited for at the end.)"""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def finish(value: T | None, error: Exception | None) -> None:
        if result.cancelled():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type] # None only where T is

    def run() -> None:
        value, error = None, None
        try:
            value = work()
        except Exception as caught:
            error = caught
        tell(loop, finish, value, error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread, result


def tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *what: object) -> None:
    """Calls a function in the loop, unless that is closed: then nobody is left to be told."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *what)
