from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from router_backend.engines.transformers.sampler import Sampler
from router_backend.errors import EngineError
from router_backend.types import SamplingParams
from tests.fakes import chi_squared

ROW = np.log(np.array([0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.04, 0.03, 0.02, 0.01, 0.0099, 0.0001], np.float32)) + 3
ALL = np.ones(len(ROW), np.bool_)
MASK = np.array([0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1], np.bool_)
LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=24)


def chances(row: NDArray[np.float32], temperature: float, top_p: float, allowed: NDArray[np.bool_]) -> dict[int, float]:
    """The distribution by the book: softmax, then the fewest tokens that reach top_p, most likely first."""
    best = max(float(logit) for logit, may in zip(row, allowed, strict=True) if may)
    weights = {
        token: math.exp((float(logit) - best) / temperature)
        for token, (logit, may) in enumerate(zip(row, allowed, strict=True))
        if may
    }
    total, reached, nucleus = sum(weights.values()), 0.0, {}
    for token in sorted(weights, key=lambda token: -weights[token]):
        nucleus[token] = weights[token]
        reached += weights[token]
        if reached >= top_p * total:
            break
    return {token: weight / reached for token, weight in nucleus.items()}


@pytest.mark.parametrize("allowed", [ALL, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_draws_are_distributed_by_the_book(temperature: float, top_p: float, allowed: NDArray[np.bool_]) -> None:
    sampler = Sampler(temperature, top_p, seed=1)
    counts = Counter(sampler.draw(ROW, allowed) for _ in range(8000))
    assert chi_squared.fits(counts, chances(ROW, temperature, top_p, allowed)) > 0.001


def test_other_temperature_or_nucleus_would_be_told_apart() -> None:
    sampler = Sampler(1.0, 0.9, seed=1)
    counts = Counter(sampler.draw(ROW, ALL) for _ in range(8000))
    assert chi_squared.fits(counts, chances(ROW, 1.2, 0.9, ALL)) < 1e-6
    assert chi_squared.fits(counts, chances(ROW, 1.0, 1.0, ALL)) < 1e-6
    assert chi_squared.fits(counts, chances(ROW, 1.0, 0.8, ALL)) < 1e-6


@settings(max_examples=150, deadline=None)
@given(LOGITS, st.floats(0.05, 2), st.floats(0.01, 1), st.integers(0, 2**32 - 1), st.data())
def test_only_what_the_nucleus_holds_is_drawn(
    logits: list[float], temperature: float, top_p: float, seed: int, data: st.DataObject
) -> None:
    row = np.array(logits, np.float32)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)).filter(any)), np.bool_)
    sampler = Sampler(temperature, top_p, seed)
    drawn = {sampler.draw(row, allowed) for _ in range(8)}
    nucleus = chances(row, temperature, min(1.0, top_p + 1e-5), allowed)
    least = min(row[token] for token in nucleus) - 1e-5  # tokens that are equal in float32 may change places
    assert all(allowed[token] and row[token] >= least for token in drawn)


def test_nucleus_is_exact_at_its_edge() -> None:
    row = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    for top_p, size in ((0.4, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.88, 4), (1.0, 4)):
        sampler = Sampler(1.0, top_p, seed=3)
        assert {sampler.draw(row, None) for _ in range(400)} == set(range(size)), top_p


def test_rare_tokens_are_drawn_where_the_nucleus_needs_them() -> None:
    """One likely token and very many rare ones, as in a real vocabulary."""
    row = np.concatenate([[0.0], np.full(50_000, math.log(1 / 50_000))]).astype(np.float32)
    sampler = Sampler(1.0, 0.95, seed=5)
    drawn = [sampler.draw(row, None) for _ in range(300)]
    likely = drawn.count(0) / len(drawn)
    assert abs(likely - 0.5 / 0.95) < 0.1
    assert len(set(drawn)) > 100


@settings(max_examples=100, deadline=None)
@given(LOGITS, st.data())
def test_temperature_0_is_the_best_allowed_token(logits: list[float], data: st.DataObject) -> None:
    row = np.array(logits, np.float32)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)).filter(any)), np.bool_)
    best = Sampler(0, 0.9, seed=data.draw(st.integers(0, 9))).draw(row, allowed)
    assert allowed[best] and row[best] == row[allowed].max()
    assert Sampler(0, 0.9, seed=1).draw(row, None) == int(row.argmax())


def test_same_seed_draws_the_same_and_another_does_not() -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(1.0, 1.0, seed)
        return [sampler.draw(ROW, ALL) for _ in range(60)]

    assert draws(7) == draws(7)
    assert all(left != right for left, right in pairwise(draws(seed) for seed in range(5)))


def test_draw_depends_on_its_own_row_and_its_place_alone() -> None:
    """What makes drafts harmless: each draw takes one number, however likely its token was."""
    plain, other = Sampler(0.8, 0.9, seed=4), Sampler(0.8, 0.9, seed=4)
    sharp = np.where(np.arange(len(ROW)) == 3, np.float32(60), ROW)
    for index in range(40):
        plain.draw(ROW, ALL)
        other.draw(sharp if index % 2 else ROW[::-1].copy(), MASK)
    assert [plain.draw(ROW, ALL) for _ in range(20)] == [other.draw(ROW, ALL) for _ in range(20)]


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-9, 1e-3, 0.2, 2.0])
def test_one_allowed_token_is_drawn_at_every_temperature(temperature: float) -> None:
    only = np.zeros(len(ROW), np.bool_)
    only[11] = True
    drawn = SamplingParams(temperature=temperature)
    assert Sampler(drawn.temperature, drawn.top_p, seed=1).draw(ROW, only) == 11


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-7, 1e-4, 0.01])
def test_very_small_temperature_draws_the_best(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature).temperature, 1.0, seed=2)
    assert {sampler.draw(ROW * 30, ALL) for _ in range(50)} == {0}


@pytest.mark.parametrize(
    "extremes", [(65504.0, -65504.0), (3.0e38, -3.0e38), (0.0, -3.0e38)], ids=["float16", "float32", "masked by others"]
)
@pytest.mark.parametrize("temperature", [0, 1e-5, 0.2, 1.0])
def test_extreme_logits_are_no_trouble(extremes: tuple[float, float], temperature: float) -> None:
    high, low = extremes
    row = np.array([low, high, low, high, low], np.float32)
    sampler = Sampler(temperature, 0.9, seed=2)
    drawn = {sampler.draw(row, None) for _ in range(60)}
    assert drawn == ({1} if temperature == 0 else {1, 3})
    assert sampler.draw(row, np.array([1, 0, 0, 0, 1], np.bool_)) in (0, 4)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_logits_that_are_no_numbers_are_an_error_and_no_token(broken: float, temperature: float) -> None:
    row = ROW.copy()
    row[4] = broken
    with pytest.raises(EngineError, match="not finite"):
        Sampler(temperature, 0.9, seed=1).draw(row, ALL)
    assert Sampler(temperature, 0.9, seed=1).draw(row, MASK) in np.flatnonzero(MASK), "it is masked"
    with pytest.raises(EngineError, match="not finite"):
        Sampler(temperature, 0.9, seed=1).draw(np.full(12, -np.inf, np.float32), None)
