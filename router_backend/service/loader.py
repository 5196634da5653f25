"""Puts the parts together: settings → ladder → engine → service."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from router_backend import engines
from router_backend.checkpoints import ladder, machine
from router_backend.checkpoints.description import Checkpoint, gguf_file
from router_backend.checkpoints.ladder import Attempt, Candidate, Loaded, Rung
from router_backend.checkpoints.machine import Machine
from router_backend.engines.base import Engine
from router_backend.engines.threaded import ThreadedEngine
from router_backend.plan.write import PlanWriter
from router_backend.service.service import GenerationService, Load
from router_backend.settings import Settings, load_settings

if TYPE_CHECKING:
    from router_backend.checkpoints.hub import Hub

T = TypeVar("T")

_log = logging.getLogger(__name__)


# What a reload reads again; all else stays as it was at the start.
_RELOADED = (
    *("model_repo", "model_fallbacks", "model_owner", "model_load_strategy", "model_load_strategies"),
    *("load_in_8bit", "load_in_4bit", "model_device", "engine", "prompt_format", "hf_token", "embedded_fallback"),
)


def build_service(settings: Settings) -> GenerationService:
    """A service that loads the first checkpoint of the ladder that works. Nothing is loaded yet."""

    return GenerationService(settings, _loader(settings), reread=lambda: _loader(reread(settings)))


def reread(settings: Settings) -> Settings:
    """The settings of a reload. Raises SettingsError where what is read by now is wrong."""
    fresh = load_settings()
    return settings.model_copy(update={name: getattr(fresh, name) for name in _RELOADED})


def _loader(settings: Settings) -> Load:
    def load(report: Callable[[Attempt], None]) -> Loaded[Engine]:
        return load_first(settings, begin, logged(report))

    def begin(rung: Rung) -> Engine:
        _log.info(
            "loading %s [%s]", rung.candidate.name, rung.strategy, extra={"reason": rung.needs and str(rung.needs)}
        )
        return load_engine(rung, settings)

    return load


def logged(report: Callable[[Attempt], None]) -> Callable[[Attempt], None]:
    """Tells each attempt to the log too."""

    def note(attempt: Attempt) -> None:
        report(attempt)
        _log.info(
            "%s %s [%s]",
            attempt.outcome,
            attempt.candidate,
            attempt.strategy,
            extra={"reason": attempt.reason, "seconds": attempt.seconds},
        )

    return note


def load_engine(rung: Rung, settings: Settings) -> Engine:
    """One rung's model as the service's engine. Raises as `engines.load` does."""
    model = engines.load(rung, settings)
    return ThreadedEngine(model, PlanWriter(model, settings.tools))


def load_first(
    settings: Settings, load: Callable[[Rung], T], report: Callable[[Attempt], None], here: Machine | None = None
) -> Loaded[T]:
    """Walks the ladder of these settings on this machine, or on the one that is told. Raises NothingLoads."""
    rungs_of = rungs_here(settings, here or machine.inspect(settings.cuda_visible_devices))
    return ladder.first_that_loads(ladder.candidates(settings), rungs_of, load, report=report)


def rungs_here(settings: Settings, here: Machine) -> Callable[[Candidate], tuple[Rung, ...]]:
    """A candidate's rungs on a machine. What one walk learns of a hub is kept for its later candidates."""

    @cache
    def the_hub() -> Hub:
        from router_backend.checkpoints.hub import Hub  # as late as this: what is on this machine needs none

        return Hub(settings)

    def describe(candidate: Candidate) -> Checkpoint | None:
        if candidate.kind in ("embedded", "echo"):
            return None
        if candidate.kind == "gguf":
            return gguf_file(Path(candidate.name))
        return the_hub().describe(candidate)

    return partial(ladder.rungs, settings=settings, machine=here, missing=engines.missing, describe=describe)
