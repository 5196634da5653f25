"""Predictions of a checkpoint on this machine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager

from router_backend.engines.base import Engine
from router_backend.service.once import load_once
from router_backend.settings import check_name, load_settings
from router_backend.types import GenerateRequest, SamplingParams
from router_tools.evaluate.predictions import Prediction
from router_tools.evaluate.run import EvaluateOptions


@contextmanager
def predictor(candidate: str, options: EvaluateOptions) -> Iterator[Callable[[str], Prediction]]:
    """A function from prompt to prediction on a checkpoint of this machine, loaded at its first call; for threads.

    The function raises LoadError where the checkpoint does not load.
    """
    check_name("--candidate", candidate)
    settings = load_settings(model_repo=candidate, model_fallbacks="", slots=options.concurrency)
    loaded: list[Engine] = []
    lock = threading.Lock()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="predictor")
    thread.start()
    sampling = SamplingParams(options.max_new_tokens, options.temperature, settings.default_top_p, options.seed)

    async def answer(engine: Engine, prompt: str) -> Prediction:
        began = time.monotonic()
        request = GenerateRequest("evaluate", prompt, sampling, output=options.output)
        async with aclosing(engine.generate(request)) as chunks:
            pieces = [chunk async for chunk in chunks]
        last = pieces[-1]
        return Prediction(
            text="".join(chunk.text for chunk in pieces),
            seconds=time.monotonic() - began,
            completion_tokens=last.usage.completion_tokens,
            clipped=last.budget.clipped if last.budget else None,
            finish_reason=last.finish_reason,
        )

    def predict(prompt: str) -> Prediction:
        with lock:
            if not loaded:
                loaded.append(load_once(settings).model)
        return asyncio.run_coroutine_threadsafe(answer(loaded[0], prompt), loop).result()

    try:
        yield predict
    finally:
        for engine in loaded:
            asyncio.run_coroutine_threadsafe(engine.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
