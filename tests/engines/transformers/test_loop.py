from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer
from numpy.typing import NDArray

from router_backend.engines.transformers.drafts import Drafter, NgramTable
from router_backend.engines.transformers.guide import Guides
from router_backend.engines.transformers.loop import Count, DecodeLoop
from router_backend.engines.transformers.runner import Runner, TorchRunner
from router_backend.engines.transformers.sampler import Sampler
from router_backend.engines.transformers.tokens import Tokens
from router_backend.plan import grammar
from router_backend.types import SamplingParams
from tests.fakes import chi_squared, tiny

pytestmark = pytest.mark.torch
BYTES = LLTokenizer("byte")
GUIDES = Guides(BYTES)
NOBODY = frozenset[int]()
PLAIN_GRAMMAR = 'start: "<" /[abc]{3}/ "|>" /[abc]{2}/'


def never() -> bool:
    return False


class TableRunner:
    """A model whose logits are random and depend on the last two tokens alone.

    It says as much as a real one: rows for the end of the last sequence and for its draft, and for nothing else.
    """

    def __init__(self, *, sharpness: float = 1.0) -> None:
        self._sharpness = sharpness
        self._table: dict[tuple[int, ...], NDArray[np.float32]] = {}
        self._whole: list[int] = []
        self._first = 0
        self.runs: list[tuple[int, int]] = []

    def logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
        recent = tuple(sequence[-2:])
        if recent not in self._table:
            generator = np.random.default_rng([7, *recent])
            self._table[recent] = (self._sharpness * generator.normal(size=BYTES.vocab_size)).astype(np.float32)
        return self._table[recent]

    def row(self, sequence: Sequence[int]) -> NDArray[np.float32] | None:
        if len(sequence) < self._first or self._whole[: len(sequence)] != list(sequence):
            return None
        return self.logits(sequence)

    def cached(self, sequence: Sequence[int]) -> int:
        return 0

    def run(self, sequence: Sequence[int], draft: Sequence[int], cancelled: Callable[[], bool]) -> int:
        self._whole, self._first = [*sequence, *draft], len(sequence)
        self.runs.append((len(sequence), len(draft)))
        return 1

    def turn_to(self, owner: str) -> None:
        """Nothing: it keeps no caches."""

    def forget(self) -> None:
        self._whole = []


class BiasedRunner(TableRunner):
    """What must not be: the draft makes its own tokens likelier."""

    def row(self, sequence: Sequence[int]) -> NDArray[np.float32] | None:
        row = super().row(sequence)
        if row is not None and len(sequence) < len(self._whole):
            row = row.copy()
            row[self._whole[len(sequence)]] += 1.0
        return row


def history(*answers: str) -> NgramTable:
    table = NgramTable(12)
    for answer in answers:
        table.learn(list(answer.encode()))
    return table


def decode(
    runner: Runner,
    *,
    drafter: Drafter | None = None,
    forcing: bool = True,
    prompt: Sequence[int] = tuple(b"ab"),
    rules: str | None = PLAIN_GRAMMAR,
    sampler: Sampler | None = None,
    limit: int = 40,
    ends: frozenset[int] = NOBODY,
    cancelled: Callable[[], bool] = never,
) -> tuple[list[int], Count]:
    loop = DecodeLoop(runner, drafter, draft_tokens=8, forcing=forcing)
    count = Count()
    guide = None if rules is None else GUIDES.begin(rules)
    said = list(loop.decode(prompt, guide, sampler or Sampler(0, 1, 0), limit, ends, cancelled, count))
    assert count.tokens == len(said) <= limit
    assert count.forced + count.accepted <= count.tokens
    return said, count


# The same tokens

PARTS: dict[str, Callable[[], Drafter | None]] = {
    "no drafts": lambda: None,
    "lookup": lambda: Drafter(None),
    "history": lambda: Drafter(history("<abc|>ab", "<bca|>ca", "<<<", "xyzxyz"), lookup=False),
    "both": lambda: Drafter(history("<aaa|>bb", "<cba|>ac", "zz")),
}


@pytest.mark.parametrize("drafter", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("forcing", [True, False], ids=["forced", "asked"])
def test_greedy_tokens_are_the_same_with_every_part_on_or_off(
    drafter: Callable[[], Drafter | None], forcing: bool
) -> None:
    for start in range(40):
        prompt = list(f"<abc|>ab {start} ".encode())
        plain, alone = decode(TableRunner(), forcing=False, prompt=prompt)
        said, count = decode(TableRunner(), drafter=drafter(), forcing=forcing, prompt=prompt)
        assert said == plain
        assert alone.passes == alone.tokens and alone.drafted == alone.forced == 0
        assert count.passes <= alone.passes
        assert count.forced == (3 if forcing else 0)


# As a request's parameters hold them: what a float cannot divide by is 0.
TEMPERATURES = st.floats(0, 2).map(lambda each: SamplingParams(temperature=each).temperature)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("abc<>|z", max_size=12), max_size=4),
    TEMPERATURES,
    st.floats(0.1, 1),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_drafts_change_no_token_at_any_temperature(
    answers: list[str], temperature: float, top_p: float, seed: int, lookup: bool
) -> None:
    """More than the same distribution: the same tokens for the same seed."""
    plain, alone = decode(TableRunner(), sampler=Sampler(temperature, top_p, seed))
    drafter = Drafter(history(*answers), lookup=lookup)
    said, count = decode(TableRunner(), drafter=drafter, sampler=Sampler(temperature, top_p, seed))
    assert said == plain
    assert count.passes + count.accepted == alone.passes and count.accepted <= count.drafted


