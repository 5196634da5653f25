"""The two forms of an answer: of a chat, and of a completion. Each writes a whole choice and a piece of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from router_backend.types import TokenLogprob

Json = dict[str, Any]


@dataclass
class Called:
    """A call of a tool, or a piece of one: only its first piece has an id and a name."""

    index: int
    arguments: str = ""
    name: str | None = None
    id: str | None = None


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    text: str = ""
    calls: list[Called] = field(default_factory=list)
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: str | None = None

    def add(self, new: Choice) -> None:
        """What is new of it."""
        self.text += new.text
        for call in new.calls:
            if call.name is not None:
                self.calls.append(call)
            else:
                self.calls[-1].arguments += call.arguments
        self.logprobs = None if self.logprobs is None else (*self.logprobs, *(new.logprobs or ()))
        self.finish_reason = new.finish_reason


class ChatForm:
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, *, functions: bool = False) -> None:
        """`functions`: a call is written as older clients read it."""
        self._functions = functions
        self._calling = set[int]()

    def whole(self, choice: Choice) -> Json:
        content = None if choice.calls and not choice.text else choice.text
        message = {"role": "assistant", "content": content, "refusal": None, **self._calls(choice, pieces=False)}
        return self._choice(choice, "message", message)

    def piece(self, choice: Choice, *, first: bool) -> Json:
        """`choice` holds what is new; `first`: nothing of it was sent before."""
        delta: Json = {"role": "assistant"} if first else {}
        if choice.text or first:
            delta["content"] = None if choice.calls else choice.text
        return self._choice(choice, "delta", delta | self._calls(choice, pieces=True))

    def _choice(self, choice: Choice, name: str, said: Json) -> Json:
        self._calling |= {choice.index} if choice.calls else set()
        ends = choice.finish_reason
        if ends == "stop" and choice.index in self._calling:
            ends = "function_call" if self._functions else "tool_calls"
        return {"index": choice.index, name: said, "logprobs": self._logprobs(choice.logprobs), "finish_reason": ends}

    def _calls(self, choice: Choice, *, pieces: bool) -> Json:
        if not choice.calls:
            return {}
        said: list[Json] = []
        for call in choice.calls:
            named = {} if call.name is None else {"name": call.name}
            function = {**named, "arguments": call.arguments}
            if self._functions:
                return {"function_call": function}
            head = {} if call.id is None else {"id": call.id, "type": "function"}
            said.append({**({"index": call.index} if pieces else {}), **head, "function": function})
        return {"tool_calls": said}

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


Form: TypeAlias = ChatForm | CompletionForm


def _one(token: TokenLogprob) -> Json:
    return {"token": token.token, "bytes": list(token.bytes), "logprob": token.logprob}
