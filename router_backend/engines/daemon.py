"""Blocking calls that nobody can be made to wait for: each in a thread that ends with the process at the latest.

(A pool's threads are waited for at the end.)
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
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
    result: Future[T] = Future()
    result.set_running_or_notify_cancel()  # from here on nobody can cancel it, only leave it

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as caught:
            result.set_exception(failure(caught))

    daemon(run, name)
    return asyncio.wrap_future(result)


def failure(caught: BaseException) -> Exception:
    """What was caught as an exception. (A library in Rust that panics raises one that is none.)"""
    return caught if isinstance(caught, Exception) else RuntimeError(f"{type(caught).__name__}: {caught}")


def tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *what: object) -> None:
    """Calls a function in the loop, unless that is closed: then nobody is left to be told."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *what)
