"""Judges an engine by its signs of life, and says how long to wait before the next one is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from router_backend.engines.base import Engine

Cause = Literal["hung", "dead"]
_FAILURES = 3  # one after the other, from different requests
_RESTARTS = 3  # without one answer between them
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


@dataclass(slots=True)
class Watchdog:
    """`timeout` is how many seconds a busy slot may show no sign of life; 0: for ever."""

    timeout: float
    failures: int = 0
    restarts: int = 0

    @property
    def interval(self) -> float:
        return min(1.0, self.timeout / 4) if self.timeout else 1.0

    @property
    def gave_up(self) -> bool:
        """Whether engine after engine was lost: only another process can help now."""
        return self.restarts > _RESTARTS

    def verdict(self, engine: Engine) -> Cause | None:
        if self.timeout and engine.stalled_seconds > self.timeout:
            return "hung"
        return "dead" if self.failures >= _FAILURES else None

    def answered(self) -> None:
        self.failures = self.restarts = 0

    def failed(self) -> None:
        self.failures += 1

    def restarting(self) -> float:
        """Seconds to wait before the engine is loaded anew: at once the first time, then longer and longer."""
        self.failures = 0
        self.restarts += 1
        return 0.0 if self.restarts == 1 else min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self.restarts - 2))