@pytest.mark.parametrize("name", tiny.NAMES)
def test_greedy_tokens_are_the_same_on_real_architectures(name: str) -> None:
    """Past Gemma's window, in a JSON string, with a history that is right, wrong, and right for a while."""
    model, made = tiny.model(name), tiny.tokenizer(name)
    tokens = Tokens(made, [], vocabulary=model.config.get_text_config().vocab_size)
    guides = Guides(tokens.grammar, tokens.vocabulary)
    rules = 'start: "\\"tags\\": [\\"" TEXT "\\"], \\"todo_list\\": [\\"" TEXT "\\"]"\nTEXT: /[a-zA-Z .,]{1,40}/'

    def answer(prompt: list[int], drafter: Drafter | None, forcing: bool) -> tuple[list[int], Count]:
        loop = DecodeLoop(TorchRunner(model, kept_tokens=1000), drafter, forcing=forcing)
        count = Count()
        said = loop.decode(prompt, guides.begin(rules), Sampler(0, 1, 0), 48, tokens.ends, never, count)
        return list(said), count

    table = NgramTable(14)
    for number in range(3):
        prompt = tokens.wrap(f"Prove that {number} is even, then write a function that checks it.")
        plain, alone = answer(prompt, None, forcing=False)
        said, count = answer(prompt, Drafter(table), forcing=True)
        table.learn([*plain[: 30 - number], 9, *plain[31:]])
        again, warm = answer(prompt, Drafter(table), forcing=True)
        assert plain == said == again
        assert count.passes < alone.passes == alone.tokens and 2 * warm.passes < alone.passes
        assert count.forced > 3 and warm.accepted > 5


# The same distribution


SAMPLES = 2000


@cache
def counted(runner: Callable[[], Runner], *, first: int, forcing: bool, drafts: bool) -> Counter[str]:
    """What is said, thousands of times; the history holds a likely answer, an unlikely one and an impossible one."""
    answers = history(*["<bbb|>bb"] * 3, *["<cac|>ab"] * 2, "<zzz|>zz", "|>ca")
    shared_runner, drafter = runner(), Drafter(answers) if drafts else None
    counts: Counter[str] = Counter()
    accepted = 0
    for seed in range(first, first + SAMPLES):
        sampler = Sampler(1.0, 1.0, seed)
        said, count = decode(shared_runner, drafter=drafter, forcing=forcing, sampler=sampler)
        counts[bytes(said).decode()] += 1
        accepted += count.accepted
    assert (accepted > SAMPLES / 2) is drafts, "drafts are right often, where there are any"
    return counts


def exact() -> dict[str, float]:
    """The chance of every answer: each token's softmax over what the grammar allows, multiplied."""
    table, chances = TableRunner(), {}
    for first in product(b"abc", repeat=3):
        for second in product(b"abc", repeat=2):
            text, chance = [*b"<", *first, *b"|>", *second], 1.0
            for place in (1, 2, 3, 6, 7):
                logits = table.logits([*b"ab", *text[:place]])
                weights = {token: float(np.exp(logits[token])) for token in b"abc"}
                chance *= weights[text[place]] / sum(weights.values())
            chances[bytes(text).decode()] = chance
    assert abs(sum(chances.values()) - 1) < 1e-6
    return chances


def test_at_temperature_1_all_parts_together_leave_the_distribution_as_it_is() -> None:
    plain = counted(TableRunner, first=0, forcing=False, drafts=False)
    quick = counted(TableRunner, first=100_000, forcing=True, drafts=True)
    assert chi_squared.fits(plain, exact()) > 0.001
    assert chi_squared.fits(quick, exact()) > 0.001
    assert chi_squared.same(plain, quick) > 0.001
    assert len(plain) > 100 and not plain.keys() - exact().keys()


def test_loop_that_believes_its_drafts_would_be_found_out() -> None:
    """The test above can fail: a draft that makes its own tokens a little likelier is told apart at once."""
    plain = counted(TableRunner, first=0, forcing=False, drafts=False)
    biased = counted(BiasedRunner, first=100_000, forcing=True, drafts=True)
    assert chi_squared.fits(biased, exact()) < 1e-9
    assert chi_squared.same(plain, biased) < 1e-9


# What it costs


def test_forced_tokens_cost_no_pass() -> None:
    said, count = decode(TableRunner(), rules='start: "abcdefgh"')
    assert bytes(said) == b"abcdefgh"
    assert (count.forced, count.passes, count.reason) == (8, 0, "stop")


