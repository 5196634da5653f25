from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from router_backend.checkpoints.ladder import Attempt, Candidate, Loaded, NothingLoads, Rung
from router_backend.engines.base import Engine
from router_backend.errors import DeadlineExceeded, EngineError, LoadError, NotReady, Overloaded, RouterError
from router_backend.service.service import GenerationService
from router_backend.settings import load_settings
from router_backend.types import Chunk, GenerateRequest, LentGpu, ModelInfo, SamplingParams
from tests.fakes.running import become, echo_model, echo_service

RUNG = Rung(Candidate("gate", "echo"), "native")


class Gate:
    """An engine whose answers wait until they are let through; it says what it was asked for."""

    def __init__(self, slots: int = 1, *, is_open: bool = False) -> None:
        self.info = ModelInfo("gate", "native", "gate", 4096, slots)
        self.gpu: LentGpu | None = None
        self.stalled_seconds = 0.0
        self.died = False
        self.order: list[str] = []
        self.active = 0
        self.most = 0
        self.closed = False
        self._opened = asyncio.Event()
        self.open = is_open
        self.fault: Exception | None = None

    @property
    def open(self) -> bool:
        return self._opened.is_set()

    @open.setter
    def open(self, value: bool) -> None:
        (self._opened.set if value else self._opened.clear)()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            self.order.append(request.id)
            yield Chunk("hello ")
            await self._opened.wait()
            await asyncio.sleep(0)  # as one waits for a thread, though the event is set
            if self.fault:
                raise self.fault
            yield Chunk(request.prompt, "stop")
        finally:
            self.active -= 1

    def smallest_budget(self) -> int:
        return 300

    async def close(self) -> None:
        self.closed = True


def service_of(
    gate: Gate,
    load: Callable[[Callable[[Attempt], None]], Loaded[Engine]] | None = None,
    **settings: object,
) -> GenerationService:
    loads = load or (lambda report: Loaded(gate, RUNG, ()))
    return GenerationService(load_settings(**{"drain_timeout": 0.3, **settings}), loads)


def work(name: str = "r") -> GenerateRequest:
    return GenerateRequest(name, name, SamplingParams(seed=7))


async def started(service: GenerationService) -> GenerationService:
    await service.start()
    await become(lambda: service.health().status == "ok")
    return service


def ask(service: GenerationService, name: str = "r") -> asyncio.Task[str]:
    async def answer() -> str:
        return (await service.answer(work(name))).text

    return asyncio.create_task(answer())


