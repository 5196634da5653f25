"""Puts the parts together: settings → ladder → engine → service."""

from __future__ import annotations

import logging
from collections.abc import Callable

from router_backend import engines, ladder, machine
from router_backend.engines.base import Engine
from router_backend.engines.threaded import ThreadedEngine
from router_backend.ladder import Attempt, Loaded, Rung
from router_backend.plan.write import PlanWriter
from router_backend.service import GenerationService
from router_backend.settings import Settings

_log = logging.getLogger(__name__)


def build_service(settings: Settings) -> GenerationService:
    """A service that loads the first checkpoint of the ladder that works. Nothing is loaded yet."""

    def load(report: Callable[[Attempt], None]) -> Loaded[Engine]:
        def note(attempt: Attempt) -> None:
            report(attempt)
            _log.info(
                "%s %s [%s]",
                attempt.outcome,
                attempt.candidate,
                attempt.strategy,
                extra={"reason": attempt.reason, "seconds": attempt.seconds},
            )

        rungs = list(ladder.rungs(settings, machine.inspect(), engines.missing))
        return ladder.first_that_loads(rungs, begin, report=note)

    def begin(rung: Rung) -> Engine:
        _log.info("loading %s [%s]", rung.candidate.name, rung.strategy)
        return load_engine(rung, settings)

    return GenerationService(settings, load)


def load_engine(rung: Rung, settings: Settings) -> Engine:
    """One rung's model as the service's engine. Raises as `engines.load` does."""
    model = engines.load(rung, settings)
    return ThreadedEngine(model, PlanWriter(model, settings.tools))
