"""Engines that hang or die, and checkpoints that are exchanged: what becomes of the requests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field

import pytest

from router_backend.checkpoints.ladder import Attempt, Candidate, Loaded, Rung
from router_backend.engines import trial
from router_backend.engines.base import Engine
from router_backend.engines.daemon import any_at_work
from router_backend.engines.echo import EchoModel
from router_backend.engines.threaded import ThreadedEngine
from router_backend.errors import EngineError, EngineLost, LoadError, NotReady, RouterError
from router_backend.plan.write import PlanWriter
from router_backend.service.host import pause
from router_backend.service.service import GenerationService
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, ModelInfo, SamplingParams
from tests.fakes.running import app, become, until

RUNG = Rung(Candidate("echo", "echo"), "native")


@dataclass
class Supply:
    """Loads a new echo model each time; `faults[n]` prepares the n-th."""

    faults: dict[int, Callable[[EchoModel], None]] = field(default_factory=dict)
    models: list[EchoModel] = field(default_factory=list)

    def load(self, report: Callable[[Attempt], None]) -> Loaded[Engine]:
        model = EchoModel(ModelInfo(f"echo-{len(self.models)}", "native", "echo", 4096, 2))
        self.models.append(model)
        fault = self.faults.get(len(self.models) - 1)
        if fault is not None:
            fault(model)
        return Loaded(ThreadedEngine(model, PlanWriter(model, ("/math",))), RUNG, ())


def work(prompt: str = "one two three") -> GenerateRequest:
    return GenerateRequest("r", prompt, SamplingParams(seed=1))


def go(main: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


async def started(supply: Supply, **settings: object) -> GenerationService:
    service = GenerationService(load_settings(**{"watchdog_timeout": 1, "drain_timeout": 0.5, **settings}), supply.load)
    await service.start()
    await become(lambda: service.health().status == "ok")
    return service


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set at the end, so that what hangs ends; and nobody waits long for it."""
    monkeypatch.setattr("router_backend.service.host._UNLOADED_WITHIN", 0.2)
    event, others = threading.Event(), set(threading.enumerate())
    yield event
    event.set()
    for thread in set(threading.enumerate()) - others:
        if thread.name.startswith("slot"):
            thread.join(60)
            assert not thread.is_alive()


def test_row_22_a_hung_engine_is_replaced(free: threading.Event) -> None:
    async def main() -> None:
        supply = Supply()
        service = await started(supply)
        supply.models[0].stuck = free
        hanging = asyncio.create_task(service.answer(work()))
        with pytest.raises(EngineLost) as caught:
            await hanging
        assert caught.value.status == 503 and caught.value.retry_after
        assert service.health().alive
        assert (await service.answer(work())).text == "one two three", "who comes now waits for the next engine"
        assert len(supply.models) == 2 and service.health().model == "echo-1"
        await become(any_at_work)
        assert counted(service, "router_engine_restarts_total", cause="hung") == 1
        await service.close()

    go(main)


def counted(service: GenerationService, name: str, **labels: str) -> float:
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


def test_row_22_who_waits_for_a_slot_of_a_hung_engine_is_answered_by_the_next(free: threading.Event) -> None:
    async def main() -> None:
        supply = Supply()
        service = await started(supply)
        supply.models[0].stuck = free
        tasks = [asyncio.create_task(service.answer(work())) for _ in range(5)]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each).__name__ for each in answers] == ["EngineLost", "EngineLost", "Answer", "Answer", "Answer"]
        assert service.health().running == service.health().waiting == 0
        await service.close()

    go(main)


def test_row_22_a_slot_that_hangs_after_its_client_left_is_noticed_too(free: threading.Event) -> None:
    async def main() -> None:
        supply = Supply()
        service = await started(supply)
        supply.models[0].stuck = free
        task = asyncio.create_task(service.answer(work()))
        await become(lambda: bool(supply.models[0].active))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await become(lambda: len(supply.models) == 2 and service.health().status == "ok")
        await service.close()

    go(main)


