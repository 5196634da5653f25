"""llguidance grammars (Lark) for the values of a client's schema, and what they accept.

A regular expression of the client's runs in llguidance alone, whose engine takes linear time; what it may cost is
bounded by its length and by the engine's own limits. Look-around and back-references do not exist there.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from llguidance import LLMatcher

from router_backend.schema.nodes import OR, Number
from router_backend.writing.grammar import CHARACTER, END, but, literals, matcher_of, takes, untaken

LONGEST_PATTERN, LONGEST_MATCH = 256, 256
NOT = "\0"
# Repetitions that a grammar counts; of longer texts the limit in tokens and the last check take care.
COUNTED = 512
_DIGITS = 15
_END_OF_NUMBER = r"END: /[,\]} ]|}}|\]}|},|\],/"
_PLAIN = r"[ !#-\[\]-~]"
# A label has 63 characters at most, an address's local part 64.
_HOST = r"[a-z0-9]{1,20}(-[a-z0-9]{1,20}){0,2}(\.[a-z0-9]{1,20}(-[a-z0-9]{1,20}){0,2}){0,2}"
FORMATS = {
    "date": r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-](0[0-9]|1[0-2]):[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "email": rf"[a-z0-9]{{1,20}}([._-][a-z0-9]{{1,20}}){{0,2}}@{_HOST}\.[a-z]{{2,12}}",
    "hostname": _HOST,
    "ipv4": r"((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])",
    "uri": rf"https?://{_HOST}(/[A-Za-z0-9._~-]+)*/?",
    "duration": r"P(([0-9]{1,4}D)|([0-9]{1,4}D)?T[0-9]{1,4}H([0-9]{1,4}M)?([0-9]{1,4}S)?|[0-9]{1,4}W)",
}
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"
# What a pattern beside the format may want, where it wants none of those: zod's `iso.time` has no offset, and so on.
WIDER = {
    "date": r"[0-9]{4}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?(Z|[+-](0[0-9]|1[0-2]):[0-5][0-9])?",
    "uuid": r"[0-9A-Fa-f]{8}-([0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}",
    "email": r"[A-Za-z0-9]+([._%+-][A-Za-z0-9]+)*@[A-Za-z0-9]+([.-][A-Za-z0-9]+)*\.[A-Za-z]{2,12}",
    "uri": r"[a-z][a-z0-9+.-]{0,20}:[!#-;=?-\[\]_a-z~]+",
}
WIDER["date-time"] = f"{WIDER['date']}T{WIDER['time']}"


def text(least: int, most: int | None, taken: Sequence[str] = ()) -> str:
    """A string's characters up to and with its closing quote; none of the `taken`."""
    counted = most if most is not None and most <= COUNTED else None
    few = min(least, COUNTED)
    times = f"{{{few},{'' if counted is None else counted}}}" if few or counted is not None else "*"
    return f"start: TEXT END\nTEXT: /{CHARACTER}{times}/{but(taken)}\n{END}\n"


def pattern(regex: str, least: int, most: int, taken: Sequence[str] = (), *, ends: bool = True) -> str:
    """A string of `least` to `most` plain characters that keeps each line of `regex`. Nothing in it needs an escape.

    A line that `NOT` begins is not kept. `OR` stands between such expressions of which one is kept.

    Dead ends are not entered, so whatever is written can be closed within `most` characters.
    """
    ways = []
    for way in regex.split(OR):
        lines = way.splitlines() or [""]
        each = " & ".join(f"{'~' * line.startswith(NOT)}/{_slashed(line.removeprefix(NOT))}/" for line in lines)
        ways.append(f"({each})" if OR in regex else each)
    kept = f"({' | '.join(ways)})" if len(ways) > 1 else ways[0]
    body = f"TEXT: {kept} & /{_PLAIN}{{{least},{most}}}/{but(taken)}\n"
    return f"start: TEXT END\n{body}{END}\n" if ends else f"start: TEXT\n{body}"


def key(taken: Sequence[str]) -> str:
    """The name of a free field that is not taken yet, up to and with its closing quote."""
    return untaken("TEXT", "[A-Za-z_][A-Za-z0-9_ -]*", taken)


