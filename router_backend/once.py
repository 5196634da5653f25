"""Answers without a server."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager

from rich.console import Console

from router_backend.engines.base import Engine
from router_backend.evaluation import EvaluateOptions, Prediction
from router_backend.ladder import Attempt, Loaded
from router_backend.plan.prompt import INSTRUCTIONS, router_prompt
from router_backend.settings import Settings, load_settings
from router_backend.start import load_engine, load_first
from router_backend.types import GenerateRequest, SamplingParams


async def answer_once(
    prompt: str, *, text: bool, max_new_tokens: int | None, temperature: float | None, seed: int
) -> None:
    """Prints the answer as it comes; what was loaded and what it took goes to standard error.

    Raises:
        RouterError: as loading and generating do.
    """
    settings = load_settings(max_new_tokens=max_new_tokens, default_temperature=temperature)
    loaded = _load(settings)
    whole = text or prompt.startswith(INSTRUCTIONS.partition("\n")[0])
    request = GenerateRequest(
        "cli",
        prompt if whole else router_prompt(prompt),
        SamplingParams(settings.max_new_tokens, settings.default_temperature, settings.default_top_p, seed),
        output="text" if text else "plan",
    )
    try:
        async with aclosing(loaded.model.generate(request)) as chunks:
            async for chunk in chunks:
                print(chunk.text, end="", flush=True)  # noqa: T201
                if chunk.finish_reason is not None:
                    used = f"{chunk.usage.completion_tokens} tokens in {chunk.timings.decode_seconds:.1f} s"
                    print(f"\n{used}, {chunk.timings.forward_passes} forward passes", file=sys.stderr)  # noqa: T201
    finally:
        await loaded.model.close()


@contextmanager
def predictor(candidate: str, options: EvaluateOptions) -> Iterator[Callable[[str], Prediction]]:
    """A function from prompt to prediction on a checkpoint of this machine, loaded at its first call; for threads.

    The function raises LoadError where the checkpoint does not load.
    """
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
                loaded.append(_load(settings).model)
        return asyncio.run_coroutine_threadsafe(answer(loaded[0], prompt), loop).result()

    try:
        yield predict
    finally:
        for engine in loaded:
            asyncio.run_coroutine_threadsafe(engine.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _load(settings: Settings) -> Loaded[Engine]:
    def say(attempt: Attempt) -> None:
        print(f"{attempt.outcome}: {attempt.candidate} [{attempt.strategy}] {attempt.reason}", file=sys.stderr)  # noqa: T201

    with Console(stderr=True).status("loading a checkpoint"):  # on a terminal only
        return load_first(settings, lambda rung: load_engine(rung, settings), say)
