"""The two forms of an answer: of a chat, and of a completion. Each writes a whole choice and a piece of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from router_backend.types import FinishReason, TokenLogprob

Json = dict[str, Any]


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None


class Form(Protocol):
    kind: str
    chunk_kind: str
    prefix: str

    def whole(self, choice: Choice) -> Json: ...

    def piece(self, choice: Choice, *, first: bool) -> Json:
        """`choice` holds what is new; `first`: nothing of it was sent before."""
        ...


class ChatForm:
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def whole(self, choice: Choice) -> Json:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }

    def piece(self, choice: Choice, *, first: bool) -> Json:
        delta = {"role": "assistant"} if first else {}
        if choice.text or first:
            delta["content"] = choice.text
        return {
            "index": choice.index,
            "delta": delta,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }

    def _logprobs(self, tokens: Sequence[TokenLogprob] | None) -> Json | None:
        if tokens is None:
            return None
        return {
            "content": [_one(each) | {"top_logprobs": list(map(_one, each.top))} for each in tokens],
            "refusal": None,
        }


class CompletionForm:
    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self) -> None:
        self._offsets: dict[int, int] = {}

    def whole(self, choice: Choice) -> Json:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish_reason,
        }

    def piece(self, choice: Choice, *, first: bool) -> Json:
        return self.whole(choice)

    def _logprobs(self, choice: Choice) -> Json | None:
        """In lists side by side; a token's place counts the characters before it."""
        if choice.logprobs is None:
            return None
        places = []
        for each in choice.logprobs:
            places.append(self._offsets.get(choice.index, 0))
            self._offsets[choice.index] = places[-1] + len(each.token)
        return {
            "tokens": [each.token for each in choice.logprobs],
            "token_logprobs": [each.logprob for each in choice.logprobs],
            "top_logprobs": [{top.token: top.logprob for top in each.top} for each in choice.logprobs],
            "text_offset": places,
        }


def _one(token: TokenLogprob) -> Json:
    return {"token": token.token, "bytes": list(token.bytes), "logprob": token.logprob}
