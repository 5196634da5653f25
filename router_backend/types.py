"""The values that cross every border: frozen, plain, picklable."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from router_backend.errors import ContextOverflow

FinishReason = Literal["stop", "length", "cancelled"]
Output = Literal["plan", "json", "calls", "text", "decision"]
Role = Literal["system", "user", "assistant", "tool"]
# Below it a temperature or a top_p leaves the likeliest token alone, and a float32 cannot divide by it for long.
_COLDEST = 1e-6


# Nothing is seen of these either: fillers, joiners, the empty Braille cell, selectors of variants.
_SELECTORS = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
_UNSEEN = {*"\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0", *map(chr, _SELECTORS)}


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: blanks, line ends, control and format characters."""
    return all(each in _UNSEEN or unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp", "Zs") for each in text)


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
class Tool:
    """What a client's program can do for the model; `parameters` is the JSON Schema of its arguments, as JSON text."""

    name: str
    description: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that was called; `arguments` are JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of a conversation. `calls` are those of an assistant; `name` is the tool whose result this is."""

    role: Role
    content: str
    calls: tuple[Call, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a conversation, and the answers that are allowed.

    Attributes:
        texts: what the checkpoint reads after the conversation: the same with the answers listed in other orders.
        answers: as the checkpoint would write them, ends included.
        plan_budget: it asks which tool comes first in a plan of this token budget, as such a plan begins, and `answers`
            are tools. None for any other question.
    """

    texts: tuple[str, ...]
    answers: tuple[str, ...]
    plan_budget: int | None = None


@dataclass(frozen=True, slots=True)
class Odds:
    """What a checkpoint makes of the answers that it may give.

    Attributes:
        options: the answers.
        logprobs: of each, the natural logarithm of the probability that it is written, all of its tokens together.
        temperature: what calibrates them; the logarithms are divided by it.
    """

    options: tuple[str, ...]
    logprobs: tuple[float, ...]
    temperature: float = 1.0

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Of each answer, given that it is one of these: they sum to 1."""
        most = max(self.logprobs)
        weights = [math.exp((each - most) / self.temperature) for each in self.logprobs]
        return tuple(weight / math.fsum(weights) for weight in weights)

    def of(self, option: str) -> float:
        """The probability of one of the options."""
        return self.probabilities[self.options.index(option)]


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a plan's route: the tool that was taken, and what the checkpoint made of all that could be."""

    tool: str
    odds: Odds


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request as an engine sees it.

    Attributes:
        id: the request id, for logs.
        prompt: the user's text. Special tokens in it are text and nothing else.
        sampling: how to draw.
        output: a whole plan, JSON that keeps `schema`, calls of `tools`, the model's raw text, or no text at all: what
            it makes of the answers to `questions`.
        history: the conversation before the prompt, whose texts are text as well.
        schema: a JSON Schema, as JSON text.
        tools: those that may be called.
        may_speak: whether the answer to a request with tools may be text instead.
        parallel: whether it may be several calls.
        result_of: the tool whose result the prompt is; None where it is the user's text.
        specialists: the tools that a plan in the answer may use, as `/name`; none for those of the server.
        prefix: the part of the answer that is already written; the engine goes on after it.
        grammar: llguidance grammar (Lark) that the continuation must keep, or None.
        questions: about the conversation, answered by probabilities.
        reach: how far below the likeliest answer, in nats, the logarithms of answers that are weighed must be exact.
        owner: the API key that it counts for, by its name. What one owner's requests leave behind (prefixes, drafts,
            token ids) speeds up no other's: it would tell what they say.
        settle: what costs time to find out of it, as what its schemas ask for. It is called in the thread of a slot.
    """

    id: str
    prompt: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    output: Output = "text"
    prefix: str = ""
    grammar: str | None = None
    history: tuple[Turn, ...] = ()
    schema: str | None = None
    tools: tuple[Tool, ...] = ()
    may_speak: bool = False
    parallel: bool = False
    specialists: tuple[str, ...] = ()
    result_of: str | None = None
    questions: tuple[Question, ...] = ()
    reach: float = math.inf
    owner: str = ""
    settle: Callable[[GenerateRequest], GenerateRequest] | None = None

    def settled(self) -> GenerateRequest:
        """The request with what `settle` finds out. Raises what that raises."""
        return self if self.settle is None else replace(self.settle(self), settle=None)

    @property
    def routes(self) -> bool:
        """Whether it asks which specialist is to have the task, as a router is asked."""
        return (
            bool(self.tools) and not self.may_speak and all(f"/{each.name}" in self.specialists for each in self.tools)
        )

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The whole conversation."""
        if self.result_of is not None:
            return (*self.history, Turn("tool", self.prompt, name=self.result_of))
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

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def with_answer(self, other: Usage) -> Usage:
        """With another answer after the same prompt, which counts once: as it was when it came first."""
        first = self if self.prompt_tokens else other
        return replace(first, completion_tokens=self.completion_tokens + other.completion_tokens)


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
        drafted: whether the plan comes from one unconstrained call, whose texts were put into form here.
    """

    limit: int
    used: int
    clipped: tuple[str, ...] = ()
    fields: dict[str, FieldBudget] = field(default_factory=dict)
    calls: int = 0
    retries: int = 0
    drafted: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability; `top`: the likeliest tokens in its place."""

    token: str
    bytes: tuple[int, ...]
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    id: int = -1


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last one carries `finish_reason` and the sums; that and the first, which model answers.

    `call` names the tool that is called from here on: what follows are its arguments. `route` holds the steps of a plan
    so far, `odds` what was made of answers: one for each question of a decision.
    """

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    budget: Budget | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    info: ModelInfo | None = None
    call: str | None = None
    route: tuple[Step, ...] = ()
    odds: tuple[Odds, ...] = ()


Constraint = Literal["lark", "regex", "schema", "none"]


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server elsewhere that decodes: what it was found to do when it was asked, and how it fares since.

    Attributes:
        url: of its API.
        constraint: what it keeps: llguidance's Lark grammars, regular expressions, a JSON Schema, or nothing.
        sent_as: the field of a body in which it takes that; None where it keeps nothing.
        counts: where tokens are counted: its `/tokenize`, or the `usage` of an answer of one token.
        calls: sent, and `retries` of them sent again before their first token.
        failures: calls that were given up, by their error's code.
        down: whether it is left alone for a while, after failures one after the other.
    """

    url: str
    constraint: Constraint
    sent_as: str | None
    counts: Literal["tokenize", "usage"]
    calls: int = 0
    retries: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    down: bool = False


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was loaded.

    Attributes:
        context_length: tokens for one request.
        slots: requests that run at once.
        budget_line: it was trained to read its budget in the prompt (`plan.prompt.with_budget`).
        keeps_grammars: its engine writes what a grammar allows and nothing else.
        weighs: its engine tells the probabilities of answers that it is given.
        temperature: what calibrates the probabilities of a plan's tools (`decisions.calibration`).
        warnings: what of the checkpoint does not work, and what is done instead; what holds the engine up.
        upstream: the server that decodes, where that is another.
    """

    model: str
    strategy: str
    engine: str
    context_length: int
    slots: int = 1
    budget_line: bool = False
    keeps_grammars: bool = True
    weighs: bool = True
    temperature: float = 1.0
    warnings: tuple[str, ...] = ()
    upstream: Upstream | None = None

    def check_room(self, prompt_tokens: int, budget: int) -> None:
        """Raises ContextOverflow where prompt and budget do not fit in the context together."""
        if prompt_tokens + budget > self.context_length:
            raise ContextOverflow(
                f"the prompt has {prompt_tokens} tokens and the answer may have {budget}: "
                f"together more than the context of {self.context_length} tokens",
                param="prompt",
            )


@dataclass(frozen=True, slots=True)
class LentGpu:
    """A GPU that is lent for each request, as it was last heard of.

    Attributes:
        size: the slice, as ZeroGPU calls it.
        memory_gb: of the slice, in 10⁹ bytes.
        quota: what the last call was told, which is about its caller; `unknown` before the first.
        retry_after: seconds after which that caller's quota allows a call again.
        duration: seconds that a request with the default budget asks for.
        seconds: for which it was held since the start, by answers that ended here.
        plans: those among them that are valid.
        seconds_per_plan: on the average; None before the first. A slice of `xlarge` costs its caller twice as many.
    """

    size: str
    memory_gb: float
    quota: Literal["unknown", "granted", "exceeded"]
    retry_after: float | None
    duration: int
    seconds: float = 0.0
    plans: int = 0
    seconds_per_plan: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: the text and the last chunk's sums."""

    text: str
    last: Chunk
    seed: int

    @property
    def info(self) -> ModelInfo:
        """Of the model that answered."""
        assert self.last.info is not None, "the service sets it"
        return self.last.info
