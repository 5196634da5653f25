"""Sampler: draws a token out of a row of logits. The same seed draws the same tokens."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from router_backend.errors import EngineError

# Tokens rarer than this are sorted only where the nucleus needs them.
_RARE = 1e-4


class Sampler:
    """Temperature, then the nucleus (top-p) of Holtzman et al. 2019; temperature 0 is greedy.

    One number is drawn for each token and turned into a token by the inverse of the distribution, so a token depends
    on the seed and on its own row alone, never on how many rows a forward pass gave.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._random = random.Random(seed)  # noqa: S311 - drawing words, not secrets

    def draw(self, row: NDArray[np.float32], allowed: NDArray[np.bool_] | None) -> int:
        """A token id. `row`: logits `(vocabulary,)`; `allowed`: a flag for each token, or None for all.

        Raises EngineError where the logits are no numbers, as where a precision is too narrow for a checkpoint.
        """
        if allowed is not None:
            row = np.where(allowed, row, -np.inf)
        best = int(row.argmax())  # of a row with a NaN, the NaN
        if not np.isfinite(row[best]):
            raise EngineError("the model's logits are not finite: try another MODEL_LOAD_STRATEGY")
        if self._temperature == 0:
            return best
        with np.errstate(over="ignore"):  # to minus infinity, which is a weight of 0
            weights = np.exp((row - row[best]) / self._temperature)
        total = float(weights.sum())
        tokens = np.flatnonzero(weights > _RARE * total)
        if float(weights[tokens].sum()) < self._top_p * total:
            tokens = np.flatnonzero(weights)
        tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
        reached = weights[tokens].cumsum(dtype=np.float64)
        # The token that crosses top_p is kept.
        kept = min(len(tokens), 1 + int(np.searchsorted(reached, self._top_p * total)))
        point = self._random.random() * reached[kept - 1]
        return int(tokens[min(int(np.searchsorted(reached[:kept], point, side="right")), kept - 1)])
