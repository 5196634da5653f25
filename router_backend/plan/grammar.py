"""llguidance grammars (Lark) for the stages of a plan: one free text, or one choice.

A text's end may be written as any of the tokens that a checkpoint knows for it (`",`, `"],`, `"}`, …): forbidding the
common ones would push a tuned checkpoint off its own distribution. What follows the quote is read as a wish, no more.
Source of the syntax: the llguidance documentation; a text's limit is the call's own token limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

# No control characters, no surrogates (UTF-8 cannot hold them); the only escapes are those of json.dumps. No ellipsis:
# it marks a clipped text, and a checkpoint would copy it from one text of its plan into the next.
_FIRST = r'([^\s"\\…\x00-\x1f\x7f-\x9f]|\\["\\])'
_REST = r'([^"\\…\x00-\x1f\x7f-\x9f]|\\["\\])*'
_END = r'END: /"([,\]}]|\],|\]}|\]}}|}}|\]},)?/'
_TAG = "[a-z0-9]+(-[a-z0-9]+)*"
TAG_WORD = re.compile(r"[a-z0-9]+")


def text(*, leads: Sequence[str] = (), banned: Sequence[str] = (), optional: bool = False, call: bool = False) -> str:
    """A free text of a JSON string up to and with its closing quote.

    Args:
        leads: what it may start with; a blank belongs to the first word's token, so it is not forced before it.
        banned: texts that must not occur in it.
        optional: whether it may be empty.
        call: whether it is a call's argument, which a closing parenthesis would leave empty.
    """
    body = f"/{_FIRST.replace('[^', '[^)') if call else _FIRST}{_REST}/{_without(banned)}"
    said = f"({' | '.join(map(json.dumps, leads))}) TEXT" if leads else "TEXT"
    return f"start: {f'({said})?' if optional else said} END\nTEXT: {body}\n{_END}\n"


def rest(*, banned: Sequence[str] = ()) -> str:
    """What a free text that has begun goes on with, up to and with its closing quote."""
    return f"start: TEXT END\nTEXT: /{_REST}/{_without(banned)}\n{_END}\n"


def tag(taken: Sequence[str]) -> str:
    """A kebab-case tag that is not taken yet, up to and with its closing quote."""
    body = f"/{_TAG}/"
    if taken:
        body += f" & ~/({'|'.join(_escape(word) for word in taken)})/"
    return f"start: TAG END\nTAG: {body}\n{_END}\n"


def choice(options: Sequence[str]) -> str:
    """Exactly one of the options."""
    return f"start: CHOICE\nCHOICE: {' | '.join(json.dumps(option) for option in options)}\n"


def _without(banned: Sequence[str]) -> str:
    words = "|".join(_escape(word) for word in banned)
    return f" & ~/(?s:.*)({words})(?s:.*)/" if banned else ""


def _escape(word: str) -> str:
    return re.sub(r"([/.?*+|(){}\[\]^$&~#\"\\-])", r"\\\1", word)
