"""A checkpoint on this machine, and its predictions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager
from functools import cached_property
from pathlib import Path

from router_backend.checkpoints.ladder import Loaded
from router_backend.engines.base import Engine
from router_backend.service.loader import Loader
from router_backend.service.once import load_with
from router_backend.settings import Settings, check_name, load_settings
from router_backend.types import Chunk, GenerateRequest, Output, SamplingParams
from router_tools.evaluate.confidence import odds_of
from router_tools.evaluate.predictions import Predict, Prediction


class Local:
    """A checkpoint that is loaded when it is first needed; for threads. What loads it raises LoadError."""

    def __init__(self, candidate: str, slots: int) -> None:
        check_name("--candidate", candidate)
        self.settings: Settings = load_settings(model_repo=candidate, model_fallbacks="", slots=slots)
        self._loader = Loader(self.settings)
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="local")
        self._thread.start()

    @cached_property
    def _loaded(self) -> Loaded[Engine]:
        return load_with(self._loader)

    @property
    def place(self) -> Path:
        """The checkpoint's file or folder."""
        return self._loader.fetched(self._loaded.rung.candidate)

    def ask(self, request: GenerateRequest) -> list[Chunk]:
        """All of an answer. Raises what the engine raises."""

        async def answer(engine: Engine) -> list[Chunk]:
            async with aclosing(engine.generate(request)) as chunks:
                return [chunk async for chunk in chunks]

        with self._lock:
            engine = self._loaded.model
        return asyncio.run_coroutine_threadsafe(answer(engine), self._loop).result()

    def close(self) -> None:
        if "_loaded" in self.__dict__:
            asyncio.run_coroutine_threadsafe(self._loaded.model.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def predictor(
    candidate: str, slots: int, *, output: Output, max_new_tokens: int, temperature: float, seed: int
) -> Iterator[Predict]:
    """A function from prompt to prediction on a checkpoint of this machine, loaded at its first call; for threads.

    The function raises LoadError where the checkpoint does not load.
    """
    with closing(Local(candidate, slots)) as local:
        sampling = SamplingParams(max_new_tokens, temperature, local.settings.default_top_p, seed)

        def predict(prompt: str) -> Prediction:
            pieces = local.ask(GenerateRequest("evaluate", prompt, sampling, output=output))
            last = pieces[-1]
            return Prediction(
                text="".join(chunk.text for chunk in pieces),
                completion_tokens=last.usage.completion_tokens,
                clipped=last.budget.clipped if last.budget else None,
                finish_reason=last.finish_reason,
                first=odds_of(last.route[0].odds) if last.route else None,
            )

        yield predict
