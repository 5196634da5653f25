"""The echo engine: a `LocalModel` without weights, for tests and demos. It ships, and is never chosen by itself.

It says the words of `script` (by default the prompt's own) one token a word, under the same limits, stops, cancel and
slots as a real engine. `faults` make it misbehave in the ways that real engines do.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from router_backend.errors import EngineError, InvalidRequest
from router_backend.types import Chunk, FinishReason, GenerateRequest, ModelInfo, Odds, Timings, Usage

if TYPE_CHECKING:
    from pathlib import Path

    from router_backend.checkpoints.ladder import Rung
    from router_backend.settings import Settings

_SEEN = 1000
_TOKEN = re.compile(r"\s*[\w-]+|\s*[^\w\s]|\s+")


@dataclass
class EchoModel:
    """See the module.

    Attributes:
        script: request → the text to say; grammars are its own business.
        seconds_per_token: a pace, so that cancel and queues can be watched.
        fail_after: tokens after which a generation raises; None for never.
        stuck: while it is set to an event, a generation hangs until that is set, and asks nobody whether to go on.
        seen: the last thousand requests, in order.
    """

    info: ModelInfo = field(default_factory=lambda: ModelInfo("echo", "native", "echo", 4096, 4))
    script: Callable[[GenerateRequest], str] = lambda request: request.prompt
    seconds_per_token: float = 0.0
    fail_after: int | None = None
    stuck: threading.Event | None = None
    seen: list[GenerateRequest] = field(default_factory=list)
    active: set[int] = field(default_factory=set)
    closed: bool = False

    def tokenize(self, text: str) -> Sequence[str]:
        return _TOKEN.findall(text)

    def count_tokens(self, text: str) -> int:
        return len(self.tokenize(text))

    def prompt_tokens(self, request: GenerateRequest) -> int:
        return sum(self.count_tokens(turn.content) for turn in request.turns)

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        self.seen.append(request)
        del self.seen[:-_SEEN]
        if request.sampling.logprobs is not None:
            raise InvalidRequest("the echo engine gives no logprobs", param="logprobs")
        prompt = self.prompt_tokens(request) + self.count_tokens(request.prefix)
        self.info.check_room(prompt, request.sampling.max_new_tokens)
        self.active.add(slot)
        start = time.monotonic()
        said = 0
        reason: FinishReason = "stop"
        try:
            text, stopped = _until(self.script(request), request.sampling.stop)
            for token in self.tokenize(text):
                if cancelled():
                    reason = "cancelled"
                    break
                if said == request.sampling.max_new_tokens:
                    reason = "length"
                    break
                if said == self.fail_after:
                    raise EngineError("the echo engine was told to fail")
                if self.stuck is not None:
                    self.stuck.wait()
                if self.seconds_per_token:
                    time.sleep(self.seconds_per_token)
                said += 1
                yield Chunk(token)
            else:
                if stopped and said == request.sampling.max_new_tokens:
                    reason = "length"
                else:
                    said += stopped
            yield Chunk(
                finish_reason=reason,
                usage=Usage(prompt, said),
                timings=Timings(decode_seconds=time.monotonic() - start, forward_passes=said),
            )
        finally:
            self.active.discard(slot)

    def weigh(
        self, request: GenerateRequest, answers: Sequence[str], cancelled: Callable[[], bool], slot: int = 0
    ) -> Chunk:
        """It likes to say what it heard: each token of an answer that no turn has makes it e times less likely."""
        heard = {token.strip() for turn in request.turns for token in self.tokenize(turn.content)}
        spelt = [self.tokenize(answer) for answer in answers]
        prompt = self.prompt_tokens(request) + self.count_tokens(request.prefix)
        self.info.check_room(prompt, max(map(len, spelt)))
        for _ in spelt:
            if cancelled():
                return Chunk(finish_reason="cancelled")
            if self.stuck is not None:
                self.stuck.wait()
            time.sleep(self.seconds_per_token)
        logs = tuple(-float(sum(token.strip() not in heard for token in tokens)) for tokens in spelt)
        usage, timings = Usage(prompt, sum(map(len, spelt))), Timings(forward_passes=len(spelt))
        return Chunk(finish_reason="stop", usage=usage, timings=timings, odds=(Odds(tuple(answers), logs),))

    def remember(self, text: str, owner: str = "") -> None:
        """Nothing: an echo needs no drafts."""

    def close(self) -> None:
        self.closed = True


def _until(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop, and whether there was one."""
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def load(rung: Rung, settings: Settings, path: Path) -> EchoModel:
    info = ModelInfo("echo", rung.strategy, "echo", settings.context_length, settings.slots, keeps_grammars=False)
    return EchoModel(info)
