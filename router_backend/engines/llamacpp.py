"""The llama.cpp engine, on xllamacpp: GGUF checkpoints, continuous batching, a prefix cache for each slot.

xllamacpp runs llama.cpp's server in a process of its own (`llama_server.py`), and is spoken to as any server is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from http.client import HTTPResponse, IncompleteRead
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
from llguidance import LLMatcher

from router_backend.checkpoints import machine
from router_backend.decisions.calibration import temperature_of
from router_backend.engines import llama_server
from router_backend.engines.child import Child
from router_backend.engines.conversation import (
    Message,
    around,
    instructions,
    refused,
    shared,
    through_template,
    without_template,
)
from router_backend.errors import CandidateError, ContextOverflow, EngineError, InvalidRequest, RungError
from router_backend.plan.prompt import BUDGET_KEY
from router_backend.remembered import Remembered
from router_backend.types import (
    Chunk,
    FinishReason,
    GenerateRequest,
    ModelInfo,
    Odds,
    Role,
    SamplingParams,
    Timings,
    TokenLogprob,
    Turn,
    Usage,
)

if TYPE_CHECKING:
    from router_backend.checkpoints.ladder import Rung
    from router_backend.settings import Settings

# Bytes a second that a load takes in at the least, once the file has been read.
_SLOWEST_LOAD = 100e6
# Where one thread decodes. Of the process alone: libgomp reads it as it starts.
_ASLEEP = {"OMP_WAIT_POLICY": "passive"}
_GRAMMAR_MARK = "%llguidance {}\n"


def load(rung: Rung, settings: Settings, path: Path) -> LlamaCppModel:
    """Loads a GGUF file. Raises RungError: not enough memory, an unknown architecture, a damaged file."""
    name = path.name if rung.candidate.kind == "gguf" else rung.candidate.name
    return LlamaCppModel(path, name, rung.strategy, settings)


@lru_cache(maxsize=512)
def check_grammar(grammar: str, owner: str = "") -> None:
    """llama.cpp ignores a grammar that does not compile and answers unconstrained, so it is compiled here first.

    The last few are remembered, for each owner apart.

    Raises:
        InvalidRequest: with the compiler's own words.
    """
    problem = LLMatcher.validate_grammar(grammar)
    if problem and not problem.startswith("WARNING"):
        raise InvalidRequest(f"the grammar does not compile: {problem.splitlines()[0]}", param="grammar")


class Pace:
    """How fast streams are written, beside the best that was seen with as many at once."""

    _FAR_BELOW, _WEIGHT, _TOKENS = 1 / 3, 0.1, 8

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._best: dict[int, float] = {}
        self._recent = 1.0  # parts of the best, the last ones weighing most

    def note(self, tokens: int, seconds: float, streams: int) -> None:
        """An answer was written beside others. Short ones tell nothing."""
        if tokens < self._TOKENS or seconds <= 0:
            return
        rate = tokens / seconds
        best = self._best[streams] = max(rate, self._best.get(streams, 0.0))
        self._recent += self._WEIGHT * (rate / best - self._recent)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to set, where other processes hold it up."""
        if self._recent >= self._FAR_BELOW:
            return ()
        advice = (
            f"set THREADS lower than {self._threads}: its threads wait for each other"
            if self._threads > 1
            else "it has one thread: give this server a core of its own"
        )
        return (f"llama.cpp writes at {self._recent:.0%} of its own best pace, beside other processes; {advice}",)


