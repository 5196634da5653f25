"""How far probabilities can be trusted: Brier score, calibration error, and the bins of a reliability diagram."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from router_backend.types import Odds

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows whose likeliest option has a probability from `low` to `high`: its mean, and how often it was right."""

    low: float
    high: float
    rows: int
    said: float
    right: float


@dataclass(frozen=True, slots=True)
class Confidence:
    """Of some rows' probabilities.

    Attributes:
        right: share of the rows whose likeliest option was the right one.
        brier: mean over the rows of Σ (p - y)² over the options, y being 1 for the right one; 0 is perfect.
        ece: expected calibration error: |said - right| of a bin, weighed by its rows.
        surprise: mean of -log p of the right option, in nats; an option that was not offered has p = 10⁻⁹.
        bins: those that have rows.
    """

    rows: int
    right: float
    brier: float
    ece: float
    surprise: float
    bins: tuple[Bin, ...]

    @classmethod
    def of(cls, rows: Sequence[tuple[Mapping[str, float], str]]) -> Confidence:
        """Of options' probabilities with the option that was right; at least one row."""
        brier, surprise = 0.0, 0.0
        held: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
        for odds, right in rows:
            likeliest = max(odds, key=odds.__getitem__)
            brier += sum((p - (option == right)) ** 2 for option, p in odds.items()) + (right not in odds)
            surprise -= math.log(max(odds.get(right, 0.0), 1e-9))
            held[min(BINS - 1, int(odds[likeliest] * BINS))].append((odds[likeliest], likeliest == right))
        bins = tuple(
            Bin(at / BINS, (at + 1) / BINS, len(each), *map(fmean, zip(*each, strict=True)))
            for at, each in enumerate(held)
            if each
        )
        count = len(rows)
        ece = sum(each.rows * abs(each.said - each.right) for each in bins) / count
        right_ones = sum(each.rows * each.right for each in bins) / count
        return cls(count, right_ones, brier / count, ece, surprise / count, bins)

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, right {self.right:.3f}, Brier score {self.brier:.3f}, "
            f"expected calibration error {self.ece:.3f}, surprise {self.surprise:.3f}"
        )


def odds_of(odds: Odds) -> dict[str, float]:
    return dict(zip(odds.options, odds.probabilities, strict=True))
