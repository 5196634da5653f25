"""Tokens: a checkpoint's tokenizer, its chat template and the tokens that end its answers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import llguidance.hf
from tokenizers import Tokenizer

from router_backend.engines.conversation import Message, around, refused, through_template, without_template
from router_backend.errors import CandidateError
from router_backend.remembered import Remembered
from router_backend.types import Role, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SAMPLE = "a plan"


class Tokens:
    """Text to token ids and back. Thread-safe.

    Attributes:
        ends: ids of the tokens that end an answer.
        grammar: the same tokenizer as llguidance reads it.
        warnings: about the chat template, and about tokens that the weights do not know.
        vocabulary: width of the model's logits. Most models have more than the tokenizer has tokens, some have fewer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, ends: Iterable[int], *, vocabulary: int, prompt_format: str = "auto"
    ) -> None:
        """
        Raises:
            CandidateError: the tokenizer is empty or none of the fast ones, or a wanted chat template is missing.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise CandidateError("the checkpoint has no fast tokenizer (tokenizer.json)")
        tokenizer, rowless = _within(tokenizer, vocabulary)
        serialized = tokenizer.backend_tokenizer.to_str()
        # Two of them, since whether special tokens in a text are text is a state of the tokenizer.
        self._special = Tokenizer.from_str(serialized)
        self._plain = Tokenizer.from_str(serialized)
        self._plain.encode_special_tokens = True
        for each in (self._special, self._plain):
            each.no_truncation()
            each.no_padding()
        added = self._special.get_added_tokens_decoder()
        specials = (token for token, each in added.items() if each.special)
        self._mute = frozenset({*specials, *range(self._special.get_vocab_size(), vocabulary)})
        self.vocabulary = vocabulary
        self._remembered = Remembered.of_texts(self._encode)
        self._tokenizer = tokenizer
        self._pieces = lru_cache(maxsize=64)(self._read_pieces)
        template = getattr(tokenizer, "chat_template", None)
        self._chat, self.warnings = through_template(prompt_format, template, self._render)
        if rowless:
            few = ", ".join(rowless[:3]) + (" …" if len(rowless) > 3 else "")
            self.warnings.append(f"its tokenizer has tokens for which its weights have no row, read as text: {few}")
        self._trims = self._chat and self._strips()
        found = (tokenizer.eos_token_id, self._end_of_turn() if self._chat else None)
        self.ends = frozenset({*ends, *(token for token in found if token is not None)})
        self.grammar = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=sorted(self.ends)
        )
        if self.bytes_of(self.encode(_SAMPLE)).strip() != _SAMPLE.encode():  # the library makes up empty ones
            raise CandidateError(
                "the checkpoint's tokenizer cannot write plain text: tokenizer.json is missing or broken"
            )

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text; what looks like a special token in it is text too."""
        return self._remembered("", text)

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def wrap(self, prompt: str, history: Sequence[Turn] = (), owner: str = "") -> list[int]:
        """Ids of the prompt, after the conversation before it, inside the checkpoint's chat template.

        The ids of the last few texts are remembered, for each owner apart.

        Raises InvalidRequest where the template does not take such a conversation.
        """
        head, *rest = self._pieces((*(turn.role for turn in history), "user"))
        ids = list(head)
        for text, after in zip((*(turn.content for turn in history), prompt), rest, strict=True):
            ids += self._remembered(owner, text.strip() if self._trims else text)
            ids += after
        return ids

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """UTF-8, whose first and last character may be cut. Special tokens have none."""
        return self.grammar.decode_bytes([token for token in ids if token not in self._mute])

    def _encode(self, owner: str, text: str) -> tuple[int, ...]:
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def _render(self, messages: list[Message], *, answer: bool = True) -> str:
        # A checkpoint that thinks aloud (Qwen 3) is told not to: a plan has no place for it.
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answer, enable_thinking=False
        )
        return cast("str", text)

    def _read_pieces(self, roles: tuple[Role, ...]) -> tuple[tuple[int, ...], ...]:
        """Ids before, between and after the texts of such turns."""
        if not self._chat:
            begin = self._special.encode("", add_special_tokens=True).ids
            head = tuple(token for token in begin if token == self._tokenizer.bos_token_id)
            return (head, *(self._encode_special(piece) for piece in without_template(roles)[1:]))
        try:
            pieces = around(roles, self._render)
        except Exception:  # the template's own refusal, or a mistake in it
            raise refused(roles) from None
        return tuple(self._encode_special(piece) for piece in pieces)

    def _strips(self) -> bool:
        """Whether the template takes the blanks around a text away."""
        wide = "\n{}\n"
        (head, tail) = around(("user",), self._render)
        mark = secrets.token_hex(16)
        return self._render([{"role": "user", "content": wide.format(mark)}]) != head + wide.format(mark) + tail

    def _encode_special(self, text: str) -> tuple[int, ...]:
        return tuple(self._special.encode(text, add_special_tokens=False).ids)

    def _end_of_turn(self) -> int | None:
        """The special token that the template puts after an answer; not every checkpoint's configuration names it."""
        mark = secrets.token_hex(16)
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
        text = self._render(turns, answer=False)
        after = self._encode_special(text.rpartition(mark)[2].lstrip())
        return after[0] if after and self._special.get_added_tokens_decoder().get(after[0]) is not None else None


def _within(tokenizer: PreTrainedTokenizerFast, width: int) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """The tokenizer without the added tokens that no row of the embeddings stands for, and these.

    One in a prompt is an IndexError, and on a GPU the end of the process's context. Raises CandidateError where the
    vocabulary itself has such tokens, which any text may hold.
    """
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    rowless = [each.content for token, each in sorted(added.items()) if token >= width]
    own = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    if any(token >= width and token not in added for token in own.values()):
        raise CandidateError(f"its tokenizer knows {max(own.values()) + 1} tokens, its weights have rows for {width}")
    if rowless:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content["added_tokens"] = [each for each in content["added_tokens"] if each["id"] < width]
        tokenizer = copy(tokenizer)
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    return tokenizer, rowless
