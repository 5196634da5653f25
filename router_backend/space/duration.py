"""Duration: the GPU seconds that a call asks for, from its budget and from what calls took so far."""

from __future__ import annotations

import math

from router_backend.types import Chunk

# Before anything was measured, on the slow side: bytes a second from the Space's disk to the GPU, and what a forward
# pass reads of the weights a second, beside what it takes however small the model is.
_MOVED, _READ, _PASS = 1.5e9, 0.5e12, 0.03
_PROMPT_TOKEN = 0.001
_LONGEST_GUESS = 120  # a guess must not be refused as too long: then nothing would ever be measured
_MARGIN, _LEAST = 1.2, 5
_FORGETS = 0.2
_FEWEST = 64  # tokens of a prompt that say something about their pace


class Duration:
    """Seconds a call: for the worker's start, for each token of the prompt, for each token of the answer.

    A slower call counts at once, a faster one by and by: what is too long costs the caller a wait or a refusal, what is
    too short costs the answer.
    """

    def __init__(self, weights: int) -> None:
        """`weights`: bytes on the GPU."""
        self.start = 3 + weights / _MOVED
        self.prompt_token = _PROMPT_TOKEN
        self.token = _PASS + weights / _READ
        self._measured: set[str] = set()

    def seconds(self, prompt_tokens: int, budget: int) -> int:
        """What to ask for: the whole budget, with nothing cached, in a new worker."""
        asked = math.ceil(_MARGIN * (self.start + prompt_tokens * self.prompt_token + budget * self.token))
        return max(_LEAST, asked if "token" in self._measured else min(asked, _LONGEST_GUESS))

    def started(self, seconds: float) -> None:
        """A new worker took so long from its fork to its first line, weights moved."""
        self._learn("start", seconds)

    def answered(self, last: Chunk) -> None:
        """An answer's sums."""
        usage, prefill, decode = last.usage, last.timings.prefill_seconds, last.timings.decode_seconds
        read = usage.prompt_tokens - usage.cached_tokens
        if read >= _FEWEST:
            self._learn("prompt_token", prefill / read)
            prefill = 0
        if usage.completion_tokens:
            self._learn("token", (prefill + decode) / usage.completion_tokens)

    def _learn(self, name: str, seconds: float) -> None:
        known: float = getattr(self, name)
        slowly = (1 - _FORGETS) * known + _FORGETS * seconds
        setattr(self, name, max(seconds, slowly) if name in self._measured else seconds)
        self._measured.add(name)
