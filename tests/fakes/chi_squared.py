"""Pearson's chi-squared tests: whether counts come from a distribution, or two counts from the same one."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def fits(counts: Mapping[Key, int], chances: Mapping[Key, float]) -> float:
    """The p-value of `counts` under `chances`. What has no chance at all and was seen makes it 0."""
    total = sum(counts.values())
    if any(count and not chances.get(key) for key, count in counts.items()):
        return 0.0
    cells = _pooled((counts.get(key, 0), chance * total) for key, chance in chances.items() if chance)
    return _survival(sum((seen - due) ** 2 / due for seen, due in cells), len(cells) - 1)


def same(left: Mapping[Key, int], right: Mapping[Key, int]) -> float:
    """The p-value of both counts under one distribution that nobody knows."""
    total = sum(left.values()) + sum(right.values())
    share = sum(left.values()) / total
    cells = _pooled((left.get(key, 0), share * (left.get(key, 0) + right.get(key, 0))) for key in {*left, *right})
    statistic = sum((seen - due) ** 2 / due + (seen - due) ** 2 / (due / share * (1 - share)) for seen, due in cells)
    return _survival(statistic, len(cells) - 1)


def _pooled(cells: Iterable[tuple[int, float]]) -> list[tuple[float, float]]:
    """The cells (seen, expected), those with fewer than ten expected together in one."""
    large, rest = [], (0.0, 0.0)
    for seen, due in cells:
        if due < 10:
            rest = (rest[0] + seen, rest[1] + due)
        else:
            large.append((float(seen), due))
    return [*large, rest] if rest[1] else large


def _survival(statistic: float, freedom: int) -> float:
    """P(X ≥ statistic) of a chi-squared X, by its finite sums (Abramowitz & Stegun 26.4.4 and 26.4.5)."""
    if not freedom:
        return 1.0
    half = statistic / 2
    if freedom % 2 == 0:
        return math.exp(-half) * sum(math.pow(half, k) / math.factorial(k) for k in range(freedom // 2))
    terms = (math.pow(half, k - 0.5) / math.gamma(k + 0.5) for k in range(1, (freedom + 1) // 2))
    return math.erfc(math.sqrt(half)) + math.exp(-half) * sum(terms)