def test_right_drafts_cost_one_pass_together() -> None:
    first, alone = decode(TableRunner(), rules=None, limit=9)
    assert (alone.passes, alone.accepted) == (9, 0)
    table = NgramTable(12)
    table.learn([*b"ab", *first])
    said, count = decode(TableRunner(), rules=None, limit=9, drafter=Drafter(table))
    assert said == first
    assert (count.passes, count.drafted, count.accepted) == (1, 8, 8)


def test_wrong_drafts_cost_no_more_passes_than_none() -> None:
    answers = history(*(f"{letter}zzzz" for letter in "abc<>|"))
    _, alone = decode(TableRunner())
    _, count = decode(TableRunner(), drafter=Drafter(answers))
    assert count.passes == alone.passes and count.accepted == 0 < count.drafted


def test_draft_goes_on_behind_forced_tokens() -> None:
    """A draft that foresaw what is forced as well is used after it."""
    said, alone = decode(TableRunner())
    answers = NgramTable(12)
    answers.learn([*b"ab", *said])
    _, count = decode(TableRunner(), drafter=Drafter(answers))
    assert alone.passes == 5 and count.passes == 1
    assert count.accepted == 4 and count.forced == 3


def test_draft_beyond_a_stages_limit_saves_passes_of_the_next() -> None:
    runner = TableRunner()
    whole, _ = decode(TableRunner(), rules=None, limit=8)
    answers = NgramTable(12)
    answers.learn([*b"ab", *whole])
    first, one = decode(runner, rules=None, limit=3, drafter=Drafter(answers))
    second, two = decode_on(runner, [*b"ab", *first], 5, Drafter(answers))
    assert [*first, *second] == whole
    assert (one.passes, one.accepted) == (1, 2)
    assert (two.passes, two.accepted, two.drafted) == (0, 5, 0)


def decode_on(runner: Runner, prompt: list[int], limit: int, drafter: Drafter | None) -> tuple[list[int], Count]:
    count = Count()
    loop = DecodeLoop(runner, drafter, draft_tokens=8)
    return list(loop.decode(prompt, None, Sampler(0, 1, 0), limit, NOBODY, never, count)), count


def test_row_that_is_asked_for_twice_is_no_accepted_draft() -> None:
    loop, runner = DecodeLoop(TableRunner(), None), Count()
    first = list(loop.decode(b"ab", None, Sampler(0, 1, 0), 1, NOBODY, never, runner))
    count = Count()
    assert list(loop.decode(b"ab", None, Sampler(0, 1, 0), 1, NOBODY, never, count)) == first
    assert (count.passes, count.accepted, count.drafted) == (0, 0, 0)


# How it ends


@pytest.mark.parametrize("limit", range(12))
def test_limit_is_kept_exactly(limit: int) -> None:
    whole, _ = decode(TableRunner())
    assert len(whole) == 8
    for drafter in PARTS.values():
        said, count = decode(TableRunner(), limit=limit, drafter=drafter())
        assert said == whole[:limit]
        assert count.reason == ("length" if limit < 8 else "stop"), "ended with its last token is ended"


def test_end_token_ends_and_is_not_said() -> None:
    whole, _ = decode(TableRunner(), rules=None, limit=12)
    end = whole[7]
    expected = whole[: whole.index(end)]
    said, count = decode(TableRunner(), rules=None, limit=12, ends=frozenset({end, 255}))
    assert said == expected and count.reason == "stop"


def test_nothing_is_said_with_a_limit_of_nothing_or_a_cancel_before() -> None:
    for limit, cancelled, reason in ((0, never, "length"), (5, lambda: True, "cancelled")):
        runner = TableRunner()
        said, count = decode(runner, limit=limit, cancelled=cancelled)
        assert (said, count.reason, runner.runs) == ([], reason, [])


@pytest.mark.parametrize("passes", [1, 3, 6])
def test_cancel_is_seen_between_two_passes(passes: int) -> None:
    runner = TableRunner()
    said, count = decode(runner, rules=None, cancelled=lambda: len(runner.runs) >= passes)
    assert count.reason == "cancelled"
    assert len(runner.runs) == count.passes == len(said) == passes


def test_closed_iterator_runs_no_further() -> None:
    runner, count = TableRunner(), Count()
    said = DecodeLoop(runner, None).decode(b"ab", None, Sampler(0, 1, 0), 9, NOBODY, never, count)
    assert [next(said), next(said)] and count.passes == 2
    said.close()  # type: ignore[attr-defined]
    assert list(said) == [] and count.passes == 2 == len(runner.runs)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), TEMPERATURES, st.integers(1, 60))
def test_every_answer_keeps_the_grammar(seed: int, temperature: float, limit: int) -> None:
    """A plan's text, written letter by letter by a model that says anything."""
    chosen = random.Random(seed)
    drafter = Drafter(history("".join(chosen.choice('ab "\\n') for _ in range(60))))
    rules = grammar.text(leads=(" ",), banned=["/math"])
    sampler = Sampler(temperature, 1.0, seed)
    said, _ = decode(TableRunner(sharpness=3), drafter=drafter, rules=rules, sampler=sampler, limit=limit)
    guide = GUIDES.begin(rules)
    guide.advance(said)
