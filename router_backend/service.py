"""GenerationService: loads the model once, admits or refuses requests, and gives each one a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

from router_backend.engines.base import Engine
from router_backend.errors import DeadlineExceeded, LoadError, NotReady, Overloaded, RouterError
from router_backend.ladder import Attempt, Loaded, NothingLoads
from router_backend.plan.prompt import router_prompt
from router_backend.settings import Settings
from router_backend.types import Answer, Chunk, GenerateRequest, ModelInfo, SamplingParams

State = Literal["idle", "loading", "ok", "failed", "stopping"]
T = TypeVar("T")
Load = Callable[[Callable[[Attempt], None]], Loaded[Engine]]
_FIRST_BACKOFF, _LONGEST_BACKOFF = 2.0, 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Health:
    """What `/health` says. `attempts` are the ladder's, in order."""

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


class GenerationService:
    """The one way to the model.

    `load` blocks and runs in a thread; it is handed a function that it tells each attempt to.
    `on_fatal` is called with the error when a warm start fails that must not.
    All methods belong to one event loop.
    """

    def __init__(
        self, settings: Settings, load: Load, on_fatal: Callable[[RouterError], None] = lambda error: None
    ) -> None:
        self.settings = settings
        self.on_fatal = on_fatal
        self._load = load
        self._state: State = "idle"
        self._phase = "waiting for the first request"
        self._error: RouterError | None = None
        self._attempts: list[Attempt] = []
        self._loaded: Loaded[Engine] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._load_thread: threading.Thread | None = None
        self._backoff = _FIRST_BACKOFF
        self._retry_at = 0.0
        self._started = time.monotonic()
        self._slots = asyncio.Semaphore(0)
        self._running = 0
        self._waiting = 0
        self._mean_seconds = 5.0
        self._quiet = asyncio.Event()
        self._quiet.set()

    # Life

    async def start(self) -> None:
        """Begins the warm start in the background, unless `SKIP_WARM_START`."""
        if not self.settings.skip_warm_start:
            self._begin_loading()

    async def close(self) -> None:
        """Refuses new requests, lets those in flight finish for `drain_timeout` seconds, and unloads."""
        self._state, self._phase = "stopping", "draining"
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), self.settings.drain_timeout)
        if not self._ending.done():
            self._ending.set_result(None)
        with contextlib.suppress(asyncio.TimeoutError):  # an answer that nobody reads on cannot be told
            await asyncio.wait_for(self._quiet.wait(), 2)
        if self._loading is not None:
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loading
        if self._loaded is not None:
            await self._loaded.model.close()
            self._loaded = None

    @property
    def is_loading(self) -> bool:
        """Whether a load is at work, wanted or not: it goes on after `close`."""
        return self._load_thread is not None and self._load_thread.is_alive()

    @cached_property
    def _ending(self) -> asyncio.Future[None]:
        """Done when nothing may go on any longer."""
        return asyncio.get_running_loop().create_future()

    def health(self) -> Health:
        loaded = self._loaded
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
            running=self._running,
            waiting=self._waiting,
            info=info,
            smallest_budget=loaded.model.smallest_budget() if loaded else None,
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
        self._admit()
        self._waiting += 1
        self._quiet.clear()
        try:
            engine = await self._before(deadline, self._ready())
            await self._acquire_slot(deadline)
        except BaseException:
            self._waiting -= 1
            self._hush()
            raise
        self._waiting -= 1
        self._running += 1
        began = time.monotonic()
        chunks = engine.generate(request)
        try:
            while True:
                try:
                    chunk = await self._before(deadline, anext(chunks))
                except StopAsyncIteration:
                    return
                if chunk.finish_reason is not None:
                    chunk = replace(chunk, timings=replace(chunk.timings, queue_seconds=began - arrived))
                yield chunk
        finally:
            self._running -= 1
            self._slots.release()
            self._mean_seconds += 0.1 * (time.monotonic() - began - self._mean_seconds)
            self._hush()
            await chunks.aclose()

    async def answer(self, request: GenerateRequest) -> Answer:
        """The whole answer at once. Raises what `generate` raises."""
        texts: list[str] = []
        last = Chunk()
        async with contextlib.aclosing(self.generate(request)) as chunks:
            async for chunk in chunks:
                texts.append(chunk.text)
                last = chunk
        assert self._loaded is not None
        return Answer("".join(texts), last, request.sampling.seed, self._loaded.model.info)

    def _admit(self) -> None:
        if self._state == "stopping":
            raise NotReady("the server is shutting down", retry_after=5)
        if self._state == "failed" and time.monotonic() < self._retry_at:
            raise self._not_ready()
        slots = self._loaded.model.info.slots if self._loaded else self.settings.slots
        if self._running + self._waiting >= slots + self.settings.queue_limit:
            wait = max(1.0, self._mean_seconds * (self._waiting + 1) / slots)
            raise Overloaded(f"{self._waiting} requests are waiting already; try again later", retry_after=wait)

    async def _ready(self) -> Engine:
        if self._loaded is None:
            self._begin_loading()
            assert self._loading is not None
            await asyncio.shield(self._loading)
        if self._loaded is None:
            raise self._not_ready()
        return self._loaded.model

    def _not_ready(self) -> NotReady:
        wait = max(1.0, self._retry_at - time.monotonic())
        cause = self._error.message if self._error else "not loaded"
        return NotReady(f"no model is loaded: {cause}", code="load_failed", retry_after=wait)

    async def _before(self, deadline: float, awaitable: Awaitable[T]) -> T:
        """The result, unless the deadline comes first. (`asyncio.wait_for` loses cancels before Python 3.12.)"""
        task = asyncio.ensure_future(awaitable)
        try:
            left = max(0.0, deadline - time.monotonic())
            either: set[asyncio.Future[Any]] = {task, self._ending}
            await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if self._ending.done():
                raise NotReady("the server is shutting down", retry_after=5)
            if self._state == "loading":
                raise NotReady(f"the model is still loading: {self._phase}", retry_after=10)
            raise DeadlineExceeded(f"the request did not finish within {self.settings.request_timeout:g} seconds")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _acquire_slot(self, deadline: float) -> None:
        task = asyncio.ensure_future(self._slots.acquire())
        try:
            await self._before(deadline, task)
        except BaseException:
            if task.done() and not task.cancelled():  # it came together with the cancel
                self._slots.release()
            raise

    def _hush(self) -> None:
        if not self._running and not self._waiting:
            self._quiet.set()

    # Loading

    def _begin_loading(self) -> None:
        """Starts a load unless one runs: concurrent requests share an attempt."""
        if self._loading is None or self._loading.done():
            self._enter("loading", "choosing a checkpoint")
            self._attempts = []
            self._loading = asyncio.create_task(self._load_once())

    async def _in_its_thread(self, load: Callable[[], Loaded[Engine]]) -> Loaded[Engine]:
        """A load cannot be interrupted. So its thread is one that nobody waits for at the end."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Loaded[Engine]] = loop.create_future()

        def tell(loaded: Loaded[Engine] | None, error: Exception | None) -> None:
            if result.cancelled():
                return
            if error is not None:
                result.set_exception(error)
            elif loaded is not None:
                result.set_result(loaded)

        def run() -> None:
            try:
                outcome: tuple[Loaded[Engine] | None, Exception | None] = load(), None
            except Exception as error:
                outcome = None, error
            _tell(loop, tell, *outcome)

        self._load_thread = threading.Thread(target=run, name="load", daemon=True)
        self._load_thread.start()
        return await result

    async def _load_once(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            loaded = await self._in_its_thread(lambda: self._load(lambda each: _tell(loop, self._note, each)))
        except Exception as error:
            self._fail(error)
            return
        try:
            self._enter("loading", "warming up")
            await self._warm(loaded.model)
        except BaseException as error:
            await loaded.model.close()
            if not isinstance(error, Exception):
                raise
            self._fail(error)
            return
        self._loaded = loaded
        self._attempts = list(loaded.attempts)
        self._error = None
        self._backoff = _FIRST_BACKOFF
        self._slots = asyncio.Semaphore(loaded.model.info.slots)
        self._enter("ok", "serving")
        _log.info("ready", extra={"model": loaded.model.info.model, "strategy": loaded.model.info.strategy})

    async def _warm(self, engine: Engine) -> None:
        """A short answer in every slot, so that the first user pays for nothing; the first has a router's prompt."""
        sampling = SamplingParams(max_new_tokens=2, temperature=0)
        prompts = [router_prompt("warm up"), *["warm up"] * (engine.info.slots - 1)]
        work = [GenerateRequest("warm-up", prompt, sampling, grammar='start: "{\\"" /[a-z_]+/') for prompt in prompts]
        await asyncio.gather(*(_drain(engine.generate(request)) for request in work))

    def _note(self, attempt: Attempt) -> None:
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
        if self._state == "failed" and not self.settings.allow_warm_start_failure and not self.settings.skip_warm_start:
            self.on_fatal(error)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *what: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
        loop.call_soon_threadsafe(function, *what)


async def _drain(chunks: AsyncGenerator[Chunk, None]) -> None:
    async for _ in chunks:
        pass
