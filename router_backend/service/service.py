"""GenerationService: admits or refuses requests, and gives each one a deadline on the engine in service."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import anyio

from router_backend.errors import DeadlineExceeded, NotReady
from router_backend.service import tracing
from router_backend.service.admission import Admission, Quota
from router_backend.service.caller import caller
from router_backend.service.health import Health
from router_backend.service.host import Host, Load, Serving, stopping
from router_backend.service.metrics import Metrics
from router_backend.settings import Settings
from router_backend.types import Answer, Chunk, GenerateRequest

T = TypeVar("T")


class GenerationService:
    """The one way to the model.

    `load` blocks and runs in a thread; it is handed a function that it tells each attempt to.
    `reread` gives the load of `reload`, out of the settings as they are then; without it, `load` is repeated.
    All methods belong to one event loop.
    """

    def __init__(
        self,
        settings: Settings,
        load: Load,
        reread: Callable[[], Load] | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.admission = Admission(
            settings.slots, settings.queue_limit, Quota(settings.key_requests_per_minute, settings.key_concurrency)
        )
        self.host = Host(settings, load, reread or (lambda: load), self.metrics, self.admission)
        self.metrics.watch(self.health)
        self._accepted = 0
        self._started = time.monotonic()
        self._quiet = asyncio.Event()
        self._quiet.set()

    # Life

    async def start(self) -> None:
        """Begins the warm start in the background, unless `SKIP_WARM_START`."""
        if not self.settings.skip_warm_start:
            self.host.begin()

    async def drain(self) -> None:
        """Refuses new requests, and returns when those in flight have finished or `drain_timeout` is over."""
        self.host.stop()
        if self._ending.done():
            return
        with anyio.move_on_after(self.settings.drain_timeout):
            await self._quiet.wait()
        if not self._ending.done():
            self._ending.set_result(None)
        with anyio.move_on_after(1):  # an answer that nobody reads on cannot be told
            await self._quiet.wait()

    async def close(self) -> None:
        """Drains, and unloads."""
        await self.drain()
        await self.host.close()

    @property
    def is_stopping(self) -> bool:
        return self.host.is_stopping

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

    @cached_property
    def _ending(self) -> asyncio.Future[None]:
        """Done when nothing may go on any longer."""
        return asyncio.get_running_loop().create_future()

    def health(self) -> Health:
        host = self.host
        loaded = host.serving.loaded if host.serving else None
        info = loaded.model.info if loaded else None
        reason = loaded.reason if loaded else (host.error.message if host.error else host.phase)
        return Health(
            status=host.state,
            model=info.model if info else None,
            strategy=info.strategy if info else "pending",
            engine=info.engine if info else None,
            reason=reason,
            attempts=tuple(host.attempts),
            phase=host.phase,
            elapsed_seconds=round(time.monotonic() - self._started, 3),
            running=self.admission.running,
            waiting=self.admission.waiting,
            info=info,
            smallest_budget=loaded.model.smallest_budget() if loaded else None,
            gpu=loaded.model.gpu if loaded else None,
            stand_in=loaded.rung.candidate.last_resort if loaded else False,
            alive=not host.is_lost,
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
        with self.metrics.request(key, request.prompt if self.settings.log_prompts else None) as seen:
            self._admit()
            ticket = self.admission.enter(key, tokens, deadline)
            self._quiet.clear()
            finished = False
            try:
                with tracing.span("queue"):
                    if self.host.serving is None:
                        await self._before(deadline, self.host.ready())
                    if not ticket.granted.done():
                        await self._before(deadline, ticket.granted)
                    ticket.granted.result()
                serving = self.host.serving
                if serving is None:  # lost in the moment that the slot came free
                    raise self.host.lost()
                seen.begins(serving.engine.info, waited := time.monotonic() - arrived)
                async with contextlib.aclosing(self._run(serving, request, deadline)) as chunks:
                    async for chunk in chunks:
                        if chunk.finish_reason is not None:
                            chunk = replace(chunk, timings=replace(chunk.timings, queue_seconds=waited))
                            # A decision says nothing of how long tokens of an answer take.
                            finished = request.output != "decision"
                        seen.chunk(chunk)
                        yield chunk
            finally:
                self.admission.leave(ticket, finished=finished)
                self._hush()

    async def _run(self, serving: Serving, request: GenerateRequest, deadline: float) -> AsyncGenerator[Chunk, None]:
        """The request on an engine, whose failures are counted, and whose name goes with the answer."""
        with serving.used(), tracing.span("generate", model=serving.engine.info.model) as span:
            chunks, info, first = serving.engine.generate(request), serving.engine.info, True
            try:
                while True:
                    try:
                        chunk = await self._before(deadline, anext(chunks), serving)
                    except StopAsyncIteration:
                        return
                    if chunk.finish_reason is not None:
                        self.host.answered()
                        tracing.stages(span, chunk)
                    # Not on each one: of a short answer this would be a thirtieth of what the server does.
                    yield replace(chunk, info=info) if first or chunk.finish_reason is not None else chunk
                    first = False
            except Exception as error:
                self.host.failed(error)
                raise
            finally:
                await chunks.aclose()

    async def answer(self, request: GenerateRequest) -> Answer:
        """The whole answer at once. Raises what `generate` raises."""
        texts: list[str] = []
        last = Chunk()
        async with contextlib.aclosing(self.generate(request)) as chunks:
            async for chunk in chunks:
                texts.append(chunk.text)
                last = chunk
        return Answer("".join(texts), last, request.sampling.seed)

    def _admit(self) -> None:
        self.host.look()
        if self.is_stopping and (not self._accepted or self._ending.done()):
            raise stopping()
        if self.host.state == "failed" and time.monotonic() < self.host.retry_at:
            raise self.host.not_ready()

    async def _before(self, deadline: float, awaitable: Awaitable[T], serving: Serving | None = None) -> T:
        """The result, unless the deadline comes first, or the engine is lost, or nothing may go on."""
        scope = anyio.CancelScope(deadline=anyio.current_time() + deadline - time.monotonic())
        others = (self._ending, serving.lost) if serving else (self._ending,)

        def end(_: object) -> None:
            scope.cancel()

        for each in others:
            each.add_done_callback(end)
        try:
            with scope:
                return await awaitable
        finally:
            for each in others:
                each.remove_done_callback(end)
        if self._ending.done():
            raise stopping()
        if serving is not None and serving.lost.done():
            raise self.host.lost()
        if self.host.state == "loading":
            raise NotReady(f"the model is still loading: {self.host.phase}", retry_after=10)
        raise DeadlineExceeded(f"the request did not finish within {self.settings.request_timeout:g} seconds")

    def _hush(self) -> None:
        if not self._accepted and not self.admission.running and not self.admission.waiting:
            self._quiet.set()
