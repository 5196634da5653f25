"""Blocking calls that nobody can be made to wait for: each in a thread that ends with the process at the latest.

(A pool's threads are waited for at the end.)
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakSet

T = TypeVar("T")

_started: WeakSet[threading.Thread] = WeakSet()


def daemon(work: Callable[[], None], name: str) -> None:
    """Starts `work` now, which raises nothing."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    _started.add(thread)
    thread.start()


def any_at_work() -> bool:
    """Whether a call goes on that can only be left: a load goes on after the server has closed, and so does a hang."""
    return any(thread.is_alive() for thread in list(_started))


def in_daemon_thread(work: Callable[[], T], name: str) -> Awaitable[T]:
    """Starts `work` now; its result can be awaited, or left. Raises what `work` raises, as `failure` has it."""
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
        except BaseException as caught:
            error = failure(caught)
        tell(loop, finish, value, error)

    daemon(run, name)
    return result


def failure(caught: BaseException) -> Exception:
    """What was caught as an exception. (A library in Rust that panics raises one that is none.)"""
    return caught if isinstance(caught, Exception) else RuntimeError(f"{type(caught).__name__}: {caught}")


def tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *what: object) -> None:
    """Calls a function in the loop, unless that is closed: then nobody is left to be told."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *what)