def test_row_22_livez_fails_where_no_engine_helps(free: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one hangs: after the third restart only another process can help."""
    monkeypatch.setattr("router_backend.service.host.pause", lambda times: 0.05 * times)

    def hangs(model: EchoModel) -> None:
        model.script = lambda request: str(request.id == "r" and free.wait())  # not in its warm-up

    async def main() -> None:
        supply = Supply(dict.fromkeys(range(9), hangs))
        service = await started(supply)
        for _ in range(4):
            assert service.health().alive
            with pytest.raises(EngineLost):
                await service.answer(work())
        assert not service.health().alive
        assert counted(service, "router_alive", model_name=service.health().model or "") == 0
        await service.close()

    go(main)


def test_row_22_livez_fails_where_a_lost_engine_cannot_be_replaced(
    free: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router_backend.service.host.pause", lambda times: 1000.0 * (times > 0))

    def fails(model: EchoModel) -> None:
        raise LoadError("no memory for a second one")

    async def main() -> None:
        supply = Supply({1: fails})
        service = await started(supply)
        fatal: list[RouterError] = []
        service.host.on_fatal = fatal.append
        supply.models[0].stuck = free
        with pytest.raises(EngineLost):
            await service.answer(work())
        await become(lambda: service.health().status == "failed")
        assert not service.health().alive and fatal == []
        service.host.retry_at = 0
        assert (await service.answer(work())).text == "one two three", "the next request tried again"
        assert service.health().alive
        await service.close()

    go(main)


def test_row_22_livez_says_so_to_who_restarts_processes(free: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor reads the status alone: this engine hangs, and so does the next, which is the same."""
    monkeypatch.setattr("router_backend.service.host.pause", lambda times: 1000.0 * (times > 0))
    with app(watchdog_timeout=1) as echo:
        assert echo.client.get("/livez").status_code == 200
        monkeypatch.setattr(echo.service.host, "load", lambda report: trial.passed(echo.model, 1))
        echo.model.stuck = free
        assert echo.generate(output="text").status_code == 503
        until(lambda: echo.service.health().status == "failed")
        answer = echo.client.get("/livez")
        assert (answer.status_code, answer.json()["state"]) == (503, "failed")


def test_row_22_a_dead_engine_is_replaced() -> None:
    """One that fails every request, the watchdog's own too."""

    async def main() -> None:
        supply = Supply()
        service = await started(supply)
        supply.models[0].fail_after = 0
        for _ in range(3):
            with pytest.raises(EngineError):
                await service.answer(work())
        await become(lambda: len(supply.models) == 2 and service.health().status == "ok")
        assert (await service.answer(work())).text == "one two three"
        assert supply.models[0].closed and not any_at_work()
        assert counted(service, "router_engine_restarts_total", cause="dead") == 1
        await service.close()

    go(main)


def test_row_21_requests_that_fail_do_not_restart_an_engine_that_works() -> None:
    """Nobody can end the engine by sending what it fails on."""

    async def main() -> None:
        supply = Supply()
        service = await started(supply)
        model = supply.models[0]
        model.script = lambda request: str(1 / 0) if request.id == "r" else "math"
        for _ in range(6):
            with pytest.raises(ZeroDivisionError):
                await service.answer(work())
        await asyncio.sleep(0.5)
        assert len(supply.models) == 1 and service.health().status == "ok"
        model.script = lambda request: request.prompt
        assert (await service.answer(work())).text == "one two three"
        await service.close()

    go(main)


def test_a_slow_engine_is_no_hung_one() -> None:
    async def main() -> None:
        supply = Supply()
        service = await started(supply, watchdog_timeout=2)
        supply.models[0].seconds_per_token = 0.4
        assert (await service.answer(work("a b c d e f"))).text == "a b c d e f"
        assert len(supply.models) == 1
        await service.close()

    go(main)


def test_pauses_grow() -> None:
    assert [pause(times) for times in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]


# Reload


def test_reload_drops_nothing() -> None:
    """Requests in flight end where they began; those that wait, and new ones, go to the new checkpoint."""

    async def main() -> None:
        supply = Supply()
        service = await started(supply, watchdog_timeout=1000)
        free = supply.models[0].stuck = threading.Event()
        running = [asyncio.create_task(service.answer(work("a b c d e f g h"))) for _ in range(2)]
        await become(lambda: len(supply.models[0].active) == 2)
        waiting = asyncio.create_task(service.answer(work("w")))
        info = await service.host.reload()
        assert info.model == "echo-1" == service.health().model and not supply.models[0].closed
        free.set()
        answers = await asyncio.gather(*running, waiting)
        assert [each.text for each in answers] == ["a b c d e f g h", "a b c d e f g h", "w"]
        assert [request.prompt for request in supply.models[1].seen if request.id == "r"] == ["w"]
        await become(lambda: supply.models[0].closed)
        assert counted(service, "router_reloads_total", outcome="ok") == 1
        await service.close()
        assert supply.models[1].closed

    go(main)


def test_fault_f_a_reload_in_mid_stream_names_the_model_that_writes() -> None:
    async def main() -> None:
        supply = Supply()
        service = await started(supply, watchdog_timeout=1000)
        free = supply.models[0].stuck = threading.Event()
        stream = service.generate(work("a b c"))
        first = asyncio.ensure_future(anext(stream))
        whole = asyncio.create_task(service.answer(work("d e")))
        await become(lambda: len(supply.models[0].active) == 2)
        await service.host.reload()
        assert service.health().model == "echo-1"
        free.set()
        chunks = [await first, *[chunk async for chunk in stream]]
        assert len(chunks) == 4 and {chunk.info.model for chunk in chunks if chunk.info} == {"echo-0"}
        assert (await whole).info.model == "echo-0"
        assert (await service.answer(work("f"))).info.model == "echo-1"
        await service.close()

    go(main)


def test_reload_under_load_loses_no_request() -> None:
    async def main() -> None:
        supply = Supply()
        service = await started(supply, watchdog_timeout=1000)
        stop = False
        answers: list[str] = []

        async def client(number: int) -> None:
            while not stop:
                answers.append((await service.answer(work(f"{number} x y"))).text)
                await asyncio.sleep(0)

        clients = [asyncio.create_task(client(number)) for number in range(6)]
        for _ in range(5):
            await service.host.reload()
            await asyncio.sleep(0.05)
        stop = True
        await asyncio.gather(*clients)
        assert len(answers) > 20 and all(each.endswith("x y") for each in answers)
        await become(lambda: [model.closed for model in supply.models] == [True] * 5 + [False])
        await service.close()

    go(main)


def test_a_reload_that_fails_leaves_the_old_one_in_service() -> None:
    def broken(model: EchoModel) -> None:
        raise LoadError("the new file is cut")

    async def main() -> None:
        supply = Supply({1: broken})
        service = await started(supply)
        with pytest.raises(LoadError, match="cut"):
            await service.host.reload()
        assert service.health().status == "ok" and service.health().model == "echo-0"
        assert (await service.answer(work())).text == "one two three"
        assert counted(service, "router_reloads_total", outcome="failed") == 1
        await service.close()

    go(main)


def test_one_reload_at_a_time_and_none_before_or_after() -> None:
    async def main() -> None:
        supply = Supply()
        service = GenerationService(load_settings(skip_warm_start=True), supply.load)
        await service.start()
        with pytest.raises(NotReady):
            await service.host.reload()
        await service.answer(work())
        both = await asyncio.gather(service.host.reload(), service.host.reload(), return_exceptions=True)
        assert sorted(type(each).__name__ for each in both) == ["ModelInfo", "NotReady"]
        await service.close()
        with pytest.raises(NotReady):
            await service.host.reload()

    go(main)


@pytest.mark.parametrize("loads", [True, False])
def test_a_reload_that_ends_before_a_load_holds(loads: bool) -> None:
    """The engine is lost while a reload runs: what was asked for last stays, whatever becomes of the load."""

    async def main() -> None:
        supply, reloaded, loaded = Supply(), threading.Event(), threading.Event()
        service = await started(supply)

        def load(report: Callable[[Attempt], None]) -> Loaded[Engine]:
            loaded.wait(30)
            if not loads:
                raise LoadError("gone")
            return supply.load(report)

        def reload(report: Callable[[Attempt], None]) -> Loaded[Engine]:
            reloaded.wait(30)
            return supply.load(report)

        service.host._reread = lambda: reload
        reloading = asyncio.create_task(service.host.reload())
        await asyncio.sleep(0.05)
        service.host.load = load
        service.host._restart("dead")
        await asyncio.sleep(0.05)
        reloaded.set()
        info = await reloading
        loaded.set()
        assert service.host.loading is not None
        await service.host.loading
        assert (service.health().status, service.health().model) == ("ok", info.model)
        assert (await service.answer(work())).text == "one two three"
        await service.close()

    go(main)
