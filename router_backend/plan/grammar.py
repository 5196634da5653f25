"""Grammars for the stages of a plan: one free text, one tag. A choice is `writing.grammar.choice`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from router_backend.writing.grammar import CHARACTER, END, escaped, literals, untaken

_FIRST = CHARACTER.replace("[^", r"[^\s")
_FIRST_OF_CALL = CHARACTER.replace("[^", r"[^)\s")
_TAG = "[a-z0-9]+(-[a-z0-9]+)*"
TAG_WORD = re.compile(r"[a-z0-9]+")
# Clients cut a plan out of an answer by these before they parse it, so no text of a plan may hold one.
_MARKS = (
    r"```|<\/?[Jj][Ss][Oo][Nn]>|<\/?[Tt][Hh][Ii][Nn][Kk]|<\/?[Rr][Ee][Aa][Ss][Oo][Nn][Ii][Nn][Gg]|<\|[A-Za-z0-9_]*\|>"
)
MARK = re.compile(_MARKS)


def text(
    *, leads: Sequence[str] = (), banned: Sequence[str] = (), optional: bool = False, call: bool = False, least: int = 0
) -> str:
    """A free text of a JSON string up to and with its closing quote.

    Args:
        leads: what it may start with; a blank belongs to the first word's token, so it is not forced before it.
        banned: texts that must not occur in it.
        optional: whether it may be empty.
        least: characters that it must have. Blanks at its end would be none of them.
        call: whether it is a call's argument, which a closing parenthesis would leave empty.
    """
    more = f"{CHARACTER}{{{least - 2},}}{_FIRST}" if least > 1 else f"{CHARACTER}*"
    body = f"/{_FIRST_OF_CALL if call else _FIRST}{more}/{_without(banned)}"
    said = f"({literals(leads)}) TEXT" if leads else "TEXT"
    return f"start: {f'({said})?' if optional else said} END\nTEXT: {body}\n{END}\n"


def rest(*, banned: Sequence[str] = ()) -> str:
    """What a free text that has begun goes on with, up to and with its closing quote."""
    return f"start: TEXT END\nTEXT: /{CHARACTER}*/{_without(banned)}\n{END}\n"


def tag(taken: Sequence[str]) -> str:
    """A kebab-case tag that is not taken yet, up to and with its closing quote."""
    return untaken("TAG", _TAG, taken)


def _without(banned: Sequence[str]) -> str:
    return f" & ~/(?s:.*)({'|'.join([_MARKS, *map(escaped, banned)])})(?s:.*)/"