def number(node: Number, taken: Sequence[str] = ()) -> str:
    """A number, and what shows that it has ended; none of the `taken`, as far as a grammar can say it."""
    known = node.keywords()
    if known.keys() == {"type"}:
        fraction = "" if node.integer else r"(\.[0-9]{1,6})?"
        body = f"/-?(0|[1-9][0-9]{{0,{_DIGITS - 1}}}){fraction}/{but(taken)}"
        return f"start: NUMBER END\nNUMBER: {body}\n{_END_OF_NUMBER}\n"
    if node.minimum is None and node.above is None:
        known["minimum"] = 1 - 10**_DIGITS
    if node.maximum is None and node.below is None:
        known["maximum"] = 10**_DIGITS - 1
    return f"start: number END\nnumber: %json {json.dumps(known)}\n{_END_OF_NUMBER}\n"


# Checkpoints know tokens of a quote or bracket and the character after it.
_OPENINGS = {'"': r'"[^"\\…\x00-\x1f\x7f-\x9f]?', "[": r'\[["\[{\]]?', "{": r'\{["}]?'}


def beginning(lead: str, options: Sequence[str], *, digit: bool) -> str:
    """The beginning of a value, after the blank or none: one of the options or a digit."""
    blanks, blank = dict.fromkeys((lead, "")), f"{lead}?" if lead else ""
    exact = [blank + option for blank in blanks for option in options if option not in _OPENINGS]
    ways = [f"/{blank}{_OPENINGS[option]}/" for option in options if option in _OPENINGS]
    ways += [literals(exact)] if exact else []
    ways += [f"/{blank}-?[0-9]/"] if digit else []
    return f"start: CHOICE\nCHOICE: {' | '.join(ways)}\n"


@lru_cache(maxsize=256)
def shortest(regex: str, least: int, owner: str = "", taken: tuple[str, ...] = ()) -> str | None:
    """A shortest string that keeps a pattern and is not `taken`, None where none of `LONGEST_MATCH` characters is.

    The last few are remembered, for each owner apart.

    Raises ValueError, in the compiler's words, where it is no regular expression, or is too costly to keep.
    """

    def within(most: int) -> str:
        return pattern(regex, least, most, taken, ends=False)

    problem = LLMatcher.validate_grammar(within(LONGEST_MATCH))
    if problem and not problem.startswith("WARNING"):
        lines = problem.splitlines()
        raise ValueError(next((line[7:] for line in lines if line.startswith("error: ")), lines[0]))
    if _witness(within(LONGEST_MATCH)) is None:
        return None
    shorter = bisect_left(range(least, LONGEST_MATCH), True, key=lambda most: _begin(within(most)) is not None)
    return _witness(within(least + shorter))


def keeps(regex: str, least: int, most: int, text: str) -> bool:
    """Whether a text is what `pattern` asks for."""
    matcher = matcher_of(pattern(regex, least, most, ends=False))
    return takes(matcher, text) and matcher.is_accepting()


def begins(grammar: str) -> bool:
    """Whether there is anything that a grammar accepts, and that can be found."""
    return _begin(grammar) is not None


def _begin(grammar: str) -> LLMatcher | None:
    """A matcher at the start; None where the grammar accepts nothing."""
    matcher = matcher_of(grammar)
    return None if not _allowed(matcher) and not matcher.is_accepting() else matcher


def _witness(grammar: str) -> str | None:
    """A string that the grammar accepts, or None. Raises ValueError where it is too costly to find."""
    matcher = _begin(grammar)
    if matcher is None:
        return None
    said = bytearray()
    while not matcher.is_accepting():
        allowed = _allowed(matcher)
        if not allowed or len(said) > LONGEST_MATCH:
            raise ValueError("it is too costly to keep")
        matcher.consume_token(allowed[0])
        said.append(allowed[0])
    return said.decode()


def _allowed(matcher: LLMatcher) -> list[int]:
    """The bytes that may come next."""
    bits = int.from_bytes(matcher.compute_bitmask()[:32], "little")
    return [] if matcher.is_error() else [byte for byte in range(256) if bits >> byte & 1]


def _slashed(regex: str) -> str:
    """With its slashes escaped, as Lark wants them."""
    return re.sub(r"\\.|/", lambda found: "\\/" if found[0] == "/" else found[0], regex, flags=re.DOTALL)
