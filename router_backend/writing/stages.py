"""Stages: a text that is written piece by piece, what is known by code and the rest by the model.

A script yields an `Ask` for each piece that the model writes, is sent the `Reply`, and meanwhile its `text` grows by
what will stand. `StageRun` brings a script and a model together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from router_backend.types import Chunk, GenerateRequest, Timings
from router_backend.writing import clip

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel


@dataclass(frozen=True, slots=True)
class Ask:
    """What the checkpoint is to write next, after the script's `text` and `said`, which does not stand yet."""

    field: str
    max_tokens: int
    grammar: str
    stop: tuple[str, ...]
    attempt: int = 0
    said: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What it wrote, without the stop text. `ended`: by itself, rather than by the limit or for repeating itself."""

    text: str
    ended: bool


Stages = Generator[Ask, Reply, None]


class Script(Protocol):
    """`text` is never taken back."""

    text: str

    def stages(self) -> Stages: ...


class StageRun:
    """One script on one model.

    Attributes:
        calls: of the model; `calls_again` of them asked a second time.
        cached: tokens of the first call's prompt that were in the prefix cache.
        cancelled: the client has left, and the script did not end.
    """

    def __init__(
        self,
        model: LocalModel,
        request: GenerateRequest,
        prompt_tokens: int,
        cancelled: Callable[[], bool],
        slot: int = 0,
    ) -> None:
        """`prompt_tokens` of the request: with the text so far and a stage they never exceed the context."""
        self._model, self._request, self._slot = model, request, slot
        self._room = model.info.context_length - prompt_tokens
        self._is_cancelled = cancelled
        self._sent = 0
        self.timings = Timings()
        self.calls = self.calls_again = self.cached = 0
        self.cancelled = False

    def chunks(self, script: Script) -> Iterator[Chunk]:
        """Yields the text as it comes to stand, all but the `rest`. Raises what script and model raise."""
        stages = script.stages()
        try:
            ask = next(stages)
            while True:
                reply = self._run(ask, script.text)
                if reply is None:
                    self.cancelled = True
                    return
                ask = stages.send(reply)
                if piece := self.rest(script):
                    self._sent += len(piece)
                    yield Chunk(piece)
        except StopIteration:
            pass

    def rest(self, script: Script) -> str:
        """What was not yielded yet."""
        return script.text[self._sent :]

    def _run(self, ask: Ask, text: str) -> Reply | None:
        """One stage on the model. None where the client has left."""
        prefix = text + ask.said
        sampling = replace(
            self._request.sampling,
            max_new_tokens=max(1, min(ask.max_tokens, self._room - self._model.count_tokens(prefix))),
            stop=ask.stop,
            seed=(self._request.sampling.seed + 1000 * self.calls) % 2**32,
        )
        stage = replace(self._request, sampling=sampling, prefix=prefix, grammar=ask.grammar, output="text")
        pieces: list[str] = []
        began = time.monotonic()
        for chunk in self._model.generate(stage, self._is_cancelled, self._slot):
            if chunk.text:
                pieces.append(chunk.text)
                cut = clip.repeats(pieces)
                if cut is not None:
                    self._add(Chunk(timings=Timings(0.0, 0.0, time.monotonic() - began, len(pieces))), ask)
                    return Reply("".join(pieces[:cut]), ended=False)
            if chunk.finish_reason == "cancelled":
                return None
            if chunk.finish_reason is not None:
                self._add(chunk, ask)
                return Reply("".join(pieces), ended=chunk.finish_reason == "stop")
        return None

    def _add(self, chunk: Chunk, ask: Ask) -> None:
        if not self.calls:
            self.cached = chunk.usage.cached_tokens
        self.calls += 1
        self.calls_again += ask.attempt > 0
        self.timings += chunk.timings
