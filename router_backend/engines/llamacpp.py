"""The llama.cpp engine, on xllamacpp: GGUF checkpoints, continuous batching, a prefix cache for each slot.

xllamacpp runs llama.cpp's server in this process. Generation goes through its Python call; tokenising and the chat
template only exist on the HTTP port that it opens on loopback, which is why that port stays, with a random key and
without its pages.
"""

from __future__ import annotations

import mmap
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

import httpx
import xllamacpp
from llguidance import LLMatcher

from router_backend.checkpoints import machine
from router_backend.decisions.calibration import temperature_of
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

# As it stands in a GGUF's head: the key with its length before it, the type (7: a truth value), the value.
_BUDGET_LINE = struct.pack("<Q", len(BUDGET_KEY)) + BUDGET_KEY.encode() + struct.pack("<IB", 7, 1)
_TEMPLATE_KEY = "tokenizer.chat_template"
_TEMPLATE = struct.pack("<Q", len(_TEMPLATE_KEY)) + _TEMPLATE_KEY.encode() + struct.pack("<I", 8)  # 8: a text
_PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
_LONGEST_HEAD = 64 << 20
_GRAMMAR_MARK = "%llguidance {}\n"


def load(rung: Rung, settings: Settings, path: Path) -> LlamaCppModel:
    """Loads a GGUF file. Raises RungError: not enough memory, an unknown architecture, a damaged file."""
    name = path.name if rung.candidate.kind == "gguf" else rung.candidate.name
    return LlamaCppModel(path, name, rung.strategy, settings)


def _read_head(path: Path) -> tuple[str | None, bool]:
    """The file's chat template, and whether it was trained with a budget line, out of its metadata."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        template, start = None, content.find(_TEMPLATE, 0, _LONGEST_HEAD)
        if start >= 0:
            begin = start + len(_TEMPLATE) + 8
            (length,) = struct.unpack_from("<Q", content, begin - 8)
            template = content[begin : begin + length].decode(errors="replace").strip() or None
        return template, content.find(_BUDGET_LINE, 0, _LONGEST_HEAD) >= 0


def _refuse(messages: list[Message]) -> str:
    raise ValueError("llama.cpp cannot render it")


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


class LlamaCppModel:
    """A loaded GGUF. Thread-safe; each slot decodes one request at a time."""

    def __init__(self, path: Path, name: str, strategy: str, settings: Settings) -> None:
        key = secrets.token_urlsafe(32)
        on_gpu = settings.model_device != "cpu" and _has_gpu()
        if settings.model_device == "cuda" and not on_gpu:
            raise RungError("MODEL_DEVICE=cuda, and llama.cpp sees no GPU here")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {name}
        params.n_ctx = settings.context_length * settings.slots
        params.n_parallel = settings.slots
        # A prompt is prefilled in pieces of this many tokens, and cancelled between two of them.
        params.n_batch = params.n_ubatch = 512 if on_gpu else 128
        params.n_gpu_layers = 999 if on_gpu else 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads or default_threads(
            machine.cores()
        )
        params.cache_ram_mib = 0
        params.n_ctx_checkpoints = 0
        params.api_keys = [key]
        params.ui = params.endpoint_slots = params.endpoint_props = False
        params.verbosity = -1
        # The constructor keeps the GIL, and with it `/livez`, until it returns. So it finds the file in memory, and the
        # warm-up pass is left to the service.
        params.warmup = False
        _read_ahead(path)
        template, budget_line = _read_head(path)
        # It renders an example as it starts, and does not start where that fails.
        wanted, broken = settings.prompt_format, False
        if wanted == "raw" or not template:
            params.chat_template = _PLAIN
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            failed = RungError(f"llama.cpp does not load {path.name}: damaged, unsupported or out of memory")
            if params.chat_template == _PLAIN:
                raise failed from error
            params.chat_template, broken = _PLAIN, True
            try:
                self._server = xllamacpp.Server(params)
            except RuntimeError:
                raise failed from error
        self._http = httpx.Client(
            base_url=self._server.listening_address, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        self._calls = ThreadPoolExecutor(settings.slots, thread_name_prefix="llamacpp")
        meta = self._http.get("/v1/models").json()["data"][0]["meta"]
        context = min(settings.context_length, meta["n_ctx_train"])
        info = ModelInfo(name, strategy, "llamacpp", context, settings.slots, budget_line)
        self.info = replace(info, temperature=temperature_of(path))
        # A plan counts and sends the same texts several times at each stage, the choices of a call the same prompt.
        self._remembered = Remembered.of_texts(self._ask_tokens)
        self._pieces = lru_cache(maxsize=64)(self._read_pieces)
        try:
            self._chat, warnings = through_template(wanted, template, _refuse if broken else self._render)
        except CandidateError:
            self.close()
            raise
        self.info = replace(self.info, warnings=tuple(warnings))
        self._instructions = tuple(instructions(self.prompt_ids))
        self._owners: dict[int, str] = {}  # whose text the prefix cache of each slot holds

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
        self.info.check_room(len(prompt), sampling.max_new_tokens)
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

    def close(self) -> None:
        self._calls.shutdown(wait=True, cancel_futures=True)
        self._http.close()
        del self._server

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
        """Turns xllamacpp's blocking call with a callback into an iterator that can be closed."""
        events: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        left = False

        def on_event(event: dict[str, Any]) -> bool:
            events.put(event)
            return left or cancelled()

        future = self._calls.submit(self._server.handle_completions, call, on_event)
        future.add_done_callback(lambda _: events.put(None))
        try:
            while (event := events.get()) is not None:
                if "error" in event:
                    raise _error(event["error"])
                yield _chunk(event)
                if "usage" in event:
                    return
            failure = future.exception()
            if failure is not None:
                raise EngineError(f"llama.cpp failed: {type(failure).__name__}") from failure
            yield Chunk(finish_reason="cancelled")
        finally:
            left = True
            future.exception()  # waits: the slot is free when this returns

    def _render(self, messages: list[Message]) -> str:
        answer = self._http.post(
            "/apply-template", json={"messages": messages, "chat_template_kwargs": {"enable_thinking": False}}
        )
        if not answer.is_success:
            raise ValueError(str(answer.json().get("error", {}).get("message", ""))[:200])
        return str(answer.json().get("prompt", ""))

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
        answer = self._http.post("/tokenize", json=body)
        answer.raise_for_status()
        return tuple(answer.json()["tokens"])


def default_threads(cores: int) -> int:
    """All cores but one, and at least one: a core is left to everything else.

    llama.cpp's threads spin until all of them have come, at every layer, so one that shares its core holds up the rest
    (docs/performance.md, "Threads").
    """
    return max(1, cores - 1)


def _has_gpu() -> bool:
    return any("GPU" in str(device["type"]) for device in xllamacpp.get_device_info())


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


def _read_ahead(path: Path) -> None:
    buffer = bytearray(1 << 24)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


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
