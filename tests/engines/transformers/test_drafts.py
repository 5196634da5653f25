from __future__ import annotations

import math
from array import array
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_backend.engines.conversation import shared
from router_backend.engines.transformers.drafts import LONGEST, Drafter, Guess, NgramTable, Pace

TOKENS = st.lists(st.integers(0, 6), max_size=40)
QUICK = settings(max_examples=100, deadline=None)


def learned(*sequences: list[int], bits: int = 12) -> NgramTable:
    table = NgramTable(bits)
    for sequence in sequences:
        table.learn(sequence)
    return table


def test_what_was_seen_is_guessed_by_the_longest_context() -> None:
    table = learned([1, 2, 3, 4, 5, 6, 7])
    assert table.guess([2, 3, 4, 5, 6]) == Guess(7, 5)
    assert table.guess([9, 9, 9, 5, 6]) == Guess(7, 2)
    assert table.guess([6]) == Guess(7, 1)
    assert table.guess([0, 1, 2, 3, 4, 5]) == Guess(6, LONGEST), "more context than is looked at"
    assert table.guess([7]) is None and table.guess([]) is None


def test_longer_context_outvotes_a_frequent_shorter_one() -> None:
    table = learned(*([8, 5, 1] for _ in range(9)), [9, 5, 2])
    assert table.guess([5]) == Guess(1, 1)
    assert table.guess([8, 5]) == Guess(1, 2)
    assert table.guess([9, 5]) == Guess(2, 2)


def test_majority_wins_whatever_came_last() -> None:
    assert learned([5, 1], [5, 1], [5, 1], [5, 2]).guess([5]) == Guess(1, 1)
    assert learned([5, 2], [5, 1], [5, 1], [5, 1]).guess([5]) == Guess(1, 1)


def test_newer_takes_the_place_of_what_lost_its_majority() -> None:
    table = learned([5, 1], [5, 1], [5, 2])
    assert table.guess([5]) == Guess(1, 1)
    table.learn([5, 2])
    assert table.guess([5]) == Guess(2, 1)


def test_votes_are_bounded_so_that_a_change_of_habit_is_learned() -> None:
    table = learned(*([5, 1] for _ in range(2000)))
    for _ in range(255):
        table.learn([5, 2])
    assert table.guess([5]) == Guess(2, 1)


def test_only_what_is_new_is_learned() -> None:
    table = NgramTable(12)
    table.learn([1, 2, 3], start=2)
    assert table.guess([1]) is None
    assert table.guess([1, 2]) == Guess(3, 2)


def test_token_0_and_large_ids_are_tokens_as_others() -> None:
    table = learned([0, 0, 0, 262_207, 0])
    assert table.guess([0, 0, 0]) == Guess(262_207, 3)
    assert table.guess([262_207]) == Guess(0, 1)


def sizes(table: NgramTable) -> list[int]:
    return [len(part) * part.itemsize for part in vars(table).values() if isinstance(part, array)]


@pytest.mark.parametrize("bits", [0, 4, 10])
def test_memory_is_nine_bytes_a_slot_whatever_is_learned(bits: int) -> None:
    table = NgramTable(bits)
    before = sizes(table)
    assert sum(before) == 9 << bits
    table.learn(list(range(5000)))
    assert sizes(table) == before


@QUICK
@given(st.lists(TOKENS, max_size=6), TOKENS, st.integers(0, 12))
def test_guesses_are_tokens_that_were_learned(sequences: list[list[int]], recent: list[int], bits: int) -> None:
    """Also where n-grams meet in a slot: a wrong one then is guessed, but a token it is."""
    guess = learned(*sequences, bits=bits).guess(recent)
    if guess is not None:
        assert guess.token in {token for sequence in sequences for token in sequence[1:]}
        assert 1 <= guess.length <= min(LONGEST, len(recent))


@QUICK
@given(TOKENS, TOKENS)
def test_a_table_learns_the_same_at_once_and_bit_by_bit(first: list[int], rest: list[int]) -> None:
    whole, parts = NgramTable(12), NgramTable(12)
    whole.learn([*first, *rest])
    parts.learn(first)
    parts.learn([*first, *rest], len(first))
    assert vars(whole) == vars(parts)


# Drafter


def test_prompt_is_copied_from() -> None:
    drafter = Drafter(None)
    assert drafter.propose([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3], 5) == [4, 5, 6, 7, 8]


def test_answer_so_far_is_copied_from_as_it_grows() -> None:
    drafter = Drafter(None)
    assert drafter.propose([1, 2, 3], 4) == []
    assert drafter.propose([1, 2, 3, 7, 8, 9, 1, 2], 3) == [3, 7, 8]


def test_history_is_copied_from() -> None:
    drafter = Drafter(learned([1, 2, 3, 4, 5]))
    assert drafter.propose([9, 1, 2], 8) == [3, 4, 5]


def test_history_goes_on_learning() -> None:
    history = NgramTable(12)
    drafter = Drafter(history)
    assert drafter.propose([9, 1, 2], 8) == []
    history.learn([1, 2, 3])
    assert drafter.propose([9, 1, 2], 8) == [3]


