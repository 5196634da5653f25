"""Drafts: what probably comes next, by the n-grams of the prompt, the answer so far and earlier answers.

No second model guesses: the token that mostly followed the last five tokens is proposed, or the last four, and so on
down to one. A forward pass verifies a whole draft at once, so each right token saves a pass. Plans are formulaic, so
many are right. After prompt lookup decoding (Saxena 2023) and retrieval-based speculation (REST, He et al. 2023).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

from router_backend.engines.conversation import shared

LONGEST = 5
_MIX = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: Knuth's multiplicative hash
_64_BITS = (1 << 64) - 1
_MOST_VOTES = 255
# How often a guess is right, by the length of the n-gram that spoke for it (reference plans replayed, a warm history).
_TRUST = (0.0, 0.29, 0.37, 0.40, 0.55, 0.71)
# Slots for the n-grams of one prompt and answer.
_OWN_BITS = 15


class Guess(NamedTuple):
    """A token, and how many tokens before it spoke for it."""

    token: int
    length: int


class NgramTable:
    """Which token mostly follows an n-gram, for n from 1 to `LONGEST`, in a fixed number of slots.

    Each slot holds one successor and its votes (the majority vote of Boyer and Moore 1981); n-grams that meet in a slot
    take it from each other as they are seen. So memory is bounded, what was seen last and most stays, and a lost n-gram
    costs a guess, never an answer.
    """

    def __init__(self, bits: int) -> None:
        """2**bits slots of nine bytes."""
        self._slot_mask = (1 << bits) - 1
        self._tags = array("I", bytes(4 << bits))
        self._tokens = array("i", bytes(4 << bits))
        self._votes = array("B", bytes(1 << bits))

    def copy(self) -> NgramTable:
        twin = copy(self)
        twin._tags, twin._tokens, twin._votes = self._tags[:], self._tokens[:], self._votes[:]
        return twin

    def learn(self, sequence: Sequence[int], start: int = 0) -> None:
        """Takes in which token followed which, from index `start` of the sequence on."""
        for index in range(max(1, start), len(sequence)):
            token, mixed = sequence[index], 0
            for before in range(index - 1, max(-1, index - 1 - LONGEST), -1):
                mixed = ((mixed ^ (sequence[before] + 1)) * _MIX) & _64_BITS
                self._vote(mixed >> 20 & self._slot_mask, mixed >> 32, token)

    def guess(self, recent: Sequence[int]) -> Guess | None:
        """What the longest known n-gram at the end of `recent` speaks for."""
        found, mixed = None, 0
        for length, before in enumerate(reversed(recent[-LONGEST:]), 1):
            mixed = ((mixed ^ (before + 1)) * _MIX) & _64_BITS
            slot = mixed >> 20 & self._slot_mask
            if self._votes[slot] and self._tags[slot] == mixed >> 32:
                found = Guess(self._tokens[slot], length)
        return found

    def _vote(self, slot: int, tag: int, token: int) -> None:
        votes = self._votes[slot]
        if votes and self._tags[slot] == tag and self._tokens[slot] == token:
            self._votes[slot] = min(votes + 1, _MOST_VOTES)
        elif votes > 1:
            self._votes[slot] = votes - 1
        else:
            self._tags[slot], self._tokens[slot], self._votes[slot] = tag, token, 1


@dataclass(frozen=True, slots=True)
class Pace:
    """What a forward pass of several tokens costs beside one of a single token, in passes of a single token.

    Attributes:
        step: what it costs more at once. 4-bit kernels have a fast way for one token.
        slope: what each further token costs.
    """

    step: float = 0.0
    slope: float = 0.0

    def worth(self, chances: Sequence[float]) -> int:
        """How many tokens of a draft to verify, so that the tokens expected for the time of the pass are most.

        `chances`: of each token to be right where those before it were.
        """
        best, length, expected, chance = 1.0, 0, 1.0, 1.0
        for index, each in enumerate(chances, 1):
            chance *= each
            expected += chance
            rate = expected / (1 + self.step + self.slope * index)
            if rate > best:
                best, length = rate, index
        return length


class Drafter:
    """Proposes drafts for one sequence at a time. `history` outlives the sequences."""

    def __init__(self, history: NgramTable | None, *, lookup: bool = True, pace: Pace | None = None) -> None:
        """
        Args:
            history: what earlier answers said.
            lookup: whether to look into the sequence itself, prompt and answer so far.
            pace: what a draft costs; without it only forward passes count, and drafts are as long as they can be.
        """
        self._history = history
        self._pace = pace
        self._own = NgramTable(_OWN_BITS) if lookup else None
        self._learned: list[int] = []

    def propose(self, sequence: Sequence[int], length: int) -> list[int]:
        """At most `length` tokens that may follow."""
        if self._own is not None:
            self._learn(sequence)
        tables = [table for table in (self._own, self._history) if table is not None]
        recent = list(sequence[-LONGEST:])
        draft: list[Guess] = []
        while len(draft) < length:
            guesses = [guess for table in tables if (guess := table.guess(recent)) is not None]
            if not guesses:
                break
            draft.append(max(guesses, key=lambda guess: guess.length))  # of equal ones the sequence's own
            recent = [*recent[1 - LONGEST :], draft[-1].token]
        if self._pace is not None:
            draft = draft[: self._pace.worth([_TRUST[guess.length] for guess in draft])]
        return [guess.token for guess in draft]

    def _learn(self, sequence: Sequence[int]) -> None:
        """Takes in what is new. An answer whose end was tokenised anew leaves wrong guesses there, and no harm."""
        known = shared(self._learned, sequence)
        if known < len(self._learned) // 2:
            self._own, known = NgramTable(_OWN_BITS), 0
        assert self._own is not None
        self._own.learn(sequence, known)
        self._learned[known:] = sequence[known:]