class LlamaCppModel:
    """A loaded GGUF. Thread-safe; each slot decodes one request at a time."""

    def __init__(self, path: Path, name: str, strategy: str, settings: Settings) -> None:
        threads = (settings.threads,) * 2 if settings.threads else default_threads(machine.cores())
        self._path, self._patience = path, settings.watchdog_timeout or None
        self._orders: dict[str, Any] = {
            "path": str(path),
            "name": name,
            "device": settings.model_device,
            "context": settings.context_length,
            "slots": settings.slots,
            "threads": threads,
            "memory": min(psutil.virtual_memory().total, machine.container_memory()[0]),
            "budget_key": BUDGET_KEY,
        }
        # A plan counts and sends the same texts several times at each stage, the choices of a call the same prompt.
        self._remembered = Remembered.of_texts(self._ask_tokens)
        self._pieces = lru_cache(maxsize=64)(self._read_pieces)
        try:
            self._chat, warnings = self._begun(settings.prompt_format)
            meta = self._child.ask("/v1/models")[1]["data"][0]["meta"]
            self._instructions = tuple(instructions(self.prompt_ids))
        except (CandidateError, EngineError) as error:
            self._child.kill()
            raise error if isinstance(error, CandidateError) else RungError(error.message) from error
        context = min(settings.context_length, meta["n_ctx_train"])
        budget_line = self._head["budget_line"]
        self._info = ModelInfo(
            *(name, strategy, "llamacpp", context, settings.slots, budget_line),
            temperature=temperature_of(path),
            warnings=tuple(warnings),
        )
        self._pace, self._busy = Pace(threads[0]), set[int]()
        self._owners: dict[int, str] = {}  # whose text the prefix cache of each slot holds

    @property
    def info(self) -> ModelInfo:
        slow = self._pace.warnings
        return replace(self._info, warnings=(*self._info.warnings, *slow)) if slow else self._info

    def count_tokens(self, text: str) -> int:
        return len(self._tokenize(text))

    def prompt_tokens(self, request: GenerateRequest) -> int:
        return len(self.prompt_ids(request.prompt, request.history, request.owner))

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        prompt = (
            *self.prompt_ids(request.prompt, request.history, request.owner),
            *self._tokenize(request.prefix),
        )
        sampling = request.sampling
        self._info.check_room(len(prompt), sampling.max_new_tokens)
        call: dict[str, Any] = {
            "prompt": prompt,
            "n_predict": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "samplers": ["temperature", "top_p"],
            "seed": sampling.seed % 2**32,
            "stop": list(sampling.stop),
            "cache_prompt": True,
            "id_slot": slot,
            "stream": True,
            "return_progress": True,  # so that a cancel is seen during prefill too
        }
        if sampling.logprobs is not None:
            call["logprobs"] = max(1, sampling.logprobs)
        if request.grammar is not None:
            check_grammar(request.grammar, request.owner)
            call["grammar"] = _GRAMMAR_MARK + request.grammar
        return self._answer(call, cancelled, request.owner)

    def weigh(
        self, request: GenerateRequest, answers: Sequence[str], cancelled: Callable[[], bool], slot: int = 0
    ) -> Chunk:
        """By a grammar of exactly an answer's tokens: llama.cpp tells what each was worth before the grammar."""
        logs: list[float] = []
        usage, timings = Usage(), Timings()
        for answer in answers:
            ids = self._tokenize(answer)
            sampling = SamplingParams(len(ids), temperature=0.0, logprobs=0)
            forced = f"start: {' '.join(f'<[{token}]>' for token in ids)}\n"
            chunks = list(self.generate(replace(request, sampling=sampling, grammar=forced), cancelled, slot))
            last, said = chunks[-1], [each.logprob for chunk in chunks for each in chunk.logprobs]
            if last.finish_reason == "cancelled":
                return Chunk(finish_reason="cancelled", usage=usage, timings=timings)
            if len(said) != len(ids):
                raise EngineError(f"llama.cpp told the probabilities of {len(said)} tokens out of {len(ids)}")
            logs.append(sum(said))
            usage, timings = usage.with_answer(last.usage), timings + last.timings
        return Chunk(finish_reason="stop", usage=usage, timings=timings, odds=(Odds(tuple(answers), tuple(logs)),))

    def remember(self, text: str, owner: str = "") -> None:
        """Nothing: llama.cpp is given no drafts."""

    @property
    def died(self) -> bool:
        """Whether its process has ended: there is nothing left to ask."""
        return self._child.died

    def close(self) -> None:
        self._child.kill()

    def _begun(self, wanted: str) -> tuple[bool, list[str]]:
        """Starts the process, and says what `through_template` says. Raises RungError and CandidateError."""
        plain = wanted == "raw"
        try:
            self._begin(plain=plain)
            chosen = through_template(wanted, self._head["template"], self._render)
            if not self._child.died:
                return chosen
            trouble = "it ends llama.cpp"
        except RungError as error:
            if plain or not self._head.get("template"):
                raise
            trouble = error.message

        def refuse(messages: list[Message]) -> str:
            raise ValueError(trouble)

        # It renders an example as it starts: some templates crash it, and some never end.
        self._begin(plain=True)
        return through_template(wanted, True, refuse)

    def _begin(self, *, plain: bool) -> None:
        """Raises RungError: the file does not load, or takes too long."""
        self._head: dict[str, bool] = {}
        size = self._path.stat().st_size
        patience = self._patience and self._patience + size / _SLOWEST_LOAD
        variables = _ASLEEP if self._orders["threads"][0] == 1 else {}
        try:
            self._child = Child(llama_server.__file__, {**self._orders, "plain": plain}, variables, self._patience)
            self._head = said = self._child.heard(patience)
            while said is not True:
                said = self._child.heard(patience)
                if isinstance(said, str):
                    self._child.kill()
                    raise RungError(said)
        except RungError as error:
            raise RungError(f"llama.cpp does not load {self._path.name}: {error.message}") from error

    def _answer(self, call: dict[str, Any], cancelled: Callable[[], bool], owner: str) -> Iterator[Chunk]:
        slot = call["id_slot"]
        if self._owners.get(slot, "") != owner:
            # llama.cpp goes on from whatever a slot holds. So the slot first gets what everybody knows, and no more.
            common = shared(self._instructions, call["prompt"])
            clean = {"prompt": self._instructions[: max(1, common)], "n_predict": 0, "temperature": 0.0}
            for chunk in self._stream({**call, **clean, "grammar": "", "stop": []}, cancelled):
                if chunk.finish_reason == "cancelled":
                    yield chunk
                    return
            self._owners[slot] = owner
        yield from self._stream(call, cancelled)

    def _stream(self, call: dict[str, Any], cancelled: Callable[[], bool]) -> Iterator[Chunk]:
        with self._child.asked("/v1/completions", call) as answer, self._at_work(call.get("id_slot", 0)):
            for event in _events(answer):
                if "error" in event:
                    raise _error(event["error"])
                stop = cancelled()
                chunk = _chunk(event)
                if "usage" in event:
                    self._pace.note(chunk.usage.completion_tokens, chunk.timings.decode_seconds, len(self._busy))
                    yield chunk
                    return
                yield chunk
                if stop:
                    break
            else:
                raise IncompleteRead(b"")
        yield Chunk(finish_reason="cancelled")

    @contextmanager
    def _at_work(self, slot: int) -> Iterator[None]:
        self._busy.add(slot)
        try:
            yield
        finally:
            self._busy.discard(slot)

    def _render(self, messages: list[Message]) -> str:
        body = {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}}
        status, said = self._child.ask("/apply-template", body)
        if status != 200:
            raise ValueError(str(said.get("error", {}).get("message", ""))[:200])
        return str(said.get("prompt", ""))

    def _read_pieces(self, roles: tuple[Role, ...]) -> tuple[tuple[int, ...], ...]:
        """Token ids before, between and after the texts of such turns."""
        try:
            head, *rest = around(roles, self._render) if self._chat else without_template(roles)
        except ValueError:
            raise refused(roles) from None
        return (
            self._tokenize(head, add_special=True, parse_special=True),
            *(self._tokenize(piece, parse_special=True) for piece in rest),
        )

    def prompt_ids(self, prompt: str, history: Sequence[Turn] = (), owner: str = "") -> tuple[int, ...]:
        """Token ids of the prompt, after the conversation before it, inside the chat template."""
        head, *rest = self._pieces((*(turn.role for turn in history), "user"))
        texts = [*(turn.content for turn in history), prompt]
        return (
            *head,
            *chain.from_iterable(
                (*self._tokenize(text, owner), *after) for text, after in zip(texts, rest, strict=True)
            ),
        )

    def _tokenize(
        self, text: str, owner: str = "", *, add_special: bool = False, parse_special: bool = False
    ) -> tuple[int, ...]:
        if not text and not add_special:
            return ()
        return self._remembered(owner, text, add_special, parse_special)

    def _ask_tokens(self, owner: str, text: str, add_special: bool, parse_special: bool) -> tuple[int, ...]:
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        status, said = self._child.ask("/tokenize", body)
        if status != 200:
            raise _error(said["error"])
        return tuple(said["tokens"])


