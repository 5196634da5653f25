"""The values that cross every border: frozen, plain, picklable."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]
Output = Literal["plan", "text"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: the token budget of the answer.
        temperature: 0 is greedy.
        top_p: nucleus sampling, in (0, 1].
        seed: makes an answer repeatable; the service draws one where the client sends none.
        stop: texts that end the answer; they are not part of it.
    """

    max_new_tokens: int = 600
    temperature: float = 0.2
    top_p: float = 0.9
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request as an engine sees it.

    Attributes:
        id: the request id, for logs.
        prompt: the user's text. Special tokens in it are text and nothing else.
        sampling: how to draw.
        output: a whole plan, or the model's raw text.
        prefix: the part of the answer that is already written; the engine goes on after it.
        grammar: llguidance grammar (Lark) that the continuation must keep, or None.
    """

    id: str
    prompt: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    output: Output = "text"
    prefix: str = ""
    grammar: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `cached_tokens` of the prompt were in the prefix cache and cost nothing."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, and what the model was spared.

    Attributes:
        forward_passes: of the model; a prefill is one, or one for each piece of a long prompt.
        drafted: tokens that were proposed and went through a pass together with others.
        accepted: those of them that were right, so that they needed no pass of their own.
        forced: tokens that the grammar dictated, which the model was not asked for.
    """

    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    forward_passes: int = 0
    drafted: int = 0
    accepted: int = 0
    forced: int = 0

    def __add__(self, other: Timings) -> Timings:
        return Timings(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class FieldBudget:
    """Tokens of free text that a plan's field could have used and did use; the skeleton around it is not counted."""

    given: int = 0
    used: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """How a plan's token budget was spent.

    Attributes:
        limit: the request's `max_new_tokens`.
        used: tokens of the answer, counted by the checkpoint's own tokenizer.
        clipped: the texts that were stopped by their limit, as `field` or `field[index]`.
        fields: tokens given to and used by each field's free text.
        calls: calls of the engine, one for each stage.
        retries: stages that were asked again because nothing usable came.
    """

    limit: int
    used: int
    clipped: tuple[str, ...] = ()
    fields: dict[str, FieldBudget] = field(default_factory=dict)
    calls: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last one carries `finish_reason` and the sums."""

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    budget: Budget | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was loaded. `context_length` is tokens for one request; `slots` requests run at once."""

    model: str
    strategy: str
    engine: str
    context_length: int
    slots: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: the text and the last chunk's sums."""

    text: str
    last: Chunk
    seed: int
    info: ModelInfo
