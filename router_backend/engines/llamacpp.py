"""The llama.cpp engine, on xllamacpp: GGUF checkpoints, continuous batching, a prefix cache for each slot.

xllamacpp runs llama.cpp's server in a process of its own (`llama_server.py`), and is spoken to as any server is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import psutil

from router_backend.checkpoints import machine
from router_backend.decisions.calibration import temperature_of
from router_backend.engines import llama_server
from router_backend.engines.child import Child
from router_backend.engines.conversation import Message, instructions, shared, through_template
from router_backend.engines.upstream.model import ServedModel
from router_backend.engines.upstream.probe import LLAMA_SERVER, Served, render
from router_backend.errors import CandidateError, EngineError, RungError
from router_backend.plan.prompt import BUDGET_KEY
from router_backend.types import Chunk, GenerateRequest, ModelInfo, Odds, SamplingParams, Timings, TokenLogprob, Usage

if TYPE_CHECKING:
    from router_backend.checkpoints.ladder import Rung
    from router_backend.settings import Settings

# Bytes a second that a load takes in at the least, once the file has been read.
_SLOWEST_LOAD = 100e6
# Where one thread decodes. Of the process alone: libgomp reads it as it starts.
_ASLEEP = {"OMP_WAIT_POLICY": "passive"}
# How many of the likeliest tokens are told in each place that answers are weighed in.
_TOLD = 100
Ids: TypeAlias = tuple[int, ...]
# Nothing but these two draws, in this order; and a cancel is seen during prefill too.
_EXTRAS = {"top_k": 0, "min_p": 0.0, "samplers": ["temperature", "top_p"], "return_progress": True}


def load(rung: Rung, settings: Settings, path: Path) -> LlamaCppModel:
    """Loads a GGUF file. Raises RungError: not enough memory, an unknown architecture, a damaged file."""
    name = path.name if rung.candidate.kind == "gguf" else rung.candidate.name
    return LlamaCppModel(path, name, rung.strategy, settings)


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


class Known:
    """What walks along answers' tokens have told of them. Answers that begin alike share the passes for that."""

    def __init__(self, answers: Sequence[Ids]) -> None:
        self._answers = answers
        self._rows: dict[Ids, dict[int, float]] = {}  # after some tokens: the logarithms of next ones

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Of each answer, or the most that it can be."""
        return tuple(self._read(answer)[0] for answer in self._answers)

    def walks(self, reach: float) -> Iterator[tuple[Ids, list[Ids]]]:
        """Where the likeliest open answer goes on, and all ways from there. The caller walks one, and notes it."""
        while True:
            read = [(*self._read(answer), answer) for answer in self._answers]
            best = max((log for log, begun, answer in read if begun == answer), default=-math.inf)
            log, place = max(((log, begun) for log, begun, answer in read if begun != answer), default=(-math.inf, ()))
            if log <= best - reach:
                return
            yield place, [answer[len(place) :] for _, begun, answer in read if begun == place != answer]

    def note(self, begun: Ids, told: Sequence[TokenLogprob]) -> None:
        """The likeliest way from somewhere."""
        for each in told:
            self._rows.setdefault(begun, {}).update({token.id: token.logprob for token in (*each.top, each)})
            begun = (*begun, each.id)

    def _read(self, answer: Ids) -> tuple[float, Ids]:
        """The most that its logarithm can be, and how it begins, as far as that is known."""
        log = 0.0
        for at, token in enumerate(answer):
            row = self._rows.get(answer[:at], {})
            if token not in row:
                return log + min(row.values(), default=0.0), answer[:at]
            log += row[token]
        return log, answer


class LlamaCppModel(ServedModel):
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
            "repeatable": settings.repeatable,
            "memory": min(psutil.virtual_memory().total, machine.container_memory()[0]),
            "budget_key": BUDGET_KEY,
        }
        served = Served(name, None, None, "v1/completions", LLAMA_SERVER, tokenizes=True, applies=True, extras=_EXTRAS)
        try:
            chat, warnings = self._begun(settings.prompt_format, served)
            meta = self._child.ask("v1/models")["data"][0]["meta"]
            info = ModelInfo(
                *(name, strategy, "llamacpp", min(settings.context_length, meta["n_ctx_train"]), settings.slots),
                budget_line=self._head["budget_line"],
                temperature=temperature_of(path),
                warnings=tuple(warnings),
            )
            super().__init__(self._child, served, info, chat=chat)
            self._instructions = tuple(instructions(self.prompt_ids))
        except (CandidateError, EngineError) as error:
            self._child.close()
            raise error if isinstance(error, CandidateError) else RungError(error.message) from error
        self._pace, self._busy = Pace(threads[0]), set[int]()

    @property
    def info(self) -> ModelInfo:
        slow = self._pace.warnings
        return replace(self._info, warnings=(*self._info.warnings, *slow)) if slow else self._info

    def weigh(
        self, request: GenerateRequest, answers: Sequence[str], cancelled: Callable[[], bool], slot: int = 0
    ) -> Chunk:
        """By grammars of the answers' tokens: llama.cpp tells what tokens were worth before the grammar."""
        known, usage, timings = Known(list(map(self._tokenize, answers))), Usage(), Timings()
        # Stopping at what all of them end with saves the pass that would draw the end token.
        ends = {answer[-1] for answer in answers}
        stop = tuple(ends) if len(ends) == 1 else ()
        for begun, ways in known.walks(request.reach):
            sampling = SamplingParams(max(map(len, ways)), temperature=0.0, logprobs=_TOLD, stop=stop)
            forced = f"start: {' | '.join(' '.join(f'<[{token}]>' for token in way) for way in ways)}\n"
            body, size = self._body(replace(request, sampling=sampling, grammar=forced), slot)
            self._info.check_room(size + len(begun), sampling.max_new_tokens)
            body["prompt"] += begun
            *chunks, last = self._answer(body, size, request, cancelled)
            if last.finish_reason == "cancelled":
                return Chunk(finish_reason="cancelled", usage=usage, timings=timings)
            told = [each for chunk in chunks for each in chunk.logprobs]
            if not told:
                raise EngineError("llama.cpp told no probabilities")
            known.note(begun, told)
            usage, timings = usage.with_answer(last.usage), timings + last.timings
        odds = Odds(tuple(answers), known.logprobs)
        return Chunk(finish_reason="stop", usage=usage, timings=timings, odds=(odds,))

    @property
    def died(self) -> bool:
        """Whether its process has ended: there is nothing left to ask."""
        return self._child.died

    def _begun(self, wanted: str, served: Served) -> tuple[bool, list[str]]:
        """Starts the process, and says what `through_template` says. Raises RungError and CandidateError."""
        plain = wanted == "raw"
        self._head: dict[str, bool] = {}
        try:
            self._begin(plain=plain)
            chosen = through_template(wanted, self._head["template"], partial(render, self._child, served))
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
        size = self._path.stat().st_size
        patience = self._patience and self._patience + size / _SLOWEST_LOAD
        variables = _ASLEEP if self._orders["threads"][0] == 1 else {}
        try:
            self._child = Child(llama_server.__file__, {**self._orders, "plain": plain}, variables, self._patience)
            self._head = said = self._child.heard(patience)
            while said is not True:
                said = self._child.heard(patience)
                if isinstance(said, str):
                    self._child.close()
                    raise RungError(said)
        except RungError as error:
            raise RungError(f"llama.cpp does not load {self._path.name}: {error.message}") from error

    def _apart(self, owner: str, slot: int) -> dict[str, Any]:
        """A slot of another owner's is brought back before it answers."""
        return {"id_slot": slot, "cache_prompt": True}

    def _answer(
        self, body: dict[str, Any], prompt_tokens: int, request: GenerateRequest, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        slot = body["id_slot"]
        if self._owners.get(slot, "") != request.owner:
            # llama.cpp goes on from whatever a slot holds. So the slot first gets what everybody knows, and no more.
            common = self._instructions[: max(1, shared(self._instructions, body["prompt"]))]
            clean = {**body, "prompt": common, "max_tokens": 0, "temperature": 0.0, "grammar": "", "stop": []}
            for event in self._child.stream(self._served.route, clean, {}, cancelled):
                if event is None:
                    yield Chunk(finish_reason="cancelled")
                    return
            self._owners[slot] = request.owner
        self._busy.add(slot)
        try:
            for chunk in super()._answer(body, prompt_tokens, request, cancelled):
                self._pace.note(chunk.usage.completion_tokens, chunk.timings.decode_seconds, len(self._busy))
                yield chunk
        finally:
            self._busy.discard(slot)


def default_threads(cores: int) -> tuple[int, int]:
    """Threads that decode one stream: all cores but one. Threads for prefill, and for several streams at once.

    llama.cpp's threads spin until all of them have come, at every layer, so one that shares its core holds up the rest.
    One thread waits for nobody: then the others of a prefill may wait asleep, and have all cores (docs/engines.md).
    """
    decode = max(1, cores - 1)
    return decode, cores if decode == 1 else decode
