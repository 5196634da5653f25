"""Health: what `/health` says, and the metrics' gauges with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from router_backend.checkpoints.ladder import Attempt
from router_backend.types import LentGpu, ModelInfo

State = Literal["idle", "loading", "ok", "failed", "stopping"]


@dataclass(frozen=True, slots=True)
class Health:
    """`attempts` are the ladder's, in order; `stand_in` is whether the embedded model answers for checkpoints that do
    not load; `alive` is whether this process can still help."""

    status: State
    model: str | None
    strategy: str
    engine: str | None
    reason: str
    attempts: tuple[Attempt, ...]
    phase: str
    elapsed_seconds: float
    running: int
    waiting: int
    info: ModelInfo | None
    smallest_budget: int | None
    gpu: LentGpu | None = None
    stand_in: bool = False
    alive: bool = True