async def settle() -> None:
    """Long enough for every task to get as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def end(*tasks: asyncio.Task[Any]) -> list[Any]:
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def assert_unused(service: GenerationService, gate: Gate) -> None:
    """Nothing runs or waits, and every slot can be taken: no permit has got lost, none came from nowhere."""
    await become(lambda: gate.active == 0)
    gate.open, gate.most = False, 0
    slots = gate.info.slots
    tasks = [ask(service, f"fill-{index}") for index in range(slots + 1)]
    await become(lambda: gate.active == slots)
    await asyncio.sleep(0.01)
    health = service.health()
    assert (gate.active, health.running, health.waiting) == (slots, slots, 1)
    gate.open = True
    await asyncio.gather(*tasks)
    health = service.health()
    assert (gate.most, health.running, health.waiting) == (slots, 0, 0)


def go(main: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


# Answers


def test_answer_is_whole_with_its_sums() -> None:
    async def main() -> None:
        gate = Gate(is_open=True)
        service = await started(service_of(gate))
        answer = await service.answer(work("x"))
        assert (answer.text, answer.seed, answer.info) == ("hello x", 7, gate.info)
        assert answer.last.finish_reason == "stop"

    go(main())


def test_queue_seconds_are_the_wait_for_a_slot() -> None:
    async def main() -> None:
        gate = Gate()
        service = await started(service_of(gate))
        first = ask(service)
        await become(lambda: gate.active == 1)
        second = asyncio.create_task(service.answer(work()))
        await asyncio.sleep(1)
        gate.open = True
        answer = await second
        first_waited = answer.last.timings.queue_seconds
        assert first_waited >= 0.9
        assert (await service.answer(work())).last.timings.queue_seconds < first_waited, "nobody was before it"
        await first

    go(main())


def test_row_21_an_engines_error_ends_that_request_alone() -> None:
    async def main() -> None:
        gate = Gate(is_open=True)
        service = await started(service_of(gate))
        gate.fault = EngineError("broken")
        with pytest.raises(EngineError, match="broken"):
            await service.answer(work())
        gate.fault = None
        assert await ask(service) == "hello r"
        await assert_unused(service, gate)

    go(main())


# Queue


@pytest.mark.parametrize("slots", [1, 3])
def test_slots_bound_what_runs_and_are_given_in_order(slots: int) -> None:
    async def main() -> None:
        gate = Gate(slots)
        service = await started(service_of(gate))
        names = [f"r{index}" for index in range(12)]
        tasks = []
        for name in names:
            tasks.append(ask(service, name))
            await settle()
        assert service.health().running == slots and service.health().waiting == 12 - slots
        gate.open, gate.most = True, 0
        await asyncio.gather(*tasks)
        assert gate.order == names
        assert gate.most == slots

    go(main())


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize(("slots", "limit"), [(1, 0), (1, 2), (4, 3)])
def test_row_17_the_queue_is_bounded(slots: int, limit: int, apart: bool) -> None:
    """Whether the requests come one after the other or in the same moment."""

    async def main() -> None:
        gate = Gate(slots)
        service = await started(service_of(gate, queue_limit=limit))
        tasks = []
        for index in range(20):
            tasks.append(ask(service, f"r{index}"))
            if apart:
                await settle()
        await settle()
        refused = [task for task in tasks if task.done()]
        assert len(refused) == 20 - slots - limit
        for task in refused:
            error = task.exception()
            assert isinstance(error, Overloaded) and error.status == 429
            assert error.retry_after is not None and error.retry_after >= 1
        assert (service.health().running, service.health().waiting) == (slots, limit)
        gate.open = True
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers.count("hello r0") == 1
        assert sum(isinstance(each, str) for each in answers) == slots + limit
        await assert_unused(service_with_room(service), gate)

    go(main())


def service_with_room(service: GenerationService) -> GenerationService:
    service.admission.queue_limit = 64
    return service


def test_the_queue_is_bounded_while_loading_too() -> None:
    async def main() -> None:
        gate, free = Gate(is_open=True), threading.Event()
        service = service_of(gate, blocking(gate, free), queue_limit=2, slots=1)
        await service.start()
        tasks = [ask(service, f"r{index}") for index in range(10)]
        await settle()
        assert 2 <= service.health().waiting <= 3
        free.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(each, Overloaded) for each in answers) >= 7
        assert sum(isinstance(each, str) for each in answers) >= 2

    go(main())


def test_no_queue_at_all_still_loads_at_the_first_request() -> None:
    async def main() -> None:
        service = service_of(Gate(is_open=True), queue_limit=0, skip_warm_start=True)
        await service.start()
        assert await ask(service) == "hello r"

    go(main())


# Deadline


def test_deadline_while_running() -> None:
    async def main() -> None:
        gate = Gate()
        service = await started(service_of(gate, request_timeout=0.1))
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            await service.answer(work())
        assert time.monotonic() - start >= 0.1
        assert caught.value.status == 504 and "0.1" in caught.value.message
        service.settings = load_settings()
        await assert_unused(service, gate)

    go(main())


def test_deadline_holds_the_wait_for_a_slot_too() -> None:
    async def main() -> None:
        gate = Gate()
        service = await started(service_of(gate))
        first = ask(service, "first")
        await become(lambda: gate.active == 1)
        service.settings = load_settings(request_timeout=0.2)
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await service.answer(work("waits"))
        assert time.monotonic() - start >= 0.2
        assert gate.order == ["first"], "the second never began"
        service.settings = load_settings(request_timeout=50)
        late = ask(service, "late")
        await become(lambda: service.health().waiting == 1)
        (running,) = service.admission._running
        assert running.began is not None
        running.began -= 1000
        gate.open = True
        await first
        gate.open = False
        with pytest.raises(Overloaded, match="too little time"):  # the first took a thousand seconds
            await late
        service.settings = load_settings(request_timeout=5000)
        await assert_unused(service, gate)

    go(main())


def test_loading_for_longer_than_the_deadline_is_a_503() -> None:
    async def main() -> None:
        gate, free = Gate(is_open=True), threading.Event()
        service = service_of(gate, blocking(gate, free), request_timeout=0.1)
        await service.start()
        with pytest.raises(NotReady, match="still loading") as caught:
            await service.answer(work())
        assert caught.value.status == 503 and caught.value.retry_after
        free.set()
        await become(lambda: service.health().status == "ok")
        assert await ask(service) == "hello r"

    go(main())


# Cancel


def test_cancelled_while_it_waits() -> None:
    async def main() -> None:
        gate = Gate()
        service = await started(service_of(gate))
        first, second, third = ask(service, "first"), ask(service, "second"), ask(service, "third")
        await become(lambda: service.health().waiting == 2)
        await end(second)
        assert service.health().waiting == 1
        gate.open = True
        assert await first == "hello first" and await third == "hello third"
        assert gate.order == ["first", "third"]
        await assert_unused(service, gate)

    go(main())


def test_cancelled_while_it_runs() -> None:
    async def main() -> None:
        gate = Gate()
        service = await started(service_of(gate))
        first, second = ask(service, "first"), ask(service, "second")
        await become(lambda: gate.active == 1)
        await end(first)
        await become(lambda: gate.order == ["first", "second"])
        gate.open = True
        assert await second == "hello second"
        await assert_unused(service, gate)

    go(main())


def test_a_closed_generator_frees_everything() -> None:
    async def main() -> None:
        gate = Gate()
        service = await started(service_of(gate))
        async with aclosing(service.generate(work())) as chunks:
            async for chunk in chunks:
                assert chunk.text == "hello "
                break
        assert (gate.active, service.health().running) == (0, 0)
        await assert_unused(service, gate)

    go(main())


@pytest.mark.parametrize("slots", [1, 3])
def test_row_18_cancels_at_any_moment_lose_no_slot(slots: int) -> None:
    async def main() -> None:
        random.seed(slots)
        gate = Gate(slots)
        service = await started(service_of(gate))
        for _ in range(50):
            gate.open = random.random() < 0.5
            tasks = [ask(service, "x") for _ in range(6)]
            for task in random.sample(tasks, 6):
                for _ in range(random.randrange(8)):
                    await asyncio.sleep(0)
                if random.random() < 0.3:
                    await asyncio.sleep(0.003)
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) or each == "hello x" for each in results)
            health = service.health()
            assert (health.running, health.waiting) == (0, 0)
        await assert_unused(service, gate)

    go(main())


# Loading


def blocking(
    gate: Gate, free: threading.Event, *, fault: Exception | None = None, calls: list[float] | None = None
) -> Callable[[Callable[[Attempt], None]], Loaded[Engine]]:
    """A load that takes until `free` is set."""

    def load(report: Callable[[Attempt], None]) -> Loaded[Engine]:
        if calls is not None:
            calls.append(time.monotonic())
        report(Attempt("first", "8bit", "failed", "no accelerator", 0.1))
        assert free.wait(20)
        if fault is not None:
            raise fault
        return Loaded(gate, RUNG, (Attempt("first", "8bit", "failed", "no accelerator", 0.1),))

    return load


def test_health_answers_while_a_load_blocks() -> None:
    async def main() -> None:
        gate, free = Gate(), threading.Event()
        service = service_of(gate, blocking(gate, free))
        assert service.health().status == "idle"
        await service.start()
        await become(lambda: bool(service.health().attempts))
        health = service.health()
        assert (health.status, health.strategy, health.model, health.info) == ("loading", "pending", None, None)
        assert health.attempts[0].reason == "no accelerator" and "first [8bit] failed" in health.phase
        free.set()
        await become(lambda: service.health().status == "ok")
        health = service.health()
        assert (health.model, health.strategy, health.engine) == ("gate", "native", "gate")
        assert health.info == gate.info and health.smallest_budget == 300
        assert len(health.attempts) == 1 and "after 1" in health.reason

    go(main())


def test_nothing_is_loaded_before_the_first_request_of_a_lazy_start() -> None:
    async def main() -> None:
        gate, free, calls = Gate(is_open=True), threading.Event(), list[float]()
        free.set()
        service = service_of(gate, blocking(gate, free, calls=calls), skip_warm_start=True)
        await service.start()
        await asyncio.sleep(0.02)
        assert (calls, service.health().status) == ([], "idle")
        assert await ask(service) == "hello r"
        assert len(calls) == 1

    go(main())


@pytest.mark.parametrize("fault", [None, LoadError("gone")])
def test_concurrent_first_requests_share_one_load(fault: Exception | None) -> None:
    async def main() -> None:
        gate, free, calls = Gate(2, is_open=True), threading.Event(), list[float]()
        service = service_of(gate, blocking(gate, free, fault=fault, calls=calls), skip_warm_start=True)
        await service.start()
        tasks = [ask(service, f"r{index}") for index in range(8)]
        await become(lambda: bool(calls))
        await end(tasks[0])  # the one that began it; the others still get their answer
        free.set()
        answers = await asyncio.gather(*tasks[1:], return_exceptions=True)
        assert len(calls) == 1
        if fault is None:
            assert answers == [f"hello r{index}" for index in range(1, 8)]
        else:
            assert {type(each) for each in answers} == {NotReady}
            assert {each.code for each in answers if isinstance(each, NotReady)} == {"load_failed"}

    go(main())


@pytest.mark.parametrize(("allow", "lazy"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_failed_warm_start_is_fatal_unless_it_is_allowed(allow: bool, lazy: bool) -> None:
    async def main() -> None:
        attempts = (Attempt("a", "8bit", "skipped", "no accelerator", 0), Attempt("a", "cpu", "failed", "cut", 1))

        def load(report: object) -> Loaded[Engine]:
            raise NothingLoads(attempts)

        fatal: list[RouterError] = []
        service = service_of(Gate(), load, allow_warm_start_failure=allow, skip_warm_start=lazy)
        service.host.on_fatal = fatal.append
        await service.start()
        if lazy:
            with pytest.raises(NotReady):
                await service.answer(work())
        await become(lambda: service.health().status == "failed")
        assert len(fatal) == (not allow and not lazy)
        assert service.health().attempts == attempts
        assert "cut" in service.health().reason

    go(main())


def test_a_foreign_exception_of_a_load_is_a_failed_load() -> None:
    async def main() -> None:
        def load(report: object) -> Loaded[Engine]:
            raise ZeroDivisionError("why")

        service = service_of(Gate(), load, allow_warm_start_failure=True)
        await service.start()
        await become(lambda: service.health().status == "failed")
        assert service.health().reason == "ZeroDivisionError: why"

    go(main())


def test_back_off_grows_and_the_request_after_it_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router_backend.service.host.pause", lambda times: 1000.0 * times)

    async def main() -> None:
        gate, free, calls = Gate(is_open=True), threading.Event(), list[float]()
        free.set()
        broken = blocking(gate, free, fault=LoadError("gone"), calls=calls)
        service = service_of(gate, broken, allow_warm_start_failure=True)
        await service.start()
        for attempts, pause in enumerate((2000, 3000, 4000, 5000), 1):
            await become(lambda: service.health().status == "failed")
            for _ in range(3):
                with pytest.raises(NotReady, match="gone") as caught:
                    await service.answer(work())
                assert caught.value.retry_after is not None and pause - 100 < caught.value.retry_after <= pause
            assert len(calls) == attempts, "nothing is tried before its time"
            service.host.retry_at = time.monotonic()
            with pytest.raises(NotReady):
                await service.answer(work())
            assert len(calls) == attempts + 1
        service.host.load = blocking(gate, free, calls=calls)
        service.host.retry_at = time.monotonic()
        assert list(await asyncio.gather(ask(service), ask(service))) == ["hello r"] * 2
        assert service.health().status == "ok" and len(calls) == 6

    go(main())


def test_retry_after_is_the_time_to_the_next_attempt() -> None:
    async def main() -> None:
        gate, free = Gate(), threading.Event()
        free.set()
        service = service_of(gate, blocking(gate, free, fault=LoadError("gone")), allow_warm_start_failure=True)
        await service.start()
        await become(lambda: service.health().status == "failed")
        with pytest.raises(NotReady) as caught:
            await service.answer(work())
        assert caught.value.retry_after is not None and 1 <= caught.value.retry_after <= 2

    go(main())


class Alarms:
    """The timers of an event loop that are set for longer than any test takes: they go off when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._set, self._later = list[tuple[float, asyncio.TimerHandle, Callable[[], object]]](), loop.call_later
        monkeypatch.setattr(loop, "call_later", self._note)

    def _note(self, delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        handle = self._later(delay, callback, *args)
        if delay >= 1000:
            self._set.append((delay, handle, lambda: callback(*args)))
        return handle

    @property
    def seconds(self) -> list[float]:
        return [delay for delay, handle, _ in self._set if not handle.cancelled()]

    def go_off(self) -> None:
        due, self._set = self._set, []
        for _, handle, ring in due:
            if not handle.cancelled():
                handle.cancel()
                ring()


def test_row_20_a_failed_load_is_tried_again_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a readiness probe none comes."""
    monkeypatch.setattr("router_backend.service.host.pause", lambda times: 1000.0 * times)

    async def main() -> None:
        gate, free, calls, alarms = Gate(is_open=True), threading.Event(), list[float](), Alarms(monkeypatch)
        free.set()
        broken = blocking(gate, free, fault=LoadError("gone"), calls=calls)
        service = service_of(gate, broken, allow_warm_start_failure=True)
        await service.start()
        for attempts, pause in enumerate((2000, 3000, 4000), 1):
            await become(lambda: service.health().status == "failed")
            assert (len(calls), alarms.seconds) == (attempts, [pause])
            alarms.go_off()
        await become(lambda: service.health().status == "failed")
        service.host.retry_at = time.monotonic()
        with pytest.raises(NotReady):
            await service.answer(work())
        assert (len(calls), alarms.seconds) == (5, [6000]), "a request was first, so the timer before it is off"
        service.host.load = blocking(gate, free, calls=calls)
        alarms.go_off()
        await become(lambda: service.health().status == "ok")
        assert (len(calls), alarms.seconds) == (6, [])

    go(main())


@pytest.mark.parametrize("allow", [True, False])
def test_nothing_is_tried_again_after_the_end_or_where_a_failure_is_fatal(
    monkeypatch: pytest.MonkeyPatch, allow: bool
) -> None:
    monkeypatch.setattr("router_backend.service.host.pause", lambda times: 1000.0)

    async def main() -> None:
        gate, free, alarms = Gate(), threading.Event(), Alarms(monkeypatch)
        free.set()
        service = service_of(gate, blocking(gate, free, fault=LoadError("gone")), allow_warm_start_failure=allow)
        await service.start()
        await become(lambda: service.health().status == "failed")
        assert alarms.seconds == [1000] * allow
        await service.close()
        assert alarms.seconds == []

    go(main())


# End


def test_close_lets_requests_finish_and_unloads() -> None:
    async def main() -> None:
        gate = Gate()
        service = await started(service_of(gate, drain_timeout=5))
        running, waiting = ask(service, "runs"), ask(service, "waits")
        await become(lambda: service.health().waiting == 1)
        closing = asyncio.create_task(service.close())
        await settle()
        assert service.health().status == "stopping" and not gate.closed
        with pytest.raises(NotReady, match="shutting down") as caught:
            await service.answer(work("new"))
        assert caught.value.status == 503 and caught.value.retry_after
        gate.open = True
        await closing
        assert await running == "hello runs" and await waiting == "hello waits"
        assert gate.closed and service.health().status == "stopping"
        with pytest.raises(NotReady):
            await service.answer(work("new"))

    go(main())


def test_close_waits_no_longer_than_it_must() -> None:
    async def main() -> None:
        gate = Gate()
        service = await started(service_of(gate, drain_timeout=0.2))
        task = ask(service)
        await become(lambda: gate.active == 1)
        start = time.monotonic()
        await service.close()
        assert time.monotonic() - start >= 0.2
        assert gate.closed
        await end(task)

    go(main())


def test_close_cuts_short_what_does_not_finish_in_time() -> None:
    async def main() -> None:
        model = echo_model(slots=1)
        service, _ = echo_service(model, load_settings(drain_timeout=0.2))
        await started(service)
        model.seconds_per_token = 0.2
        task = asyncio.create_task(service.answer(work("w " * 600)))  # two minutes
        await become(lambda: bool(model.active))
        await service.close()
        await end(task)
        assert model.closed

    go(main())


def test_an_answer_that_nobody_reads_on_does_not_hold_the_end_up() -> None:
    async def main() -> None:
        gate = Gate()
        service = await started(service_of(gate, drain_timeout=0.1))
        chunks = service.generate(work())
        await anext(chunks)
        try:
            await service.close()
        finally:
            await chunks.aclose()
        assert gate.closed

    go(main())


def test_close_of_an_idle_service_is_quick_and_may_be_repeated() -> None:
    async def main() -> None:
        gate = Gate()
        service = await started(service_of(gate, drain_timeout=1000))
        await service.close()
        await service.close()
        never = service_of(Gate(), skip_warm_start=True)
        await never.start()
        await never.close()

    go(main())


def test_a_load_that_ends_while_the_service_stops_does_not_open_it_again() -> None:
    async def main() -> None:
        gate, free = Gate(is_open=True), threading.Event()
        service = service_of(gate, blocking(gate, free), drain_timeout=5)
        await service.start()
        waiting = ask(service, "waits")
        await become(lambda: service.health().waiting == 1)
        closing = asyncio.create_task(service.close())
        await settle()
        gate.open = False
        free.set()
        await become(lambda: gate.order == ["waits"])
        assert service.health().status == "stopping"
        with pytest.raises(NotReady):
            await service.answer(work("new"))
        gate.open = True
        assert await waiting == "hello waits"
        await closing
        assert gate.closed

    go(main())


def test_a_load_that_fails_while_the_service_stops_is_not_fatal() -> None:
    async def main() -> None:
        gate, free = Gate(), threading.Event()
        service = service_of(gate, blocking(gate, free, fault=LoadError("gone")), drain_timeout=5)
        fatal: list[RouterError] = []
        service.host.on_fatal = fatal.append
        await service.start()
        waiting = ask(service)
        await become(lambda: service.health().waiting == 1)
        closing = asyncio.create_task(service.close())
        await settle()
        free.set()
        (error,) = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(error, NotReady)
        await closing
        assert fatal == [] and service.health().status == "stopping"

    go(main())


def test_who_waits_for_a_load_that_the_end_cuts_short_is_told() -> None:
    async def main() -> None:
        gate, free = Gate(), threading.Event()
        service = service_of(gate, blocking(gate, free), drain_timeout=0.1)
        await service.start()
        waiting = ask(service)
        await become(lambda: service.health().waiting == 1)
        await service.close()
        (error,) = await asyncio.gather(waiting, return_exceptions=True)
        free.set()
        assert isinstance(error, NotReady), f"{error!r}"

    go(main())
