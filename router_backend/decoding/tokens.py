"""Tokens: a checkpoint's tokenizer, its chat template and the tokens that end its answers."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import llguidance.hf
from tokenizers import Tokenizer

from router_backend.errors import CandidateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_REMEMBERED_TEXTS = 512
_SAMPLE = "a plan"


class Tokens:
    """Text to token ids and back. Thread-safe.

    Attributes:
        ends: ids of the tokens that end an answer.
        grammar: the same tokenizer as llguidance reads it.
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
        self._remembered = lru_cache(maxsize=_REMEMBERED_TEXTS)(self._encode)
        self._head, self._tail, self._trims = self._read_template(tokenizer, prompt_format)
        found = (tokenizer.eos_token_id, self._end_of_turn(tokenizer))
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
        return self._remembered(text)

    def count(self, text: str) -> int:
        return len(self._remembered(text))

    def wrap(self, prompt: str) -> list[int]:
        """Ids of the prompt inside the checkpoint's chat template, up to where the answer begins."""
        return [*self._head, *self._remembered(prompt.strip() if self._trims else prompt), *self._tail]

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """UTF-8, whose first and last character may be cut. Special tokens have none."""
        return self.grammar.decode_bytes([token for token in ids if token not in self._mute])

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def _read_template(
        self, tokenizer: PreTrainedTokenizerFast, wanted: str
    ) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """Ids before and after the user's text, and whether the template strips it: it is cut at a random mark."""
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if wanted == "chat" and not has_template:
            raise CandidateError("PROMPT_FORMAT=chat, but the checkpoint has no chat template")
        if wanted == "raw" or not has_template:
            around = self._special.encode("", add_special_tokens=True).ids
            return tuple(token for token in around if token == tokenizer.bos_token_id), (), False
        mark = secrets.token_hex(16)
        head, found, tail = _render(tokenizer, mark).partition(mark)
        if not found:
            raise CandidateError("the checkpoint's chat template leaves the user's text out: try PROMPT_FORMAT=raw")
        trims = _render(tokenizer, f"\n{mark}\n") != f"{head}\n{mark}\n{tail}"
        return self._encode_special(head), self._encode_special(tail), trims

    def _encode_special(self, text: str) -> tuple[int, ...]:
        return tuple(self._special.encode(text, add_special_tokens=False).ids)

    def _end_of_turn(self, tokenizer: PreTrainedTokenizerFast) -> int | None:
        """The special token that the template puts after an answer; not every checkpoint's configuration names it."""
        if not getattr(tokenizer, "chat_template", None):
            return None
        mark = secrets.token_hex(16)
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
        text = cast("str", tokenizer.apply_chat_template(turns, tokenize=False))
        after = self._encode_special(text.rpartition(mark)[2].lstrip())
        return after[0] if after and self._special.get_added_tokens_decoder().get(after[0]) is not None else None


def _render(tokenizer: PreTrainedTokenizerFast, content: str) -> str:
    turns = [{"role": "user", "content": content}]
    # A checkpoint that thinks aloud (Qwen 3) is told not to: a plan has no place for it.
    return cast(
        "str",
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False),
    )
