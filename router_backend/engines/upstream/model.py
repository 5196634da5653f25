"""A checkpoint that a server decodes, as a `LocalModel` that our stages run against.

`ServedModel` speaks the dialect that llama-server and vLLM share, to our own child process too; `UpstreamModel` is what
is different where the server is another's.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router_backend.engines.conversation import around, refused, through_template, without_template
from router_backend.engines.upstream.probe import Link, Served, asked, probe, render, response_format, tokens, usage_of
from router_backend.engines.upstream.wire import Event, Wire
from router_backend.errors import CandidateError, InvalidRequest, RouterError, UpstreamError
from router_backend.remembered import Remembered
from router_backend.types import (
    Chunk,
    FinishReason,
    GenerateRequest,
    ModelInfo,
    Role,
    Timings,
    TokenLogprob,
    Turn,
    Upstream,
    Usage,
)
from router_backend.writing.grammar import allows, as_regex, problem_of

if TYPE_CHECKING:
    from router_backend.checkpoints.ladder import Rung
    from router_backend.settings import Settings

_log = logging.getLogger(__name__)
_TOLD = {
    "lark": "keeps llguidance's grammars",
    "regex": "keeps regular expressions",
    "schema": "keeps JSON schemas alone: a plan comes from one call and is put into form here",
    "none": "keeps no constraint: a plan comes from one call and is put into form here",
}
_REASONS: dict[str, FinishReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_sequence"), "stop"),
    "length": "length",
}
_HALF = re.compile("[\ud800-\udfff]")  # of a character: no UTF-8 holds it
# What a tokenizer may know as a special token. Where a server has no other way, it is cut in two to be text.
_MARK = re.compile(r"<[^<>\s]{1,80}>|\[/?[A-Za-z_]{1,40}\]")
_USUAL_MARKS = ("<|endoftext|>", "<|im_end|>", "</s>", "<eos>", "[INST]")


def load(rung: Rung, settings: Settings, path: Path) -> UpstreamModel:
    """Asks the server of a rung. Raises CandidateError: it is not there, or is not what it should be."""
    url, _, model = rung.candidate.name.partition("#")
    key = settings.upstream_api_key
    wire = Wire(url, key.get_secret_value() if key else None, settings.upstream_timeout)
    try:
        served = probe(wire, model or None)
        info, chat = _info(served, rung.strategy, settings), False
        if served.tokenizes:
            template, rendered = None, partial(render, wire, served)
            with suppress(ValueError):
                template = rendered([{"role": "user", "content": "x"}])
            chat, warnings = through_template(settings.prompt_format, template, rendered)
            info = replace(info, warnings=(*info.warnings, *warnings))
        return UpstreamModel(wire, served, info, chat=chat)
    except BaseException as error:
        wire.close()
        if isinstance(error, RouterError):
            raise CandidateError(error.message) from None
        raise


def _info(served: Served, strategy: str, settings: Settings) -> ModelInfo:
    context = min(settings.context_length, served.context or settings.context_length)
    told = f"{served.model} {_TOLD[served.way.constraint]}"
    _log.info(told)
    slots = min(settings.slots, served.slots or settings.slots)
    return ModelInfo(
        *(served.model, strategy, "upstream", context, slots, settings.upstream_budget_line),
        keeps_grammars=served.stages,
        weighs=False,
        warnings=() if served.stages else (told,),
    )


class ServedModel:
    """See the module. Thread-safe.

    Attributes:
        info: what was loaded.
    """

    def __init__(self, link: Link, served: Served, info: ModelInfo, *, chat: bool) -> None:
        """
        Args:
            chat: whether prompts go through the chat template.

        Raises:
            CandidateError: the tokenizer cannot be asked.
            RouterError: the server cannot be asked.
        """
        self._link, self._served, self._info, self._chat = link, served, info, chat
        self._render = partial(render, link, served)
        self._salt = secrets.token_bytes(32)
        self._owners: dict[int, str] = {}  # whose text the prefix cache of each slot holds
        # A plan counts and sends the same texts several times at each stage, the choices of a call the same prompt.
        self._remembered = Remembered.of_texts(self._ask_tokens if served.tokenizes else self._ask_count)
        self._pieces = lru_cache(maxsize=64)(self._read_pieces)
        self._parses = served.tokenizes and self._parses_marks()
        self._base = 0 if served.tokenizes else self._ask_usage("a") - 1

    @property
    def info(self) -> ModelInfo:
        return self._info

    def count_tokens(self, text: str) -> int:
        if self._served.tokenizes:
            return len(self._tokenize(text))
        return self._remembered("", text)[0] if text else 0

    def prompt_tokens(self, request: GenerateRequest) -> int:
        if self._served.tokenizes:
            return len(self.prompt_ids(request.prompt, request.history, request.owner))
        return self._base + sum(self._remembered(request.owner, turn.content)[0] for turn in request.turns)

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        sampling = request.sampling
        if sampling.logprobs is not None and not self._info.weighs:
            raise InvalidRequest("the upstream engine gives no logprobs", param="logprobs")
        # llama.cpp ignores a grammar that does not compile and answers unconstrained.
        if request.grammar is not None and (problem := problem_of(request.grammar, request.owner)):
            raise InvalidRequest(f"the grammar does not compile: {problem}", param="grammar")
        body, prompt_tokens = self._body(request, slot)
        self._info.check_room(prompt_tokens, sampling.max_new_tokens)
        return self._answer(body, prompt_tokens, request, cancelled)

    def remember(self, text: str, owner: str = "") -> None:
        """Nothing: drafts are the server's own business."""

    def close(self) -> None:
        self._link.close()

    def _body(self, request: GenerateRequest, slot: int) -> tuple[dict[str, Any], int]:
        """What is sent, and the tokens of the prompt in it."""
        served, sampling = self._served, request.sampling
        prompt: str | tuple[int, ...] = request.prompt
        if served.tokenizes:
            ids = self.prompt_ids(request.prompt, request.history, request.owner)
            prompt = (*ids, *self._tokenize(request.prefix))
        body = asked(
            *(served.model, served.route, prompt, sampling.max_new_tokens),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed % 2**31,
            stream=True,
            stream_options={"include_usage": True},
            **served.extras,
        )
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.logprobs is not None:
            body["logprobs"] = max(1, sampling.logprobs)
        if isinstance(prompt, str) and "messages" in body:
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.turns]
        kept = None
        if request.grammar is not None and served.stages:
            lark = served.way.constraint == "lark"
            kept = request.grammar if lark else as_regex(request.grammar, request.owner)
        if kept is not None:
            body |= served.way.fields(kept)
        elif request.grammar is None and request.schema is not None and served.way.constraint != "none":
            body |= response_format(request.schema)
        if served.extras:
            body |= self._apart(request.owner, slot)
        return body, len(prompt) if served.tokenizes else self.prompt_tokens(request)

    def _apart(self, owner: str, slot: int) -> dict[str, Any]:
        """Fields that keep the prefix caches of owners apart: llama-server reads the first two, vLLM the other.

        A slot's cache is used again by the owner alone that filled it.
        """
        before, self._owners[slot] = self._owners.get(slot, ""), owner
        found: dict[str, Any] = {"id_slot": slot, "cache_prompt": before == owner}
        return found | ({"cache_salt": self._secret(owner)} if owner else {})

    def _secret(self, text: str) -> str:
        """A name for a text that tells nothing of it, not even to who can guess it."""
        return hmac.new(self._salt, text.encode(), hashlib.sha256).hexdigest()[:32]

    def _answer(
        self, body: dict[str, Any], prompt_tokens: int, request: GenerateRequest, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        reason: FinishReason | None = None
        usage: dict[str, Any] = {}
        pieces: list[str] = []
        began = time.monotonic()
        first: float | None = None
        # All stages of a plan are one session, so that a balancer sends them to the replica that has its prefix.
        session = {"x-session-id": self._secret(f"{request.id} {request.owner}")}
        for event in self._link.stream(self._served.route, body, session, cancelled):
            if event is None:
                yield Chunk(finish_reason="cancelled")
                return
            self._check_event(event)
            usage = told if isinstance(told := event.get("usage"), dict) else usage
            piece, ended = _piece(event)
            reason = reason or ended
            if piece.text or piece.logprobs:
                first = first or time.monotonic()
                pieces.append(piece.text)
                yield piece
        if reason is None:
            raise self._failed("the upstream closed the connection in the midst of its answer")
        decoded = _number(usage, "completion_tokens") or len(pieces)
        self._check("".join(pieces), decoded, request)
        cached = _number(usage.get("prompt_tokens_details"), "cached_tokens")
        first = first or time.monotonic()
        yield Chunk(
            finish_reason=reason,
            usage=Usage(_number(usage, "prompt_tokens") or prompt_tokens, decoded, cached),
            timings=Timings(
                prefill_seconds=first - began,
                decode_seconds=time.monotonic() - first,
                forward_passes=max(1, decoded),  # the prefill's pass draws the first token
            ),
        )

    def _check_event(self, event: Event) -> None:
        """Raises UpstreamError where it cannot be an answer of this model."""

    def _check(self, said: str, decoded: int, request: GenerateRequest) -> None:
        """Raises UpstreamError where an answer is not what was asked for."""

    def _failed(self, message: str) -> RouterError:
        return UpstreamError(message)

    # Tokens

    def _parses_marks(self) -> bool:
        """Whether what looks like a special token in a client's text becomes one."""
        marks = set(_USUAL_MARKS)
        if self._chat:
            marks.update(*(_MARK.findall(piece) for piece in around(("user",), self._render)))
        return any(len(self._remembered("", mark, False, False)) == 1 for mark in marks)

    def _read_pieces(self, roles: tuple[Role, ...]) -> tuple[tuple[int, ...], ...]:
        """Token ids before, between and after the texts of such turns."""
        try:
            head, *rest = around(roles, self._render) if self._chat else without_template(roles)
        except ValueError:
            raise refused(roles) from None
        first = self._remembered("", head, True, True)
        if first[:1] == first[1:2]:  # the template begins as the tokenizer does by itself
            first = first[1:]
        return (first, *(self._remembered("", piece, False, True) if piece else () for piece in rest))

    def prompt_ids(self, prompt: str, history: Sequence[Turn] = (), owner: str = "") -> tuple[int, ...]:
        """Token ids of the prompt, after the conversation before it, inside the chat template."""
        head, *rest = self._pieces((*(turn.role for turn in history), "user"))
        texts = [*(turn.content for turn in history), prompt]
        told = zip(texts, rest, strict=True)
        return (*head, *chain.from_iterable((*self._tokenize(text, owner), *after) for text, after in told))

    def _tokenize(self, text: str, owner: str = "") -> tuple[int, ...]:
        """Ids of a text, in which nothing is a special token."""
        if not text:
            return ()
        parts = _cut(text) if self._parses else [text]
        return tuple(chain.from_iterable(self._remembered(owner, part, False, False) for part in parts))

    def _ask_tokens(self, owner: str, text: str, add_special: bool, special: bool) -> tuple[int, ...]:
        return tokens(self._link, self._served.model, text, add_special=add_special, special=special)

    def _ask_count(self, owner: str, text: str) -> tuple[int]:
        """The tokens of a text, where nobody can be asked but the model."""
        return (max(1, self._ask_usage(text) - self._base),)

    def _ask_usage(self, text: str) -> int:
        served = self._served
        return usage_of(self._link.ask(served.route, asked(served.model, served.route, text, 1, temperature=0)))


class UpstreamModel(ServedModel):
    """A checkpoint that another's server decodes, over a wire, and may have changed by now."""

    def __init__(self, wire: Wire, served: Served, info: ModelInfo, *, chat: bool) -> None:
        self._wire = wire
        super().__init__(wire, served, info, chat=chat)
        wire.begin()

    @property
    def info(self) -> ModelInfo:
        wire, way = self._wire, self._served.way
        found = Upstream(
            *(wire.url, way.constraint, way.field or None, "tokenize" if self._served.tokenizes else "usage"),
            *(wire.calls, wire.retries, dict(wire.failures), wire.breaker.is_open),
        )
        return replace(self._info, upstream=found)

    def weigh(
        self, request: GenerateRequest, answers: Sequence[str], cancelled: Callable[[], bool], slot: int = 0
    ) -> Chunk:
        """Raises InvalidRequest: servers tell the probabilities of what they write, and not of every answer."""
        raise InvalidRequest("a server upstream gives no probabilities of answers")

    def _check_event(self, event: Event) -> None:
        """Raises UpstreamError where another model answers than was found at the start."""
        model = event.get("model")
        if model is not None and model != self._served.model:
            raise self._failed(f"the upstream answers with another model: {str(model)[:80]!r}")

    def _check(self, said: str, decoded: int, request: GenerateRequest) -> None:
        """A server that once kept grammars and limits may be another one by now. Raises UpstreamError."""
        if decoded > request.sampling.max_new_tokens:
            raise self._failed(f"the upstream wrote {decoded} tokens, past the limit that it was given")
        if request.grammar is None or self._served.way.constraint != "lark":
            return
        if not allows(request.grammar, said):
            raise self._failed("the upstream wrote what the grammar does not allow: it ignores it by now")

    def _ask_tokens(self, owner: str, text: str, add_special: bool, special: bool) -> tuple[int, ...]:
        with self._as_it_was():
            return super()._ask_tokens(owner, text, add_special, special)

    def _ask_usage(self, text: str) -> int:
        with self._as_it_was():
            return super()._ask_usage(text)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """What would make a server no candidate is a failure of one that is served."""
        try:
            yield
        except CandidateError as error:
            raise self._failed(error.message) from None

    def _failed(self, message: str) -> RouterError:
        return self._wire.failed(UpstreamError(message))


def _cut(text: str) -> list[str]:
    """The text in pieces, none of which holds a whole mark."""
    ends = [match.start() + 1 for match in _MARK.finditer(text)]
    return [text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def _piece(event: Event) -> tuple[Chunk, FinishReason | None]:
    """The text in an event of either route, and why it was the last one. Raises UpstreamError."""
    choices = event.get("choices")
    if choices == [] or (not choices and "usage" in event):
        return Chunk(), None
    try:
        choice = choices[0]  # type: ignore[index] # whatever it is
        text = (choice.get("delta") or {}).get("content") if "delta" in choice else choice["text"]
        reason = choice.get("finish_reason") or None  # some say "" until the end
        logprobs = tuple(map(_logprob, (choice.get("logprobs") or {}).get("content") or ()))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise UpstreamError("the upstream streams no choices: it speaks another API than OpenAI's") from None
    if not isinstance(text, str | None) or _HALF.search(text or ""):
        raise UpstreamError("the upstream streams what is no text")
    if reason is not None and (not isinstance(reason, str) or reason not in _REASONS):
        raise UpstreamError(f"the upstream ended its answer with {str(reason)[:40]!r}")
    return Chunk(text or "", logprobs=logprobs), _REASONS[reason] if reason else None


def _number(said: object, name: str) -> int:
    """A count that a server tells; 0 where it tells none."""
    found = said.get(name) if isinstance(said, dict) else None
    return int(found) if isinstance(found, int | float) and 0 <= found < 2**53 else 0


def _logprob(entry: dict[str, Any]) -> TokenLogprob:
    top = tuple(map(_logprob, entry.get("top_logprobs", ())))
    log = max(-math.inf if entry["logprob"] is None else entry["logprob"], -9999.0)  # JSON has no number for log 0
    return TokenLogprob(entry["token"], tuple(entry["bytes"]), log, top, entry.get("id", -1))
