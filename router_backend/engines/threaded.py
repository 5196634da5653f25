"""Gives a blocking `LocalModel` a thread for each slot, and so makes an `Engine` of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from router_backend.types import Chunk, GenerateRequest, ModelInfo

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel
    from router_backend.plan.write import PlanWriter


class ThreadedEngine:
    """One model, one thread a slot. Plans are written in the slot's thread too."""

    def __init__(self, model: LocalModel, writer: PlanWriter) -> None:
        self._model = model
        self._writer = writer
        self._threads = ThreadPoolExecutor(model.info.slots, thread_name_prefix="slot")
        self._free_slots: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(model.info.slots):
            self._free_slots.put_nowait(slot)

    @property
    def info(self) -> ModelInfo:
        return self._model.info

    @property
    def free_slots(self) -> int:
        return self._free_slots.qsize()

    def smallest_budget(self) -> int:
        return self._writer.smallest_budget

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        loop = asyncio.get_running_loop()
        slot = await self._free_slots.get()
        chunks: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()
        cancelled = threading.Event()

        def tell(item: Chunk | Exception | None) -> None:
            loop.call_soon_threadsafe(chunks.put_nowait, item)

        def run() -> None:
            try:
                for chunk in self._answer(request, cancelled.is_set, slot):
                    tell(chunk)
            except Exception as error:
                tell(error)
            finally:
                tell(None)

        # The slot is free when its thread is, not when the client has gone.
        future = loop.run_in_executor(self._threads, run)
        future.add_done_callback(lambda _: self._free_slots.put_nowait(slot))
        try:
            while (item := await chunks.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            cancelled.set()

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        await asyncio.to_thread(self._model.close)

    def _answer(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int) -> Iterator[Chunk]:
        if request.output == "plan":
            return self._writer.write(request, cancelled, slot)
        return self._model.generate(request, cancelled, slot)
