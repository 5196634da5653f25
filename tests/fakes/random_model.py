"""A model without weights that keeps grammars: it draws at random among the bytes that llguidance allows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from router_backend.errors import GrammarFailed
from router_backend.types import Chunk, FinishReason, GenerateRequest, ModelInfo, Odds, Usage

_BYTES = LLTokenizer("byte")


@dataclass
class RandomModel:
    """Tokens are bytes. `favours` are drawn, where they are allowed, nine times out of ten: it makes runaways."""

    favours: bytes = b""
    info: ModelInfo = field(default_factory=lambda: ModelInfo("random", "native", "random", 100_000, 2))
    seen: list[GenerateRequest] = field(default_factory=list)

    def count_tokens(self, text: str) -> int:
        return len(text.encode())

    def prompt_tokens(self, request: GenerateRequest) -> int:
        return sum(self.count_tokens(turn.content) for turn in request.turns)

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        self.seen.append(request)
        matcher = LLMatcher(_BYTES, request.grammar or "start: /[a-z ]*/", log_level=0)
        assert not matcher.is_error(), (matcher.get_error(), request.grammar)
        draw = random.Random(f"{request.sampling.seed} {request.prefix}")
        said = bytearray()
        stop, reason = request.sampling.stop, "length"
        bits = allocate_token_bitmask(1, _BYTES.vocab_size)
        while len(said) < request.sampling.max_new_tokens:
            if cancelled():
                reason = "cancelled"
                break
            fill_next_token_bitmask(matcher, bits)
            if matcher.is_error():
                raise GrammarFailed(matcher.get_error().splitlines()[0])
            flags = np.unpackbits(bits.view(np.uint8), bitorder="little")
            allowed = [int(token) for token in np.flatnonzero(flags[:256])]
            if not allowed or (matcher.is_accepting() and draw.random() < 0.3):
                reason = "stop"
                break
            liked = [byte for byte in allowed if byte in self.favours]
            token = draw.choice(liked if liked and draw.random() < 0.9 else allowed)
            if not matcher.consume_token(token):
                raise GrammarFailed(matcher.get_error().splitlines()[0])
            said.append(token)
            if ends := [word for word in stop if said.endswith(word.encode())]:
                del said[-len(ends[0].encode()) :]
                reason = "stop"
                break
        finish: FinishReason = reason  # type: ignore[assignment]
        yield Chunk(said.decode(errors="ignore"))
        yield Chunk(finish_reason=finish, usage=Usage(self.prompt_tokens(request), len(said)))

    def weigh(
        self, request: GenerateRequest, answers: Sequence[str], cancelled: Callable[[], bool], slot: int = 0
    ) -> Chunk:
        """Each byte is as likely as any other."""
        logs = tuple(-math.log(256) * len(answer.encode()) for answer in answers)
        return Chunk(finish_reason="stop", odds=(Odds(tuple(answers), logs),))

    def remember(self, text: str, owner: str = "") -> None:
        """Nothing: there are no drafts."""

    def close(self) -> None: ...
