"""Pieces of llguidance grammars (Lark) that plans and JSON share: a string's characters, its end, a choice.

A text's end may be written as any of the tokens that a checkpoint knows for it (`",`, `"],`, `"}`, …): forbidding the
common ones would push a tuned checkpoint off its own distribution. What follows the quote is read as a wish, no more.
Source of the syntax: the llguidance documentation; a text's limit is the call's own token limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

# No control characters, no surrogates (UTF-8 cannot hold them); the only escapes are those of json.dumps. No ellipsis:
# it marks a clipped text, and a checkpoint would copy it from one text of its answer into the next.
CHARACTER = r'([^"\\…\x00-\x1f\x7f-\x9f]|\\["\\])'
END = r'END: /"([,\]}]|\],|\]}|\]}}|}}|\]},)?/'


def choice(options: Sequence[str]) -> str:
    """Exactly one of the options."""
    return f"start: CHOICE\nCHOICE: {literals(options)}\n"


def literals(options: Sequence[str]) -> str:
    """One of some texts, as an expression."""
    return " | ".join(json.dumps(option, ensure_ascii=False) for option in options)


def escaped(word: str) -> str:
    """A regular expression for a text."""
    return re.sub(r"([/.?*+|(){}\[\]^$&~#\"\\-])", r"\\\1", word)
