"""GenerationService: loads the model once, admits or refuses requests, and gives each one a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

from router_backend.checkpoints.ladder import Attempt, Loaded, NothingLoads
from router_backend.engines.base import Engine
from router_backend.errors import (
    DeadlineExceeded,
    EngineError,
    EngineLost,
    LoadError,
    NotReady,
    OutOfMemory,
    RouterError,
)
from router_backend.plan.prompt import router_prompt
from router_backend.service import tracing
from router_backend.service.admission import Admission, Quota
from router_backend.service.caller import caller
from router_backend.service.daemon import in_daemon_thread, tell
from router_backend.service.metrics import Metrics
from router_backend.service.watchdog import Cause, Watchdog
from router_backend.settings import Settings
from router_backend.types import Answer, Chunk, GenerateRequest, LentGpu, ModelInfo, SamplingParams

State = Literal["idle", "loading", "ok", "failed", "stopping"]
T = TypeVar("T")
Load = Callable[[Callable[[Attempt], None]], Loaded[Engine]]
_FIRST_BACKOFF, _LONGEST_BACKOFF = 2.0, 60.0
_UNLOADED_WITHIN = 5.0  # seconds, or it is left behind: what hangs cannot be ended
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Health:
    """What `/health` says. `attempts` are the ladder's, in order; `alive` is whether this process can still help."""

    status: State
    model: str | None
    strategy: str
    engine: str | None
    reason: str
    attempts: tuple[Attempt, ...]
    phase: str
    elapsed_seconds: float
    running: int
    waiting: int
    info: ModelInfo | None
    smallest_budget: int | None
    gpu: LentGpu | None = None
    alive: bool = True


@dataclass(eq=False)
class _Serving:
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


