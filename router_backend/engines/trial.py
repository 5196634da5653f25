"""A trial: a model is loaded when it has answered, in every slot, with words that a grammar allows.

Weights that hold no numbers load without a word, and llama.cpp then writes nonsense without an error, past any grammar.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from router_backend.engines.daemon import daemon, failure
from router_backend.errors import EngineError, RouterError, RungError
from router_backend.plan.prompt import router_prompt
from router_backend.types import GenerateRequest, ModelInfo, SamplingParams
from router_backend.writing.grammar import choice

if TYPE_CHECKING:
    from router_backend.engines.base import LocalModel

# They begin differently, so that the model is asked: what a grammar forces is written without it.
_WORDS = ("math", "code", "search")
_TOKENS = 16


def question(slot: int = 0) -> GenerateRequest:
    """What every engine can answer. In the first slot with a router's prompt, whose head then is in its cache."""
    prompt = "warm up" if slot else router_prompt("warm up")
    return GenerateRequest("trial", prompt, SamplingParams(_TOKENS, temperature=0), grammar=choice(_WORDS))


def check(text: str, info: ModelInfo) -> None:
    """Raises EngineError where the answer to `question` is none."""
    if info.keeps_grammars and text not in _WORDS:
        raise EngineError(f"asked for one of {', '.join(_WORDS)} it wrote {text[:40]!r} (NaN in its weights?)")


def passed(model: LocalModel, patience: float) -> None:
    """Blocks until every slot has answered. What fails is closed; what hangs can only be left.

    `patience`: seconds that a slot may show no sign of life; 0: for ever.

    Raises:
        RungError: a slot fails, hangs, or writes what the grammar does not allow.
    """
    alive = dict.fromkeys(range(model.info.slots), time.monotonic())
    ended: SimpleQueue[Exception | None] = SimpleQueue()
    stop = threading.Event()

    def cancelled(slot: int) -> bool:
        alive[slot] = time.monotonic()
        return stop.is_set()

    def answer(slot: int) -> None:
        trouble = None
        try:
            chunks = model.generate(question(slot), partial(cancelled, slot), slot)
            text = "".join([chunk.text for chunk in chunks])
            if not stop.is_set():
                check(text, model.info)
        except BaseException as error:
            trouble = failure(error)
        del alive[slot]
        ended.put(trouble)

    for slot in tuple(alive):
        daemon(partial(answer, slot), "trial")
    troubles = []
    try:
        for _ in range(model.info.slots):
            if trouble := _next(ended, alive, patience):
                troubles.append(trouble)
                stop.set()
    finally:
        stop.set()
    if troubles:
        model.close()
        first = troubles[0]
        words = first.message if isinstance(first, RouterError) else f"{type(first).__name__}: {first}"
        raise RungError(f"it loads and does not answer: {words}")


def _next(ended: SimpleQueue[Exception | None], alive: dict[int, float], patience: float) -> Exception | None:
    """What became of the slot that ends next. Raises RungError where one hangs."""
    while True:
        with suppress(Empty):
            return ended.get(timeout=min(1.0, patience / 4) if patience else None)
        if time.monotonic() - min(list(alive.values()), default=time.monotonic()) > patience:
            raise RungError(f"it loads and hangs: no sign of life for {patience:g} seconds")
