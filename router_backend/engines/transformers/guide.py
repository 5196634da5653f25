"""Guide: what a grammar allows next, and what it forces. On llguidance."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from router_backend.errors import GrammarFailed, InvalidRequest

_COMPILED = 256


class Guides:
    """Compiled grammars, the last few kept, for each owner apart."""

    def __init__(self, tokenizer: LLTokenizer, width: int | None = None) -> None:
        """`width`: of the model's logits, where the tokenizer has more tokens than that."""
        self._tokenizer = tokenizer
        self._width = width or tokenizer.vocab_size
        self._compiled = lru_cache(maxsize=_COMPILED)(self._compile)

    def begin(self, grammar: str, owner: str = "") -> Guide:
        """A guide at a grammar's start. Raises InvalidRequest, with the compiler's words, where it is none."""
        return Guide(self._compiled(grammar, owner).deep_copy(), self._tokenizer.vocab_size, self._width)

    def _compile(self, grammar: str, owner: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            problem = matcher.get_error().splitlines()[0]
            raise InvalidRequest(f"the grammar does not compile: {problem}", param="grammar")
        return matcher


class Guide:
    """One answer's way through a grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, width: int) -> None:
        self._matcher = matcher
        self._bits = allocate_token_bitmask(1, vocabulary)
        self._width = width

    def forced(self) -> list[int]:
        """The tokens that must come next, in the one tokenisation that the checkpoint knows; often none."""
        return self._matcher.compute_ff_tokens()

    def allowed(self) -> NDArray[np.bool_]:
        """A flag for each token that has a logit."""
        fill_next_token_bitmask(self._matcher, self._bits)
        if self._matcher.is_error():
            raise GrammarFailed(f"the grammar failed: {self._matcher.get_error().splitlines()[0]}")
        return np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._width].view(np.bool_)

    def advance(self, tokens: Sequence[int]) -> None:
        """Takes tokens that are `allowed`. Raises GrammarFailed where it does not."""
        if not self._matcher.consume_tokens(list(tokens)):
            raise GrammarFailed(f"the grammar refused a token: {self._matcher.get_error().splitlines()[0]}")

    @property
    def ended(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()
