"""Pieces of llguidance grammars (Lark) that plans and JSON share: a string's characters, its end, a choice.

A text's end may be written as any of the tokens that a checkpoint knows for it (`",`, `"],`, `"}`, …): forbidding the
common ones would push a tuned checkpoint off its own distribution. What follows the quote is read as a wish, no more.
Source of the syntax: the llguidance documentation; a text's limit is the call's own token limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache

from llguidance import LLMatcher, LLTokenizer

# No control characters, no surrogates (UTF-8 cannot hold them); the only escapes are those of json.dumps. No ellipsis:
# it marks a clipped text, and a checkpoint would copy it from one text of its answer into the next.
CHARACTER = r'([^"\\…\x00-\x1f\x7f-\x9f]|\\["\\])'
END = r'END: /"([,\]}]|\],|\]}|\]}}|}}|\]},)?/'


# What our grammars are written with: /regex/, "text", NAME, marks, and what is intersected.
_PIECE = re.compile(r'\s*(?:/((?:[^/\\]|\\.)+)/|"((?:[^"\\]|\\.)*)"|([A-Za-z_]+)|([()|?*+])|(& ~)|(\S))')


def choice(options: Sequence[str]) -> str:
    """Exactly one of the options."""
    return f"start: CHOICE\nCHOICE: {literals(options)}\n"


def untaken(name: str, pattern: str, taken: Sequence[str]) -> str:
    """What keeps a pattern and is none of the words that are taken, up to and with its closing quote."""
    return f"start: {name} END\n{name}: /{pattern}/{but(taken)}\n{END}\n"


def but(taken: Sequence[str]) -> str:
    """What takes words away from the expression before it."""
    return f" & ~/({'|'.join(map(escaped, taken))})/" if taken else ""


def literals(options: Sequence[str]) -> str:
    """One of some texts, as an expression."""
    return " | ".join(json.dumps(option, ensure_ascii=False) for option in options)


def escaped(word: str) -> str:
    """A regular expression for a text."""
    return re.sub(r"([/.?*+|(){}\[\]^$&~#\"\\-])", r"\\\1", word)


@lru_cache(maxsize=512)
def problem_of(grammar: str, owner: str = "") -> str | None:
    """Why a grammar does not compile, in the compiler's words. The last few are remembered, for each owner apart."""
    problem = LLMatcher.validate_grammar(grammar)
    return problem.splitlines()[0] if problem and not problem.startswith("WARNING") else None


def allows(grammar: str, text: str) -> bool:
    """Whether a grammar allows a text, or one that begins so."""
    return takes(matcher_of(grammar), text)


def matcher_of(grammar: str) -> LLMatcher:
    """A matcher at the start, whose tokens are bytes."""
    return LLMatcher(_bytes(), grammar, log_level=0)


def takes(matcher: LLMatcher, text: str) -> bool:
    """Whether a matcher takes all of a text, which it is behind then."""
    said = list(text.encode())
    return matcher.try_consume_tokens(said) == len(said)


@lru_cache(maxsize=512)
def as_regex(grammar: str, owner: str = "") -> str | None:
    """A regular expression for a grammar, without what it takes away (`& ~`); None where there is none."""
    rules = dict(line.split(": ", 1) for line in grammar.splitlines() if line)

    def read(rule: str) -> str:
        said, skipped = "", False
        for regex, literal, name, mark, without, other in _PIECE.findall(rule):
            if other:
                raise ValueError(other)
            piece = (
                f"({regex})" if regex else read(rules[name]) if name else mark or re.escape(json.loads(f'"{literal}"'))
            )
            said, skipped = said + ("" if skipped or without else piece), bool(without)
        return f"({said})"

    try:
        return read(rules["start"])
    except (ValueError, KeyError):
        return None


@lru_cache(maxsize=1)
def _bytes() -> LLTokenizer:
    """A tokenizer of single bytes."""
    return LLTokenizer("byte")
