"""Calibration: the temperature at which a checkpoint's odds of a plan's tools come true as often as they say.

It is kept beside the checkpoint: `router_calibration.json` in a folder, `NAME.calibration.json` for `NAME.gguf`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from router_backend.types import Odds

# What a checkpoint makes of some options, and the one that was right.
Right: TypeAlias = tuple[Odds, str]
# What a temperature may be. Odds that are right about everything, or about nothing, have none.
LOWEST, HIGHEST = 0.05, 20.0
_STEPS = 60
_log = logging.getLogger(__name__)


def place(checkpoint: Path) -> Path:
    """Where the calibration of a checkpoint is, a folder or a file."""
    return (
        checkpoint / "router_calibration.json" if checkpoint.is_dir() else checkpoint.with_suffix(".calibration.json")
    )


def temperature_of(checkpoint: Path) -> float:
    """A checkpoint's temperature; 1 where it was not calibrated, or its file is not understood (with a warning)."""
    path = place(checkpoint)
    try:
        found = json.loads(path.read_bytes())["temperature"]
        if isinstance(found, int | float) and LOWEST <= found <= HIGHEST:
            return float(found)
        trouble = f"temperature is {found!r}, and must be from {LOWEST} to {HIGHEST}"
    except FileNotFoundError:
        return 1.0
    except (OSError, ValueError, KeyError, TypeError) as error:
        trouble = f"it cannot be read ({type(error).__name__})"
    _log.warning("%s: %s; probabilities are left as they are", path, trouble)
    return 1.0


def fit(rows: Sequence[Right]) -> float:
    """The temperature at which the options that were right are likeliest, of odds with the option that was right.

    The mean of their negative logarithms is convex in 1/temperature, so that thirds find the least.
    """
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(_STEPS):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if surprise(at(rows, 1 / left)) <= surprise(at(rows, 1 / right)) else (left, high)
    return 2 / (low + high)


def at(rows: Iterable[Right], temperature: float) -> list[Right]:
    """The same rows at another temperature."""
    return [(replace(odds, temperature=temperature), right) for odds, right in rows]


def surprise(rows: Sequence[Right]) -> float:
    """The mean of -log p of the option that was right, in nats."""
    return math.fsum(-math.log(max(odds.of(right), 1e-300)) for odds, right in rows) / len(rows)
