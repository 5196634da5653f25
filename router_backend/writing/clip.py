"""From what a model wrote to a text that can stand in a plan, and a shorter one where the budget ends."""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence

ELLIPSIS = "…"
REPEATS, GRAM = 3, 8
_QUOTE = re.compile(r'(?<!\\)(?:\\\\)*"')
_SENTENCE_END = re.compile(r"[.!?。！？](?=\s)")
_THINKING = re.compile(r"<think(?:ing)?>.*?(</think(?:ing)?>|$)", re.DOTALL | re.IGNORECASE)


def split_at_quote(raw: str) -> tuple[str, str | None]:
    """The JSON string's body and what follows its closing quote; None where it is not closed."""
    match = _QUOTE.search(raw)
    return (raw, None) if match is None else (raw[: match.end() - 1], raw[match.end() :])


def open_escape(body: str) -> bool:
    """Whether the body ends in half an escape."""
    return (len(body) - len(body.rstrip("\\"))) % 2 == 1


def _without_half(body: str) -> str:
    return body[:-1] if open_escape(body) else body


def decoded(body: str) -> str | None:
    """The text that a JSON string's body stands for, as it was written; None where it is no such body."""
    try:
        return str(json.loads(f'"{_without_half(body)}"', strict=False))
    except ValueError:
        return None


def clean(body: str) -> str:
    """The text that a JSON string's body stands for, safe to keep: no thinking aloud, no control characters."""
    text = decoded(body)
    if text is None:  # an engine that ignored the grammar
        text = _without_half(body).replace('\\"', '"').replace("\\\\", "\\")
    text = _THINKING.sub("", text)
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Cs") else char for char in text)
    return text.rstrip("\ufffd").strip()


def escape(text: str) -> str:
    """The body of the JSON string, in the reference form."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def clip(text: str, fits: Callable[[str], bool], *, ellipsis: str = ELLIPSIS) -> str:
    """The longest beginning of an unfinished text that fits, ended at a sentence or else at a word, with `…`.

    Returns "" where not even one word (of a text without blanks: one character) fits.
    """
    text = text.rstrip()
    sentence = 0
    for match in _SENTENCE_END.finditer(text):
        sentence = match.end()
    # A sentence's end is worth a few words; where nearly half the text would go, the words are worth more.
    if sentence and sentence >= 0.6 * len(text) and fits(shorter := f"{text[:sentence]} {ellipsis}".rstrip()):
        return shorter
    words = text.split()
    ends = [match.start() for match in re.finditer(r"\s+", text)] if len(words) > 1 else [*range(1, len(text))]
    low, high, best = 0, len(ends), ""
    while low < high:  # token counts grow with the text, nearly: the last check makes up for the "nearly"
        middle = (low + high) // 2
        shorter = _tidy(text[: ends[middle]]) + ellipsis
        if shorter == ellipsis:  # nothing but opening marks so far
            low = middle + 1
        elif fits(shorter):
            best, low = shorter, middle + 1
        else:
            high = middle
    return best


def shorten(text: str, fits: Callable[[str], bool]) -> str:
    """As `clip`, and never "" where there is something to say: without the `…`, or the `…` alone."""
    if not text:
        return ""
    return clip(text, fits) or clip(text, fits, ellipsis="") or ELLIPSIS


def cut(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning that fits, to the character."""
    return text[: bisect_left(range(1, len(text) + 1), True, key=lambda length: not fits(text[:length]))]


def _tidy(text: str) -> str:
    """Without the opening or joining punctuation that a cut leaves at the end."""
    return text.rstrip().rstrip(",;:([{-–—\"'/\\").rstrip()


def repeats(pieces: Sequence[str], free_after: int | None = 0) -> int | None:
    """Where to cut runaway repetition: pieces up to the end of an 8-gram's first time, once it is there three times.

    Looks at the newest 8-gram only: call it at every piece. No cut is within the first `free_after` characters; with
    None there is none at all.
    """
    gram = tuple(pieces[-GRAM:])
    if free_after is None or len(gram) < GRAM or not "".join(gram).strip():
        return None
    ends = [end for end in range(GRAM, len(pieces) + 1) if tuple(pieces[end - GRAM : end]) == gram]
    if len(ends) < REPEATS:
        return None
    return next((end for end in ends if sum(map(len, pieces[:end])) >= free_after), None)
