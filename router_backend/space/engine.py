"""SpaceEngine: each request borrows a GPU, and its whole plan is written in the process that gets it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import spaces

from router_backend.engines.threaded import Flag, ThreadedEngine
from router_backend.errors import QuotaExceeded, RouterError
from router_backend.space.cancels import CallFlag, Cancels
from router_backend.space.duration import Duration
from router_backend.space.refusals import explain
from router_backend.tools.words import as_text
from router_backend.types import Chunk, GenerateRequest, LentGpu, ModelInfo

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel
    from router_backend.plan.write import PlanWriter
    from router_backend.settings import Settings

_USUAL_PROMPT = 512  # tokens
SLICES = {"large": 48.0, "xlarge": 96.0}  # GB


class SpaceEngine(ThreadedEngine):
    """A model whose weights wait on the disk, and a thread for each call that may ask ZeroGPU for a GPU at once.

    A call runs in a worker, a process that `spaces` forks from this one and uses again while the GPU stays with the
    Space. Only plain values go there and come back.
    """

    def __init__(self, model: LocalModel, writer: PlanWriter, settings: Settings, *, weights: int) -> None:
        """Make it before `launch`. `weights`: bytes on the GPU, where they are known."""
        self._settings = settings
        super().__init__(model, writer)
        self._cancels = Cancels()
        self._duration = Duration(weights)
        self._refused: RouterError | None = None
        self._refused_at = 0.0
        self._granted = False
        self._held, self._held_by_plans, self._plans = 0.0, 0.0, 0
        self._forked_at: float | None = None  # in a worker, until its first call
        self._learning = threading.Lock()
        # A worker must not be forked while another thread is in the tokenizer: what that had locked would stay so.
        os.register_at_fork(
            before=self._learning.acquire, after_in_parent=self._learning.release, after_in_child=self._after_fork
        )
        self._borrow = spaces.GPU(self._in_worker, duration=self._seconds, size=settings.zerogpu_size)

    @property
    def info(self) -> ModelInfo:
        return replace(self._model.info, slots=self._settings.slots)

    @property
    def gpu(self) -> LentGpu:
        left: float | None = None
        if self._refused is not None and self._refused.retry_after is not None:
            left = max(0.0, round(self._refused_at + self._refused.retry_after - time.monotonic(), 1))
        return LentGpu(
            size=self._settings.zerogpu_size,
            memory_gb=memory_gb(self._settings),
            quota="exceeded" if left else "granted" if self._granted else "unknown",
            retry_after=left or None,
            duration=self._duration.seconds(_USUAL_PROMPT, self._settings.max_new_tokens),
            seconds=round(self._held, 1),
            plans=self._plans,
            seconds_per_plan=round(self._held_by_plans / self._plans, 1) if self._plans else None,
        )

    async def close(self) -> None:
        """Nothing: the weights are placed once, for as long as the process lives."""

    def _flag(self) -> CallFlag:
        return self._cancels.begin()

    def _answer(self, request: GenerateRequest, cancelled: Flag, slot: int) -> Iterator[Chunk]:
        """Runs in the slot's thread, in the context of the request, which says whose quota is used."""
        assert isinstance(cancelled, CallFlag)
        request = request.settled()
        with self._learning:
            told = as_text(request)
            prompt_tokens = self._writer_of(told).admit(told)  # what cannot be answered must not cost GPU seconds
        said: list[str] = []
        for item in self._borrowed(request, cancelled.number, prompt_tokens):
            if isinstance(item, float):
                self._duration.started(item)
                continue
            said.append(item.text)
            if item.finish_reason is not None:
                self._count(item, plan=request.output == "plan")
            yield item
        if request.output == "plan" and not cancelled.is_set():
            with self._learning:  # for the workers to come: this one's has learnt it by itself
                self._model.remember("".join(said), request.owner)

    def _count(self, last: Chunk, *, plan: bool) -> None:
        with self._learning:
            self._held += last.timings.gpu_seconds
            if last.finish_reason == "cancelled":
                return
            self._duration.answered(last)
            if plan:
                self._plans += 1
                self._held_by_plans += last.timings.gpu_seconds

    def _borrowed(self, request: GenerateRequest, number: int, prompt_tokens: int) -> Iterator[float | Chunk]:
        """What comes from a worker, its errors as ours."""
        duration = self._seconds(request, number, prompt_tokens)
        failure: RouterError | None = None
        try:
            for item in self._borrow(request, number, prompt_tokens):
                self._granted, self._refused = True, None
                if isinstance(item, RouterError):
                    failure = item  # raised when the worker has ended the call
                else:
                    yield item
        except Exception as error:
            failure = explain(error, duration)
            if isinstance(failure, QuotaExceeded):
                self._refused, self._refused_at = failure, time.monotonic()
            raise failure from error
        if failure is not None:
            raise failure

    def _seconds(self, request: GenerateRequest, number: int, prompt_tokens: int) -> int:
        return self._duration.seconds(prompt_tokens, request.sampling.max_new_tokens)

    def _in_worker(
        self, request: GenerateRequest, number: int, prompt_tokens: int
    ) -> Iterator[float | Chunk | RouterError]:
        """Runs in the process that has the GPU. First the seconds that it took to come there, if it is a new one.

        Our errors come as values: as exceptions `spaces` would make a class name of them and end the worker.
        """
        held_since = time.monotonic()
        if self._forked_at is not None:
            held_since, self._forked_at = self._forked_at, None
            yield time.monotonic() - held_since
        flag = CallFlag(self._cancels, number)
        try:
            for chunk in super()._answer(request, flag, 0):
                if chunk.finish_reason is not None:
                    spent = replace(chunk.timings, gpu_seconds=time.monotonic() - held_since)
                    chunk = replace(chunk, timings=spent)
                yield chunk
        except RouterError as error:
            yield error

    def _after_fork(self) -> None:
        self._forked_at = time.monotonic()
        self._learning.release()


def memory_gb(settings: Settings) -> float:
    """GB of the slice."""
    return settings.zerogpu_memory or SLICES[settings.zerogpu_size]
