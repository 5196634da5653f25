"""DecodedModel: a `LocalModel` made of a tokenizer, a runner and the decode loop."""

from __future__ import annotations

import codecs
import gc
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch

from router_backend.engines.transformers.drafts import Drafter, NgramTable, Pace
from router_backend.engines.transformers.guide import Guides
from router_backend.engines.transformers.loop import Count, DecodeLoop
from router_backend.engines.transformers.runner import Runner
from router_backend.engines.transformers.sampler import Sampler
from router_backend.engines.transformers.tokens import Tokens
from router_backend.errors import ContextOverflow, InvalidRequest, OutOfMemory
from router_backend.types import Chunk, GenerateRequest, ModelInfo, Timings, Usage

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
        prompt = [
            *self._tokens.wrap(request.prompt, request.history, request.owner),
            *self._tokens.encode(request.prefix),
        ]
        sampling = request.sampling
        self.info.check_room(len(prompt), sampling.max_new_tokens)
        if not prompt:
            raise ContextOverflow("the prompt has no tokens at all", param="prompt")
        guide = None if request.grammar is None else self._guides.begin(request.grammar, request.owner)
        self._runner.turn_to(request.owner)
        if not self._prefix_cache and request.id != self._latest_id:
            self._runner.forget()
        self._latest_id = request.id
        self._loop.drafter, _ = self._drafter_of(request.owner)
        sampler = Sampler(sampling.temperature, sampling.top_p, sampling.seed)
        count = Count()
        ids = self._loop.decode(prompt, guide, sampler, sampling.max_new_tokens, self._tokens.ends, cancelled, count)
        return self._answer(ids, prompt, sampling.stop, count)

    def close(self) -> None:
        """Gives the memory back, the weights' too: the next rung may need it."""
        del self._runner, self._loop
        release_memory()

    def _answer(
        self,
        ids: Iterator[int],
        prompt: Sequence[int],
        stop: tuple[str, ...],
        count: Count,
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
            self._runner.forget()  # what it keeps may be half of a pass
            full = is_out_of_memory(error)
            if not full:
                raise
        if full:  # only here is the traceback gone, and with it the tensors in its frames
            release_memory()
            raise OutOfMemory("out of memory during this request; it was dropped", retry_after=2)
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
