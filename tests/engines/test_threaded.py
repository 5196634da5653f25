from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from router_backend.engines.echo import EchoModel
from router_backend.engines.threaded import ThreadedEngine
from router_backend.errors import EngineError
from router_backend.plan.write import PlanWriter
from router_backend.types import Chunk, GenerateRequest, ModelInfo, SamplingParams
from tests.fakes.running import become, echo_model

T = TypeVar("T")
TOOLS = ("/math", "/code")


@dataclass
class Watchful(EchoModel):
    """Notes which slots are in use at the same time, and in which threads."""

    shared: bool = False
    most: int = 0
    threads: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        with self.lock:
            self.shared |= slot in self.active
            self.active.add(slot)
            self.most = max(self.most, len(self.active))
            self.threads.add(threading.current_thread().name)
        yield from super().generate(request, cancelled, slot)


def work(prompt: str = "one two three", limit: int = 600) -> GenerateRequest:
    return GenerateRequest("r", prompt, SamplingParams(limit))


async def text_of(engine: ThreadedEngine, request: GenerateRequest) -> str:
    return "".join([chunk.text async for chunk in engine.generate(request)])


def slot_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("slot")}


def with_engine(model: EchoModel, use: Callable[[ThreadedEngine], Coroutine[None, None, T]]) -> T:
    """What `use` returns; the engine is closed after it, and its threads have ended."""

    async def main() -> T:
        engine = ThreadedEngine(model, PlanWriter(model, TOOLS))
        others = slot_threads()
        try:
            return await use(engine)
        finally:
            await asyncio.wait_for(engine.close(), 60)
            assert model.closed
            assert slot_threads() <= others

    return asyncio.run(main())


def test_answers_come_whole_and_in_order() -> None:
    async def use(engine: ThreadedEngine) -> list[Chunk]:
        return [chunk async for chunk in engine.generate(work())]

    *pieces, last = with_engine(EchoModel(), use)
    assert [chunk.text for chunk in pieces] == ["one", " two", " three"]
    assert last.finish_reason == "stop" and last.usage.completion_tokens == 3


def test_what_it_says_of_the_model() -> None:
    model = echo_model(slots=3)

    async def use(engine: ThreadedEngine) -> None:
        assert engine.info is model.info
        assert engine.free_slots == 3
        assert engine.smallest_budget() == PlanWriter(model, TOOLS).smallest_budget

    with_engine(model, use)


def test_plans_are_written_and_texts_are_not() -> None:
    async def use(engine: ThreadedEngine) -> tuple[str, str]:
        plan = GenerateRequest("r", "q", output="plan")
        return await text_of(engine, plan), await text_of(engine, work("q"))

    plan, text = with_engine(echo_model(), use)
    assert plan.startswith('{"route_plan": ["/') and text == "q"


def test_slots_are_never_shared_and_all_are_used() -> None:
    model = Watchful(ModelInfo("echo", "native", "echo", 4096, 3), seconds_per_token=0.001)

    async def use(engine: ThreadedEngine) -> None:
        texts = await asyncio.gather(*(text_of(engine, work(f"{index} and some words")) for index in range(40)))
        assert texts == [f"{index} and some words" for index in range(40)]
        await become(lambda: engine.free_slots == 3)

    with_engine(model, use)
    assert not model.shared
    assert model.most == 3 and len(model.threads) == 3


def test_slots_are_never_shared_after_cancels() -> None:
    """A cancelled request's slot is only free when its thread is: the next must not begin in it before."""
    model = Watchful(ModelInfo("echo", "native", "echo", 4096, 2), seconds_per_token=0.01)

    async def use(engine: ThreadedEngine) -> None:
        for round_ in range(30):
            async with aclosing(engine.generate(work("w " * 50))) as chunks:
                async for _ in chunks:
                    break
            assert await text_of(engine, work(str(round_))) == str(round_)
        await become(lambda: engine.free_slots == 2 and not model.active)

    with_engine(model, use)
    assert not model.shared


@pytest.mark.parametrize("after", [0, 2])
def test_row_21_exceptions_cross(after: int) -> None:
    model = EchoModel(fail_after=after)

    async def use(engine: ThreadedEngine) -> None:
        said: list[str] = []
        with pytest.raises(EngineError, match="told to fail"):
            async for chunk in engine.generate(work()):
                said.append(chunk.text)  # noqa: PERF401 - it fails half-way
        assert len(said) == after
        model.fail_after = None
        await become(lambda: engine.free_slots == 4)
        assert await text_of(engine, work()) == "one two three"

    with_engine(model, use)


def test_row_18_an_abandoned_generator_cancels() -> None:
    model = echo_model(slots=1, seconds_per_token=0.1)

    async def use(engine: ThreadedEngine) -> None:
        chunks = engine.generate(work("w " * 600))  # a minute
        await anext(chunks)
        assert engine.free_slots == 0 and model.active
        await chunks.aclose()
        await become(lambda: engine.free_slots == 1 and not model.active, 30)

    with_engine(model, use)


def test_row_18_a_cancelled_task_cancels() -> None:
    model = echo_model(slots=1, seconds_per_token=0.1)

    async def use(engine: ThreadedEngine) -> None:
        task = asyncio.create_task(text_of(engine, work("w " * 600)))  # a minute
        await become(lambda: bool(model.active))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await become(lambda: engine.free_slots == 1 and not model.active, 30)

    with_engine(model, use)


def test_row_18_cancelled_while_it_waits_for_a_slot() -> None:
    model, free = echo_model(slots=1), threading.Event()
    model.stuck = free

    async def use(engine: ThreadedEngine) -> None:
        first = asyncio.create_task(text_of(engine, work("w " * 30)))
        await become(lambda: bool(model.active))
        second = asyncio.create_task(text_of(engine, work("never")))
        await asyncio.sleep(0.02)
        second.cancel()
        free.set()
        assert await first == "w " * 30
        await become(lambda: engine.free_slots == 1)
        assert [request.prompt for request in model.seen] == ["w " * 30]

    with_engine(model, use)


def test_close_waits_for_what_runs() -> None:
    """A model that is closed under a thread that uses it takes the process with it."""
    model = echo_model(slots=2, seconds_per_token=0.01)
    closed_under_it: list[bool] = []
    close = model.close

    def watched() -> None:
        closed_under_it.append(bool(model.active))
        close()

    model.close = watched  # type: ignore[method-assign]

    async def main() -> None:
        engine = ThreadedEngine(model, PlanWriter(model, TOOLS))
        task = asyncio.create_task(text_of(engine, work("w " * 30)))
        await become(lambda: bool(model.active))
        await engine.close()
        assert model.closed
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert closed_under_it == [False]
