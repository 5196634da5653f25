"""The values that cross every border: frozen, plain, picklable."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field, fields
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]
Output = Literal["plan", "json", "text"]
Role = Literal["system", "user", "assistant"]
# Below it a temperature or a top_p leaves the likeliest token alone, and a float32 cannot divide by it for long.
_COLDEST = 1e-6


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: blanks, line ends, control and format characters."""
    return all(unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp", "Zs") for each in text)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: the token budget of the answer.
        temperature: 0 is greedy, as is whatever no engine can divide by: it becomes 0.
        top_p: nucleus sampling, in (0, 1]; 0 becomes greedy.
        seed: makes an answer repeatable; the service draws one where the client sends none.
        stop: texts that end the answer; they are not part of it.
        logprobs: how many of the likeliest tokens are told with each drawn one; None for no probabilities at all.
    """

    max_new_tokens: int = 600
    temperature: float = 0.2
    top_p: float = 0.9
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if min(self.temperature, self.top_p) < _COLDEST:
            object.__setattr__(self, "temperature", 0.0)
            object.__setattr__(self, "top_p", max(self.top_p, _COLDEST))


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request as an engine sees it.

    Attributes:
        id: the request id, for logs.
        prompt: the user's text. Special tokens in it are text and nothing else.
        sampling: how to draw.
        output: a whole plan, JSON that keeps `schema`, or the model's raw text.
        history: the conversation before the prompt, whose texts are text as well.
        schema: a JSON Schema, as JSON text.
        prefix: the part of the answer that is already written; the engine goes on after it.
        grammar: llguidance grammar (Lark) that the continuation must keep, or None.
        owner: the API key that it counts for, by its name. What one owner's requests leave behind (prefixes, drafts,
            token ids) speeds up no other's: it would tell what they say.
    """

    id: str
    prompt: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    output: Output = "text"
    prefix: str = ""
    grammar: str | None = None
    history: tuple[Turn, ...] = ()
    schema: str | None = None
    owner: str = ""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The whole conversation."""
        return (*self.history, Turn("user", self.prompt))


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
        gpu_seconds: for which a lent GPU was held (ZeroGPU), moving the weights there included.
    """

    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    forward_passes: int = 0
    drafted: int = 0
    accepted: int = 0
    forced: int = 0
    gpu_seconds: float = 0.0

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
class TokenLogprob:
    """A token and the natural logarithm of its probability; `top`: the likeliest tokens in its place."""

    token: str
    bytes: tuple[int, ...]
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last one carries `finish_reason` and the sums."""

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    budget: Budget | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was loaded.

    Attributes:
        context_length: tokens for one request.
        slots: requests that run at once.
        budget_line: it was trained to read its budget in the prompt (`plan.prompt.with_budget`).
    """

    model: str
    strategy: str
    engine: str
    context_length: int
    slots: int = 1
    budget_line: bool = False


@dataclass(frozen=True, slots=True)
class LentGpu:
    """A GPU that is lent for each request, as it was last heard of.

    Attributes:
        size: the slice, as ZeroGPU calls it.
        memory_gb: of the slice, in 10⁹ bytes.
        quota: what the last call was told, which is about its caller; `unknown` before the first.
        retry_after: seconds after which that caller's quota allows a call again.
        duration: seconds that a request with the default budget asks for.
    """

    size: str
    memory_gb: float
    quota: Literal["unknown", "granted", "exceeded"]
    retry_after: float | None
    duration: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: the text and the last chunk's sums."""

    text: str
    last: Chunk
    seed: int
    info: ModelInfo