class GenerationService:
    """The one way to the model.

    `load` blocks and runs in a thread; it is handed a function that it tells each attempt to.
    `on_fatal` is called with the error when a warm start fails that must not.
    `reread` gives the load of `reload`, out of the settings as they are then; without it, `load` is repeated.
    All methods belong to one event loop.
    """

    def __init__(
        self,
        settings: Settings,
        load: Load,
        on_fatal: Callable[[RouterError], None] = lambda error: None,
        reread: Callable[[], Load] | None = None,
    ) -> None:
        self.settings = settings
        self.on_fatal = on_fatal
        self.metrics = Metrics()
        self.admission = Admission(
            settings.slots,
            settings.queue_limit,
            Quota(settings.key_requests_per_minute, settings.key_concurrency),
        )
        self._load = load
        self._reread = reread or (lambda: load)
        self.metrics.watch(self.health)
        self._state: State = "idle"
        self._phase = "waiting for the first request"
        self._error: RouterError | None = None
        self._attempts: list[Attempt] = []
        self._serving: _Serving | None = None
        self._has_served = False
        self._watchdog = Watchdog(settings.watchdog_timeout)
        self._watching: asyncio.Task[None] | None = None
        self._discarding: set[asyncio.Task[None]] = set()
        self._left_behind = 0
        self._accepted = 0
        self._reloading = asyncio.Lock()
        self._loading: asyncio.Task[None] | None = None
        self._load_thread: threading.Thread | None = None
        self._backoff = _FIRST_BACKOFF
        self._retry_at = 0.0
        self._started = time.monotonic()
        self._quiet = asyncio.Event()
        self._quiet.set()

    # Life

    async def start(self) -> None:
        """Begins the warm start in the background, unless `SKIP_WARM_START`."""
        if not self.settings.skip_warm_start:
            self._begin_loading()

    async def drain(self) -> None:
        """Refuses new requests, and returns when those in flight have finished or `drain_timeout` is over."""
        self._state, self._phase = "stopping", "draining"
        if self._ending.done():
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), self.settings.drain_timeout)
        if not self._ending.done():
            self._ending.set_result(None)
        with contextlib.suppress(asyncio.TimeoutError):  # an answer that nobody reads on cannot be told
            await asyncio.wait_for(self._quiet.wait(), 1)

    async def close(self) -> None:
        """Drains, and unloads."""
        await self.drain()
        for task in filter(None, (self._watching, self._loading)):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        serving, self._serving = self._serving, None
        if serving is not None:
            await self._discard(serving.engine)
        if self._discarding:
            await asyncio.wait(self._discarding)

    @property
    def is_stopping(self) -> bool:
        return self._state == "stopping"

    @contextlib.contextmanager
    def accepted(self) -> Iterator[None]:
        """Around a request from its head on: one that came before the drain is let through to its end."""
        self._accepted += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._accepted -= 1
            self._hush()

    @property
    def is_stuck(self) -> bool:
        """Whether a thread is at work that nobody can end: a load goes on after `close`, and so does what hangs."""
        return bool(self._left_behind) or (self._load_thread is not None and self._load_thread.is_alive())

    @cached_property
    def _ending(self) -> asyncio.Future[None]:
        """Done when nothing may go on any longer."""
        return asyncio.get_running_loop().create_future()

    def health(self) -> Health:
        loaded = self._serving.loaded if self._serving else None
        info = loaded.model.info if loaded else None
        reason = loaded.reason if loaded else (self._error.message if self._error else self._phase)
        return Health(
            status=self._state,
            model=info.model if info else None,
            strategy=info.strategy if info else "pending",
            engine=info.engine if info else None,
            reason=reason,
            attempts=tuple(self._attempts),
            phase=self._phase,
            elapsed_seconds=round(time.monotonic() - self._started, 3),
            running=self.admission.running,
            waiting=self.admission.waiting,
            info=info,
            smallest_budget=loaded.model.smallest_budget() if loaded else None,
            gpu=loaded.model.gpu if loaded else None,
            alive=not (self._watchdog.gave_up or (self._watchdog.restarts and self._state == "failed")),
        )

    # Requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Yields the answer. Closing the generator cancels the request, wherever it is.

        Raises:
            NotReady: failed to load, loading for longer than the deadline, or shutting down.
            Overloaded: the queue is full.
            DeadlineExceeded: `request_timeout` is over, waiting included.
            RouterError: what the engine raises.
        """
        arrived = time.monotonic()
        deadline = arrived + self.settings.request_timeout
        who, tokens = caller.get(), request.sampling.max_new_tokens
        key = who.key
        request = replace(request, owner=who.owner)
        with self.metrics.request(key) as seen:
            self._admit()
            ticket = self.admission.enter(key, tokens, deadline)
            self._quiet.clear()
            finished = False
            try:
                with tracing.span("queue"):
                    if self._serving is None:
                        await self._before(deadline, self._ready())
                    if not ticket.granted.done():
                        await self._before(deadline, ticket.granted)
                    ticket.granted.result()
                serving = self._serving
                if serving is None:  # lost in the moment that the slot came free
                    raise self._lost()
                seen.begins(serving.engine.info, waited := time.monotonic() - arrived)
                async with contextlib.aclosing(self._run(serving, request, deadline)) as chunks:
                    async for chunk in chunks:
                        if chunk.finish_reason is not None:
                            chunk = replace(chunk, timings=replace(chunk.timings, queue_seconds=waited))
                            finished = True
                        seen.chunk(chunk)
                        yield chunk
            finally:
                self.admission.leave(ticket, finished=finished)
                self._hush()

    async def _run(self, serving: _Serving, request: GenerateRequest, deadline: float) -> AsyncGenerator[Chunk, None]:
        """The request on an engine, whose failures are counted."""
        with serving.used(), tracing.span("generate", model=serving.engine.info.model) as span:
            chunks = serving.engine.generate(request)
            try:
                while True:
                    try:
                        chunk = await self._before(deadline, anext(chunks), serving)
                    except StopAsyncIteration:
                        return
                    if chunk.finish_reason is not None:
                        self._watchdog.answered()
                        tracing.stages(span, chunk)
                    yield chunk
            except Exception as error:
                if not isinstance(error, RouterError) or isinstance(error, EngineError):
                    self._note_failure(error)
                raise
            finally:
                await chunks.aclose()

    async def answer(self, request: GenerateRequest) -> Answer:
        """The whole answer at once. Raises what `generate` raises."""
        texts: list[str] = []
        last = Chunk()
        info: ModelInfo | None = None
        async with contextlib.aclosing(self.generate(request)) as chunks:
            async for chunk in chunks:
                texts.append(chunk.text)
                last = chunk
                info = info or (self._serving.engine.info if self._serving else None)
        assert info is not None, "whatever answered was there when its first chunk came"
        return Answer("".join(texts), last, request.sampling.seed, info)

    def _admit(self) -> None:
        if self._state == "stopping" and (not self._accepted or self._ending.done()):
            raise _stopping()
        if self._state == "failed" and time.monotonic() < self._retry_at:
            raise self._not_ready()

    async def _ready(self) -> None:
        if self._serving is None:
            self._begin_loading()
            assert self._loading is not None
            await asyncio.shield(self._loading)
        if self._serving is None:
            raise self._not_ready()

    def _not_ready(self) -> NotReady:
        wait = max(1.0, self._retry_at - time.monotonic())
        cause = self._error.message if self._error else "not loaded"
        return NotReady(f"no model is loaded: {cause}", code="load_failed", retry_after=wait)

    def _lost(self) -> EngineLost:
        wait = max(1.0, self._retry_at - time.monotonic())
        return EngineLost("the engine was lost; it is being started again", retry_after=wait)

    async def _before(self, deadline: float, awaitable: Awaitable[T], serving: _Serving | None = None) -> T:
        """The result, unless the deadline comes first, or the engine is lost.

        (`asyncio.wait_for` loses cancels before Python 3.12.)
        """
        task = asyncio.ensure_future(awaitable)
        loop = asyncio.get_running_loop()
        # What `asyncio.wait` does, for each chunk of each answer, without its sets.
        woken: asyncio.Future[None] = loop.create_future()

        def wake(_: object = None) -> None:
            if not woken.done():
                woken.set_result(None)

        others = (self._ending, serving.lost) if serving else (self._ending,)
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), wake)
        for each in (task, *others):
            each.add_done_callback(wake)
        try:
            try:
                await woken
            finally:
                timer.cancel()
                for each in others:
                    each.remove_done_callback(wake)
            if task.done():
                return task.result()
            if self._ending.done():
                raise _stopping()
            if serving is not None and serving.lost.done():
                raise self._lost()
            if self._state == "loading":
                raise NotReady(f"the model is still loading: {self._phase}", retry_after=10)
            raise DeadlineExceeded(f"the request did not finish within {self.settings.request_timeout:g} seconds")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _hush(self) -> None:
        if not self._accepted and not self.admission.running and not self.admission.waiting:
            self._quiet.set()

    # Loading

    def _begin_loading(self, pause: float = 0.0) -> None:
        """Starts a load unless one runs: concurrent requests share an attempt."""
        if self._loading is None or self._loading.done():
            self._enter("loading", "choosing a checkpoint")
            self._attempts = []
            self._loading = asyncio.create_task(self._load_once(pause))

    async def _load_once(self, pause: float) -> None:
        try:
            await asyncio.sleep(pause)
            loaded = await self._load_and_warm(self._load)
        except Exception as error:
            self._fail(error)
            return
        self._serve(loaded)

    async def _load_and_warm(self, load: Load) -> Loaded[Engine]:
        """A load cannot be interrupted. So its thread is one that nobody waits for at the end."""
        loop = asyncio.get_running_loop()
        self._load_thread, result = in_daemon_thread(lambda: load(partial(tell, loop, self._note)), "load")
        loaded = await result
        try:
            if loaded.model.gpu is None:  # a lent one is paid for by whoever borrows it
                self._phase = "warming up" if self._state == "loading" else self._phase
                await self._unless_it_hangs(loaded.model, self._warm(loaded.model, loaded.model.info.slots))
        except BaseException:
            await self._discard(loaded.model)
            raise
        return loaded

    def _serve(self, loaded: Loaded[Engine]) -> None:
        """From now on requests go to this engine; one before it goes when its last request has ended."""
        before, self._serving = self._serving, _Serving(loaded)
        self._attempts = list(loaded.attempts)
        self._error = None
        self._backoff = _FIRST_BACKOFF
        self._has_served = True
        self._enter("ok", "serving")
        self.admission.open(loaded.model.info.slots)
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
        if self._state == "stopping":
            raise _stopping()
        if self._state != "ok" or self._reloading.locked():
            raise NotReady("a load is at work already, or nothing is served yet", retry_after=10)
        async with self._reloading:
            try:
                load = self._reread()
                loaded = await self._load_and_warm(load)
            except Exception as error:
                self.metrics.reloads.labels("failed").inc()
                _log.error("reload failed, the old model goes on: %s", error)
                raise error if isinstance(error, RouterError) else LoadError(type(error).__name__) from error
            if self._ending.done():
                await self._discard(loaded.model)
                raise _stopping()
            self._load = load
            self._serve(loaded)
            self.metrics.reloads.labels("ok").inc()
            return loaded.model.info

    async def _retire(self, serving: _Serving) -> None:
        if serving.requests:
            await serving.unused.wait()
        await self._discard(serving.engine)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)

    async def _discard(self, engine: Engine) -> None:
        """Unloads; one that hangs is left behind."""
        closing = asyncio.ensure_future(engine.close())
        done, _ = await asyncio.wait({closing}, timeout=_UNLOADED_WITHIN)
        if done:
            closing.result()
        else:
            self._left_behind += 1
            closing.cancel()
            _log.error("an engine that hangs is left behind; its memory is free again when this process ends")

    # Watching

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._watchdog.interval)
            serving = self._serving
            cause = self._watchdog.verdict(serving.engine) if serving and self._state == "ok" else None
            if cause == "dead" and serving is not None and await self._answers(serving.engine):
                self._watchdog.failures = 0  # it was the requests
            elif cause is not None and self._serving is serving:
                self._restart(cause)

    async def _answers(self, engine: Engine) -> bool:
        """Whether an engine that failed several times still answers what every engine can."""
        if engine.gpu is not None:
            return True  # nobody is there to pay for the question, and each failure had a worker of its own
        try:
            await self._unless_it_hangs(engine, self._warm(engine, 1))
        except Exception as error:
            _log.warning("the engine fails: %s", type(error).__name__)
            return False
        return True

    async def _unless_it_hangs(self, engine: Engine, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=self._watchdog.interval)
                if self._watchdog.verdict(engine) == "hung" and not task.done():
                    raise LoadError("the checkpoint hung in its warm-up")
            task.result()
        finally:
            task.cancel()

    def _note_failure(self, error: Exception) -> None:
        if not isinstance(error, (OutOfMemory, EngineLost)):
            self._watchdog.failed()

    def _restart(self, cause: Cause) -> None:
        """Gives an engine up: who was on it is told, and who comes now waits for the next one."""
        lost, self._serving = self._serving, None
        assert lost is not None
        pause = self._watchdog.restarting()
        self.metrics.restarts.labels(cause).inc()
        _log.error("the engine is %s; it is started again in %g seconds", cause, pause)
        self.admission.shut()
        self._retry_at = time.monotonic() + pause
        self._error = EngineLost(f"the engine was {cause}")
        lost.lost.set_result(None)
        self._in_background(self._discard(lost.engine))
        self._begin_loading(pause)

    async def _warm(self, engine: Engine, slots: int) -> None:
        """A short answer in every slot, so that the first user pays for nothing; the first has a router's prompt."""
        sampling = SamplingParams(max_new_tokens=2, temperature=0)
        prompts = [router_prompt("warm up"), *["warm up"] * (slots - 1)]
        work = [GenerateRequest("warm-up", prompt, sampling, grammar='start: "{\\"" /[a-z_]+/') for prompt in prompts]
        await asyncio.gather(*(_drain(engine.generate(request)) for request in work))

    def _note(self, attempt: Attempt) -> None:
        self.metrics.attempts.labels(attempt.strategy, attempt.outcome).inc()
        if self._state == "ok":
            return  # a reload: what is served is still the old one
        self._attempts.append(attempt)
        self._phase = f"{attempt.candidate} [{attempt.strategy}] {attempt.outcome}"

    def _enter(self, state: State, phase: str) -> None:
        if self._state != "stopping":  # there is no way back from that
            self._state, self._phase = state, phase

    def _fail(self, cause: Exception) -> None:
        error = cause if isinstance(cause, RouterError) else LoadError(f"{type(cause).__name__}: {cause}")
        if isinstance(error, NothingLoads):
            self._attempts = list(error.attempts)
        self._error = error
        self._retry_at = time.monotonic() + self._backoff
        self._backoff = min(2 * self._backoff, _LONGEST_BACKOFF)
        self._enter("failed", "no checkpoint could be loaded")
        _log.error("load failed: %s", error.message)
        forgiven = self.settings.allow_warm_start_failure or self.settings.skip_warm_start or self._has_served
        if self._state == "failed" and not forgiven:
            self.on_fatal(error)


def _stopping() -> NotReady:
    return NotReady("the server is shutting down", retry_after=5)


async def _drain(chunks: AsyncGenerator[Chunk, None]) -> None:
    async for _ in chunks:
        pass