def default_threads(cores: int) -> tuple[int, int]:
    """Threads that decode one stream: all cores but one. Threads for prefill, and for several streams at once.

    llama.cpp's threads spin until all of them have come, at every layer, so one that shares its core holds up the rest.
    One thread waits for nobody: then the others of a prefill may wait asleep, and have all cores (docs/engines.md).
    """
    decode = max(1, cores - 1)
    return decode, cores if decode == 1 else decode


def _events(answer: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The server-sent events of an answer, or its one error."""
    if answer.status != 200:
        yield json.loads(answer.read())
        return
    for line in answer:
        kind, _, value = line.partition(b": ")
        if kind in (b"data", b"error") and not value.startswith(b"[DONE]"):
            event = json.loads(value)
            yield {"error": event} if kind == b"error" else event


def _chunk(event: dict[str, Any]) -> Chunk:
    choice = event["choices"][0]
    if "usage" not in event:
        return Chunk(choice["text"], logprobs=_logprobs(choice.get("logprobs")))
    usage, timings = event["usage"], event.get("timings", {})
    decoded = usage["completion_tokens"]
    return Chunk(
        choice["text"],
        cast("FinishReason", choice["finish_reason"]),
        Usage(usage["prompt_tokens"], decoded, usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)),
        Timings(
            prefill_seconds=timings.get("prompt_ms", 0.0) / 1000,
            decode_seconds=timings.get("predicted_ms", 0.0) / 1000,
            forward_passes=max(1, decoded),  # the prefill's pass draws the first token
        ),
        logprobs=_logprobs(choice.get("logprobs")),
    )


def _logprobs(found: dict[str, Any] | None) -> tuple[TokenLogprob, ...]:
    def read(entry: dict[str, Any]) -> TokenLogprob:
        top = tuple(read(each) for each in entry.get("top_logprobs", ()))
        # A probability of 0 is no number in JSON.
        return TokenLogprob(entry["token"], tuple(entry["bytes"]), max(entry["logprob"] or 0.0, -9999.0), top)

    return tuple(read(entry) for entry in (found or {}).get("content") or ())


def _error(error: dict[str, Any]) -> EngineError | InvalidRequest:
    if error.get("type") == "exceed_context_size_error":
        return ContextOverflow(
            f"the prompt has {error.get('n_prompt_tokens')} tokens, the context {error.get('n_ctx')}", param="prompt"
        )
    if error.get("type") == "invalid_request_error":
        return InvalidRequest(str(error.get("message")))
    return EngineError(f"llama.cpp failed: {error.get('message')}")
