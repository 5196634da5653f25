"""What an engine is. Engines speak of tokens and text, never of HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Protocol

from router_backend.types import Chunk, GenerateRequest, LentGpu, ModelInfo


class LocalModel(Protocol):
    """A loaded checkpoint whose calls block: llama.cpp, transformers, echo. Methods may be called from any thread.

    One in a process of its own, which may end by itself, also says whether it `died`: nothing is left to ask then.
    """

    @property
    def info(self) -> ModelInfo: ...

    def count_tokens(self, text: str) -> int:
        """Tokens of `text`, special tokens in it taken as text, no begin-of-sequence token added."""
        ...

    def prompt_tokens(self, request: GenerateRequest) -> int:
        """Tokens of the prompt as the model will see it, chat template included, `prefix` not."""
        ...

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        """Goes on after `request.prefix`, at most `sampling.max_new_tokens` tokens; the last chunk has the sums.

        `cancelled` is asked at every token. Closing the iterator ends the generation at once and frees the slot.
        A caller uses one slot for one request at a time; the slot's prefix cache stays between calls. Of what another
        owner left there it serves the router's fixed instructions alone.

        Raises:
            ContextOverflow: prompt, prefix and budget together are longer than the context.
            InvalidRequest: the grammar does not compile.
            EngineLost: the engine's process ended; no call works any more.
            EngineError: the engine failed; the next call may work.
        """
        ...

    def weigh(
        self, request: GenerateRequest, answers: Sequence[str], cancelled: Callable[[], bool], slot: int = 0
    ) -> Chunk:
        """What it makes of these answers after `request.prefix`: `odds`, one for all, and the sums.

        Nothing is drawn. The logarithms are those of the model's own logits, at temperature 1, over its whole
        vocabulary, or not below it for an answer that is further from the likeliest than `request.reach`.
        `finish_reason` is `cancelled`, and there are no odds, where it was.

        Raises:
            ContextOverflow, EngineError: as `generate` does.
            InvalidRequest: the engine gives no probabilities.
        """
        ...

    def remember(self, text: str, owner: str = "") -> None:
        """An answer that was checked and sent. Later ones of the same owner may be drafted out of it."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """All that the service knows."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def gpu(self) -> LentGpu | None:
        """The GPU that each request borrows; None where the engine has its own, or needs none."""
        ...

    @property
    def stalled_seconds(self) -> float:
        """For how long the quietest busy slot has shown no sign of life; 0 where nothing is busy."""
        ...

    @property
    def died(self) -> bool:
        """Whether it ended by itself, and only another one can answer."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Yields the answer. Closing the generator cancels it; the slot is free within a token or so."""
        ...

    def smallest_budget(self) -> int:
        """The fewest tokens in which a whole plan fits."""
        ...

    async def close(self) -> None: ...
