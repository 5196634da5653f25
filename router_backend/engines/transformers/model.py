"""DecodedModel: a `LocalModel` made of a tokenizer, a runner and the decode loop."""

from __future__ import annotations

import codecs
import gc
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from router_backend.engines.transformers.drafts import Drafter, NgramTable, Pace
from router_backend.engines.transformers.guide import Guides
from router_backend.engines.transformers.loop import Count, DecodeLoop
from router_backend.engines.transformers.runner import Runner
from router_backend.engines.transformers.sampler import Sampler
from router_backend.engines.transformers.tokens import Tokens
from router_backend.errors import ContextOverflow, InvalidRequest, OutOfMemory
from router_backend.types import Chunk, GenerateRequest, ModelInfo, Odds, Timings, Usage

_DRAFTERS = 8  # of so many owners, each with a table of 2**history_bits n-grams (18 MB)


class DecodedModel:
    """One model, one sequence at a time; `info.slots` is 1."""

    def __init__(
        self,
        info: ModelInfo,
        tokens: Tokens,
        runner: Runner,
        *,
        draft_tokens: int = 16,
        lookup: bool = True,
        history_bits: int = 21,
        forcing: bool = True,
        prefix_cache: bool = True,
        pace: Pace | None = None,
        remembered: Iterable[str] = (),
    ) -> None:
        """Each source of tokens without a pass can be switched off.

        Args:
            draft_tokens: tokens of a draft at most; 0 for none.
            lookup: draft out of the prompt and the answer so far.
            history_bits: draft out of earlier answers, by a table of 2**bits n-grams; 0 for none.
            forcing: write what the grammar forces without asking the model.
            prefix_cache: keep keys and values from one request to the next.
            pace: what a draft costs, where time counts rather than passes.
            remembered: answers that the history begins with.
        """
        self.info = info
        self._tokens = tokens
        self._runner = runner
        self._guides = Guides(tokens.grammar, tokens.vocabulary)
        self._history = NgramTable(history_bits) if history_bits and draft_tokens else None
        if self._history is not None:
            for text in remembered:
                self._history.learn(tokens.encode(text))
        self._draft = partial(Drafter, lookup=lookup, pace=pace) if draft_tokens else None
        self._drafters: OrderedDict[str, tuple[Drafter, NgramTable | None]] = OrderedDict()
        self._loop = DecodeLoop(runner, None, draft_tokens=draft_tokens, forcing=forcing)
        self._prefix_cache = prefix_cache
        self._latest_id = ""

    def count_tokens(self, text: str) -> int:
        return self._tokens.count(text)

    def prompt_tokens(self, request: GenerateRequest) -> int:
        return len(self._tokens.wrap(request.prompt, request.history, request.owner))

    def remember(self, text: str, owner: str = "") -> None:
        _, history = self._drafter_of(owner)
        if history is not None:
            history.learn(self._tokens.encode(text))

    def _drafter_of(self, owner: str) -> tuple[Drafter | None, NgramTable | None]:
        """The owner's own drafter, and what it knows of earlier answers. Of the last few owners."""
        if self._draft is None:
            return None, None
        if owner not in self._drafters:
            # What the operator gave is for all; each owner's own answers come on top of it.
            history = None if self._history is None else self._history.copy()
            self._drafters[owner] = self._draft(history), history
        self._drafters.move_to_end(owner)
        if len(self._drafters) > _DRAFTERS:
            self._drafters.popitem(last=False)
        return self._drafters[owner]

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        if request.sampling.logprobs is not None:
            raise InvalidRequest("the transformers engine gives no logprobs", param="logprobs")
        sampling = request.sampling
        prompt = self._prompt(request, sampling.max_new_tokens)
        guide = None if request.grammar is None else self._guides.begin(request.grammar, request.owner)
        self._turn_to(request)
        self._loop.drafter, _ = self._drafter_of(request.owner)
        sampler = Sampler(sampling.temperature, sampling.top_p, sampling.seed)
        count = Count()
        ids = self._loop.decode(prompt, guide, sampler, sampling.max_new_tokens, self._tokens.ends, cancelled, count)
        return self._answer(ids, prompt, sampling.stop, count)

    def weigh(
        self, request: GenerateRequest, answers: Sequence[str], cancelled: Callable[[], bool], slot: int = 0
    ) -> Chunk:
        """Teacher-forced: the prompt's pass has an answer's tokens behind it, all later ones go on from its cache."""
        spelt = [list(self._tokens.encode(answer)) for answer in answers]
        prompt = self._prompt(request, max(map(len, spelt)))
        self._turn_to(request)
        began, passes, full = time.monotonic(), 0, False
        cached = min(self._runner.cached(prompt), len(prompt) - 1)
        logs: list[float] = []
        try:
            for ids in spelt:
                passes += self._runner.run(prompt, ids[:-1], cancelled)
                rows = [self._runner.row([*prompt, *ids[:at]]) for at in range(len(ids))]
                if cancelled() or any(row is None for row in rows):
                    return Chunk(finish_reason="cancelled")
                logs.append(sum(log_share(row, token) for row, token in zip(rows, ids, strict=True) if row is not None))
        except Exception as error:
            full = self._broke_off(error)
        if full:
            raise dropped()
        self._loop.weighed = len(prompt) + max(map(len, spelt))
        usage = Usage(len(prompt), sum(map(len, spelt)), cached)
        timings = Timings(prefill_seconds=time.monotonic() - began, forward_passes=passes)
        return Chunk(finish_reason="stop", usage=usage, timings=timings, odds=(Odds(tuple(answers), tuple(logs)),))

    def _prompt(self, request: GenerateRequest, room: int) -> list[int]:
        """Ids of prompt and prefix. Raises ContextOverflow where there is no room behind them for so many tokens."""
        prompt = [
            *self._tokens.wrap(request.prompt, request.history, request.owner),
            *self._tokens.encode(request.prefix),
        ]
        self.info.check_room(len(prompt), room)
        if not prompt:
            raise ContextOverflow("the prompt has no tokens at all", param="prompt")
        return prompt

    def _turn_to(self, request: GenerateRequest) -> None:
        self._runner.turn_to(request.owner)
        if not self._prefix_cache and request.id != self._latest_id:
            self._runner.forget()
        self._latest_id = request.id

    def _broke_off(self, error: Exception) -> bool:
        """Whether a pass ran out of memory. Any other error is raised again."""
        self._runner.forget()  # what it keeps may be half of a pass
        if not is_out_of_memory(error):
            raise error
        return True

    def close(self) -> None:
        """Gives the memory back, the weights' too: the next rung may need it."""
        del self._runner, self._loop
        release_memory()

    def _answer(
        self, ids: Iterator[int], prompt: Sequence[int], stop: tuple[str, ...], count: Count
    ) -> Iterator[Chunk]:
        began = first = time.monotonic()
        cached = min(self._runner.cached(prompt), len(prompt) - 1)
        text = _Text(stop)
        full = False
        try:
            for token in ids:
                if first == began and count.tokens > count.forced:
                    first = time.monotonic()
                piece = text.feed(self._tokens.bytes_of([token]))
                if piece:
                    yield Chunk(piece)
                if text.stopped:
                    break
        except Exception as error:
            full = self._broke_off(error)
        if full:  # only here is the traceback gone, and with it the tensors in its frames
            raise dropped()
        now = time.monotonic()
        yield Chunk(
            text.rest(),
            "stop" if text.stopped else count.reason,
            Usage(len(prompt), count.tokens, cached),
            Timings(
                prefill_seconds=first - began,
                decode_seconds=now - first,
                forward_passes=count.passes,
                drafted=count.drafted,
                accepted=count.accepted,
                forced=count.forced,
            ),
        )


