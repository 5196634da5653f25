"""Host: keeps one engine in service. It loads, watches, replaces and discards them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import anyio

from router_backend.checkpoints.ladder import Attempt, Loaded, NothingLoads
from router_backend.engines import trial
from router_backend.engines.base import Engine
from router_backend.engines.daemon import in_daemon_thread, tell
from router_backend.errors import EngineError, EngineLost, LoadError, NotReady, OutOfMemory, RouterError
from router_backend.service.admission import Admission
from router_backend.service.health import State
from router_backend.service.metrics import Metrics
from router_backend.settings import Settings
from router_backend.types import ModelInfo

Load = Callable[[Callable[[Attempt], None]], Loaded[Engine]]
Cause = Literal["hung", "dead"]
_FAILURES = 3  # one after the other, from different requests
_RESTARTS = 3  # without one answer between them
_UNLOADED_WITHIN = 5.0  # seconds, or it is left behind: what hangs cannot be ended
_log = logging.getLogger(__name__)


def pause(times: int) -> float:
    """Seconds to wait after it failed so many times: 0, then 1, 2, 4 … 60."""
    return 0.0 if times < 1 else min(60.0, 2.0 ** (times - 1))


def stopping() -> NotReady:
    return NotReady("the server is shutting down", retry_after=5)


@dataclass(eq=False)
class Serving:
    """An engine in service, and the requests on it."""

    loaded: Loaded[Engine]
    requests: int = 0
    lost: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def engine(self) -> Engine:
        return self.loaded.model

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        self.requests += 1
        self.unused.clear()
        try:
            yield
        finally:
            self.requests -= 1
            if not self.requests:
                self.unused.set()


class Host:
    """The engine in service, as the service needs it. All methods belong to one event loop.

    Attributes:
        serving: the engine and the requests on it; None before the first load, and between a loss and the next one.
        attempts: to load what is served, or is being loaded.
        error: why nothing is served.
        retry_at: when, on the monotonic clock, a failed load may be tried again.
        on_fatal: is called with the error when a warm start fails that must not.
        failures: of requests, one after the other; restarts: without an answer between them.
    """

    def __init__(
        self,
        settings: Settings,
        load: Load,
        reread: Callable[[], Load],
        metrics: Metrics,
        admission: Admission,
    ) -> None:
        self.load = load
        self._settings, self._reread, self._metrics = settings, reread, metrics
        self._admission = admission
        self.on_fatal: Callable[[RouterError], None] = lambda error: None
        self.state: State = "idle"
        self.phase = "waiting for the first request"
        self.error: RouterError | None = None
        self.attempts: list[Attempt] = []
        self.serving: Serving | None = None
        self.loading: asyncio.Task[None] | None = None
        self.retry_at = 0.0
        self.failures = self.restarts = 0
        self._failed_loads = 0
        self._has_served = self._elsewhere = False
        self._watching: asyncio.Task[None] | None = None
        self._discarding: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._again: asyncio.TimerHandle | None = None

    @property
    def is_stopping(self) -> bool:
        return self.state == "stopping"

    @property
    def is_lost(self) -> bool:
        """Whether engine after engine was lost, or the last one cannot be replaced: only another process can help.

        Not where a server elsewhere was lost: a new process here would not find it either.
        """
        if self._elsewhere:
            return False
        return self.restarts > _RESTARTS or bool(self.restarts and self._failed_loads)

    async def ready(self) -> None:
        """Returns when a load has ended, which it begins where none runs. Raises NotReady where nothing is served."""
        if self.serving is None:
            self.begin()
            assert self.loading is not None
            await asyncio.shield(self.loading)
        if self.serving is None:
            raise self.not_ready()

    def not_ready(self) -> NotReady:
        cause = self.error.message if self.error else "not loaded"
        return NotReady(f"no model is loaded: {cause}", code="load_failed", retry_after=self._wait())

    def lost(self) -> EngineLost:
        return EngineLost("the engine was lost; it is being started again", retry_after=self._wait())

    def _wait(self) -> float:
        return max(1.0, self.retry_at - time.monotonic())

    def answered(self) -> None:
        """The engine has answered a request."""
        self.failures = self.restarts = 0

    def failed(self, error: Exception) -> None:
        """The engine has failed a request, by a fault of its own or nobody's."""
        if (not isinstance(error, RouterError) or isinstance(error, EngineError)) and not isinstance(
            error, OutOfMemory | EngineLost
        ):
            self.failures += 1
        self.look()

    def look(self) -> None:
        """Gives the engine up where it has ended by itself."""
        if self.serving and self.state == "ok" and self.serving.engine.died:
            self._restart("dead")

    def stop(self) -> None:
        """From now on nothing is loaded or exchanged."""
        self.state, self.phase = "stopping", "draining"
        self._wait_no_longer()

    async def close(self) -> None:
        for task in filter(None, (self._watching, self.loading)):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        serving, self.serving = self.serving, None
        if serving is not None:
            await self._discard(serving.engine)
        if self._discarding:
            await asyncio.wait(self._discarding)

    # Loading

    def begin(self, after: float = 0.0) -> None:
        """Starts a load unless one runs: concurrent requests share an attempt."""
        if self.loading is None or self.loading.done():
            self._wait_no_longer()
            self._enter("loading", "choosing a checkpoint")
            self.attempts = []
            self.loading = asyncio.create_task(self._load_once(after))

    def _wait_no_longer(self) -> None:
        if self._again is not None:
            self._again.cancel()

    async def _load_once(self, after: float) -> None:
        try:
            await asyncio.sleep(after)
            loaded = await self._loaded(self.load)
        except Exception as error:
            if self.serving is None:
                self._fail(error)
            return
        if self.serving is not None:  # a reload was faster, and is what was asked for last
            await self._discard(loaded.model)
            return
        self._serve(loaded)

    async def _loaded(self, load: Load) -> Loaded[Engine]:
        """A load cannot be interrupted. So its thread is one that nobody waits for at the end."""
        loop = asyncio.get_running_loop()
        return await in_daemon_thread(lambda: load(partial(tell, loop, self._note)), "load")

    def _serve(self, loaded: Loaded[Engine]) -> None:
        """From now on requests go to this engine; one before it goes when its last request has ended."""
        before, self.serving = self.serving, Serving(loaded)
        self.attempts = list(loaded.attempts)
        self.error = None
        self._failed_loads = 0
        self._has_served = True
        self._elsewhere = loaded.rung.candidate.kind == "upstream"
        self._enter("ok", "serving")
        self._admission.open(loaded.model.info.slots)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        if before is not None:
            self._in_background(self._retire(before))
        _log.info("ready", extra={"model": loaded.model.info.model, "strategy": loaded.model.info.strategy})

    async def reload(self) -> ModelInfo:
        """Loads what the settings name by now beside what is served, and then takes its place. Nothing is dropped.

        Raises:
            NotReady: nothing is served yet, or the server is shutting down.
            RouterError: the new checkpoint does not load or does not answer; the old one goes on.
        """
        if self.state == "stopping":
            raise stopping()
        if self.state != "ok" or self._reloading.locked():
            raise NotReady("a load is at work already, or nothing is served yet", retry_after=10)
        async with self._reloading:
            try:
                load = self._reread()
                loaded = await self._loaded(load)
            except Exception as error:
                self._metrics.reloads.labels("failed").inc()
                _log.error("reload failed, the old model goes on: %s", error)
                raise error if isinstance(error, RouterError) else LoadError(type(error).__name__) from error
            if self.is_stopping:
                await self._discard(loaded.model)
                raise stopping()
            self.load = load
            self._serve(loaded)
            self._metrics.reloads.labels("ok").inc()
            return loaded.model.info

    async def _retire(self, serving: Serving) -> None:
        if serving.requests:
            await serving.unused.wait()
        await self._discard(serving.engine)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)

    async def _discard(self, engine: Engine) -> None:
        """Unloads; one that hangs is left behind."""
        with anyio.move_on_after(_UNLOADED_WITHIN):
            await engine.close()
            return
        _log.error("an engine that hangs is left behind; its memory is free again when this process ends")

    # Watching

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            self.look()
            serving = self.serving
            cause = self._verdict(serving.engine) if serving and self.state == "ok" else None
            if cause == "dead" and serving is not None and await self._answers(serving.engine):
                self.failures = 0  # it was the requests
            elif cause is not None and self.serving is serving:
                self._restart(cause)

    async def _answers(self, engine: Engine) -> bool:
        """Whether an engine that failed several times still answers what every engine can."""
        if engine.gpu is not None:
            return True  # nobody is there to pay for the question, and each failure had a worker of its own

        async def ask() -> None:
            async with contextlib.aclosing(engine.generate(trial.question())) as chunks:
                trial.check("".join([chunk.text async for chunk in chunks]), engine.info)

        asked = asyncio.ensure_future(ask())
        try:
            while not asked.done():
                await asyncio.wait({asked}, timeout=self._interval)
                if self._verdict(engine) == "hung":
                    raise EngineError("it hangs")
            asked.result()
        except Exception as error:
            _log.warning("the engine fails: %s", type(error).__name__)
            return False
        finally:
            asked.cancel()
        return True

    @property
    def _interval(self) -> float:
        timeout = self._settings.watchdog_timeout
        return min(1.0, timeout / 4) if timeout else 1.0

    def _verdict(self, engine: Engine) -> Cause | None:
        if self._settings.watchdog_timeout and engine.stalled_seconds > self._settings.watchdog_timeout:
            return "hung"
        return "dead" if self.failures >= _FAILURES else None

    def _restart(self, cause: Cause) -> None:
        """Gives an engine up: who was on it is told, and who comes now waits for the next one."""
        lost, self.serving = self.serving, None
        assert lost is not None
        self.failures = 0
        self.restarts += 1
        seconds = pause(self.restarts - 1)
        self._metrics.restarts.labels(cause).inc()
        _log.error("the engine is %s; it is started again in %g seconds", cause, seconds)
        self._admission.shut()
        self.retry_at = time.monotonic() + seconds
        self.error = EngineLost(f"the engine was {cause}")
        lost.lost.set_result(None)
        self._in_background(self._discard(lost.engine))
        self.begin(seconds)

    def _note(self, attempt: Attempt) -> None:
        self._metrics.attempts.labels(attempt.strategy, attempt.outcome).inc()
        if self.state == "ok":
            return  # a reload: what is served is still the old one
        self.attempts.append(attempt)
        self.phase = f"{attempt.candidate} [{attempt.strategy}] {attempt.outcome}"

    def _enter(self, state: State, phase: str) -> None:
        if self.state != "stopping":  # there is no way back from that
            self.state, self.phase = state, phase

    def _fail(self, cause: Exception) -> None:
        error = cause if isinstance(cause, RouterError) else LoadError(f"{type(cause).__name__}: {cause}")
        if isinstance(error, NothingLoads):
            self.attempts = list(error.attempts)
        self.error = error
        self._failed_loads += 1
        seconds = pause(1 + self._failed_loads)
        self.retry_at = time.monotonic() + seconds
        self._enter("failed", "no checkpoint could be loaded")
        _log.error("load failed: %s", error.message)
        forgiven = self._settings.allow_warm_start_failure or self._settings.skip_warm_start or self._has_served
        if self.state == "failed" and forgiven:  # behind a readiness probe no request comes that would try again
            self._again = asyncio.get_running_loop().call_later(seconds, self.begin)
        elif self.state == "failed":
            self.on_fatal(error)