def test_longer_context_decides_between_history_and_sequence() -> None:
    history = learned([1, 2, 3, 10])
    assert Drafter(history).propose([8, 3, 20, 1, 2, 3], 1) == [10], "three tokens of history, one of the sequence"
    assert Drafter(history).propose([1, 2, 3, 20, 1, 2, 3], 1) == [20], "of equal ones the sequence's own"


def test_sequence_is_not_looked_into_where_lookup_is_off() -> None:
    assert Drafter(None, lookup=False).propose([1, 2, 3, 1, 2], 3) == []
    assert Drafter(learned([2, 9]), lookup=False).propose([1, 2, 3, 1, 2], 3) == [9]


def test_another_sequence_begins_anew() -> None:
    drafter = Drafter(None)
    assert drafter.propose([1, 2, 3, 4, 1, 2], 1) == [3]
    assert drafter.propose([7, 8, 1, 2], 1) == [], "nothing of the first sequence is left"
    assert drafter.propose([7, 8, 1, 2, 7], 2) == [8, 1]


def test_end_that_is_tokenised_anew_does_no_harm() -> None:
    """A stage's text is tokenised again with the next one's, so the last tokens of the sequence may change."""
    drafter = Drafter(None)
    head = list(range(20, 40))
    drafter.propose([*head, 1, 2], 4)
    assert drafter.propose([*head, 12, 5, 20, 21], 2) == [22, 23]
    assert drafter.propose([*head, 12], 1) == [5]


@QUICK
def rate(pace: Pace, chances: list[float], length: int) -> float:
    """By the definition: the tokens expected of a pass for its time."""
    expected = sum(math.prod(chances[:end]) for end in range(length + 1))
    return expected / (1 + (pace.step + pace.slope * length if length else 0))


@pytest.mark.parametrize(
    ("pace", "chances", "length"),
    [
        (Pace(), [0.2] * 16, 16),  # what costs nothing is always worth a try
        (Pace(step=0.33, slope=0.07), [0.9] * 16, 13),  # 4-bit on a processor
        (Pace(step=0.33, slope=0.07), [0.2, 0.9], 0),
        (Pace(slope=0.02), [0.5] * 16, 4),
        (Pace(step=0.33), [0.2, 0.9, 0.9], 3),  # what is likely later pays for what is not now
        (Pace(slope=1.0), [0.99] * 4, 0),
        (Pace(), [], 0),
    ],
)
def test_draft_is_as_long_as_its_time_is_worth(pace: Pace, chances: list[float], length: int) -> None:
    assert pace.worth(chances) == length


@QUICK
@given(
    st.builds(Pace, st.floats(0, 2), st.floats(0.001, 1)),
    st.lists(st.floats(0.01, 0.99), max_size=16),
)
def test_no_other_length_is_worth_more(pace: Pace, chances: list[float]) -> None:
    best = max(rate(pace, chances, length) for length in range(len(chances) + 1))
    assert rate(pace, chances, pace.worth(chances)) == pytest.approx(best)


def test_draft_is_cut_where_its_guesses_are_not_worth_their_time() -> None:
    history = learned([1, 2, 3, 4, 5, 6, 7])
    assert Drafter(history).propose([2, 3, 4, 5], 16) == [6, 7]
    assert Drafter(history, pace=Pace(slope=0.1)).propose([2, 3, 4, 5], 16) == [6, 7]
    assert Drafter(history, pace=Pace(slope=0.6)).propose([2, 3, 4, 5], 16) == []


@given(st.lists(TOKENS.filter(bool), min_size=1, max_size=5), st.integers(0, 9), st.booleans(), st.booleans())
def test_drafts_are_never_longer_than_asked_and_hold_known_tokens(
    sequences: list[list[int]], length: int, lookup: bool, remembers: bool
) -> None:
    history = learned([3, 4, 5, 6, 3], bits=3) if remembers else None
    drafter = Drafter(history, lookup=lookup)
    known = {3, 4, 5, 6} if remembers else set()
    for sequence in sequences:
        given_sequence = list(sequence)
        draft = drafter.propose(sequence, length)
        known |= set(sequence)
        assert len(draft) <= length
        assert set(draft) <= known
        assert sequence == given_sequence
    if not (lookup or remembers):
        assert draft == []


@QUICK
@given(TOKENS, TOKENS)
def test_shared_is_the_length_of_the_common_prefix(left: list[int], right: list[int]) -> None:
    expected = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))))
    assert shared(left, right) == shared(right, left) == expected
    assert shared([*left, *right], [*left, 9, *right]) == len(left)
    assert shared(left, left) == len(left)


def test_a_copy_of_a_table_learns_by_itself() -> None:
    table = learned([1, 2, 3])
    twin = table.copy()
    twin.learn([2, 9])
    twin.learn([2, 9])
    assert table.guess([1, 2]) == twin.guess([1, 2]) == Guess(3, 2)
    assert table.guess([2]) == Guess(3, 1) and twin.guess([2]) == Guess(9, 1)