def log_share(row: NDArray[np.float32], token: int) -> float:
    """The logarithm of a token's probability, out of the logits `(vocabulary,)` in its place."""
    wide = row.astype(np.float64)
    most = wide.max()
    return float(wide[token] - most - np.log(np.exp(wide - most).sum()))


def dropped() -> OutOfMemory:
    """The error, once what the request took was given back."""
    release_memory()
    return OutOfMemory("out of memory during this request; it was dropped", retry_after=2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory: the CPU's allocator has no exception of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def release_memory() -> None:
    """Gives back what nobody holds any more, the accelerator's cached blocks included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Text:
    """Bytes of tokens to text that may be sent: whole characters, and nothing that may become a stop text."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        self._held += self._decoder.decode(piece)
        places = [place for word in self._stop if (place := self._held.find(word)) >= 0]
        if places:
            self.stopped = True
            self._held, sent = "", self._held[: min(places)]
            return sent
        keep = max((_overlap(self._held, word) for word in self._stop), default=0)
        sent, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return sent

    def rest(self) -> str:
        return "" if self.stopped else self._held + self._decoder.decode(b"", final=True)


def _overlap(text: str, word: str) -> int:
    """The longest end of `text` that `word` begins with, `word` itself left out."""
    return next((size for size in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:size])), 0)
