"""Gives a blocking `LocalModel` a thread for each slot, and so makes an `Engine` of it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from router_backend.decisions.decide import Decider
from router_backend.engines.daemon import failure, in_daemon_thread, tell
from router_backend.plan.part import with_plans
from router_backend.schema.write import SchemaWriter
from router_backend.tools.words import as_text
from router_backend.tools.write import ToolWriter
from router_backend.types import Chunk, GenerateRequest, LentGpu, ModelInfo

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel
    from router_backend.plan.write import PlanWriter
    from router_backend.writing.writer import Writer


class Flag(Protocol):
    """Whether a request was cancelled."""

    def set(self) -> None: ...

    def is_set(self) -> bool: ...


class ThreadedEngine:
    """One model, one thread a slot. Plans are written in the slot's thread too."""

    def __init__(self, model: LocalModel, writer: PlanWriter) -> None:
        self._model = model
        self._writer = writer
        self._schemas = SchemaWriter(model, partial(with_plans, tools=writer.tools))
        self._calls = ToolWriter(model, writer.tools, self._schemas)
        self._decider = Decider(model)
        self._threads = ThreadPoolExecutor(self.info.slots, thread_name_prefix="slot")
        self._signs_of_life: dict[int, float] = {}  # of each busy slot, when it last showed one
        self._free_slots = list(range(self.info.slots))  # the one that is free for longest first
        self._owners: dict[int, str] = {}  # whose prefix a slot has cached
        self._is_free = asyncio.Semaphore(self.info.slots)

    @property
    def info(self) -> ModelInfo:
        return self._model.info

    @property
    def gpu(self) -> LentGpu | None:
        return None

    @property
    def free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def stalled_seconds(self) -> float:
        now = time.monotonic()
        return max((now - last for last in list(self._signs_of_life.values())), default=0.0)

    @property
    def died(self) -> bool:
        return bool(getattr(self._model, "died", False))

    def smallest_budget(self) -> int:
        return self._writer.smallest_budget

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        loop = asyncio.get_running_loop()
        slot = await self._slot_for(request.owner)
        chunks: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()
        cancelled = self._flag()

        def say(item: Chunk | Exception | None) -> None:
            tell(loop, chunks.put_nowait, item)

        def run() -> None:
            try:
                for chunk in self._answer(request, cancelled, slot):
                    say(chunk)
            except BaseException as error:
                say(failure(error))
            finally:
                self._signs_of_life.pop(slot, None)
                say(None)

        # The slot is free when its thread is, not when the client has gone.
        future = loop.run_in_executor(self._threads, contextvars.copy_context().run, run)
        future.add_done_callback(lambda _: self._give_back(slot))
        try:
            while (item := await chunks.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            cancelled.set()

    async def close(self) -> None:
        """Waits for what runs. May be left waiting where that hangs."""

        def close() -> None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._model.close()

        await in_daemon_thread(close, "close")

    async def _slot_for(self, owner: str) -> int:
        """A free slot: one that has this owner's prefix cached, where there is one."""
        await self._is_free.acquire()
        slot = next((each for each in self._free_slots if self._owners.get(each, "") == owner), self._free_slots[0])
        self._free_slots.remove(slot)
        self._owners[slot] = owner
        return slot

    def _give_back(self, slot: int) -> None:
        self._free_slots.append(slot)
        self._is_free.release()

    def _flag(self) -> Flag:
        return threading.Event()

    def _answer(self, request: GenerateRequest, cancelled: Flag, slot: int) -> Iterator[Chunk]:
        alive, request = self._heard(cancelled.is_set, slot), as_text(request.settled())
        if request.output == "text":
            return self._model.generate(request, alive, slot)
        return self._writer_of(request).write(request, alive, slot)

    def _writer_of(self, request: GenerateRequest) -> Writer[Any] | Decider:
        """Who writes such an answer; raw text is written by nobody, and admitted as plans are."""
        writers: dict[str, Writer[Any] | Decider] = {
            "json": self._schemas,
            "calls": self._calls,
            "decision": self._decider,
        }
        return writers.get(request.output, self._writer)

    def _heard(self, cancelled: Callable[[], bool], slot: int) -> Callable[[], bool]:
        """A model that asks whether it is cancelled is alive."""

        def ask() -> bool:
            self._signs_of_life[slot] = time.monotonic()
            return cancelled()

        ask()
        return ask
