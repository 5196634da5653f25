"""Answers without a server."""

from __future__ import annotations

import sys
from contextlib import aclosing

from rich.console import Console

from router_backend.checkpoints.ladder import Attempt, Loaded
from router_backend.engines.base import Engine
from router_backend.errors import printable
from router_backend.plan.prompt import router_prompt
from router_backend.service.loader import Loader
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, SamplingParams


async def answer_once(
    prompt: str, *, text: bool, max_new_tokens: int | None, temperature: float | None, seed: int
) -> None:
    """Prints the answer as it comes; what was loaded and what it took goes to standard error.

    Raises:
        RouterError: as loading and generating do.
    """
    settings = load_settings(max_new_tokens=max_new_tokens, default_temperature=temperature)
    loaded = load_with(Loader(settings))
    request = GenerateRequest(
        "cli",
        prompt if text else router_prompt(prompt),
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


def load_with(loader: Loader) -> Loaded[Engine]:
    """The first checkpoint that loads; each attempt is told to standard error. Raises NothingLoads."""

    def say(attempt: Attempt) -> None:
        told = f"{attempt.outcome}: {attempt.candidate} [{attempt.strategy}] {attempt.reason}"
        print(printable(told), file=sys.stderr)  # noqa: T201

    with Console(stderr=True).status("loading a checkpoint"):  # on a terminal only
        return loader.load(say)
