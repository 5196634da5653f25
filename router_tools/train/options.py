"""What a training run is told, and the learning rate that follows from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The rate falls to this share of its peak.
_LAST = 0.05
_RECIPE = (
    "base", "adapter", "gguf", "tools", "batch", "accumulate", "rate", "warmup", "rank", "clip", "seed", "validation",
    "longest",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """A run, as the help of the command has it; and what the command does not ask for.

    Attributes:
        adapter: a folder with the adapter that the run begins with, of its own rank; without, one that changes nothing.
        gguf: the kind of GGUF that will be served. The run learns with its weights rounded as that rounds them.
        steps, max_minutes: the run ends after one of them; by then its learning rate is down.
        warmup, clip: steps up to the peak learning rate; the gradient's norm at most.
        validation: rows kept for validation; `glance` of them are used at intervals, all at the end.
        sample_tokens: length of the plan that is written at intervals.
        longest: tokens of prompt and plan; longer rows are left out.
    """

    data: Path
    out: Path
    base: str = "embedded"
    adapter: Path | None = None
    gguf: str | None = None
    tools: tuple[str, ...] = ("/general-search", "/math", "/code")
    steps: int | None = None
    max_minutes: float | None = None
    resume: bool = False
    batch: int = 2
    accumulate: int = 2
    rate: float = 1.5e-3
    warmup: int = 12
    rank: int = 32
    clip: float = 1.0
    seed: int = 0
    validation: int = 54
    glance: int = 8
    every: int = 50
    checkpoint_minutes: float = 10.0
    sample_tokens: int = 160
    longest: int = 2048
    threads: int | None = None

    def recipe(self) -> dict[str, Any]:
        """What two sessions of one run must have in common. Not its end: a run may be given more steps, or fewer."""
        return {key: value for key, value in asdict(self).items() if key in _RECIPE}


def learning_rate(step: int, share: float, options: TrainOptions) -> float:
    """Linear warm-up by steps, then half a cosine over the share of the run that is done."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return options.rate * min(1.0, (step + 1) / options.warmup) * (_LAST + (1 - _LAST) * cosine)
