"""Loader: from settings to an engine that has answered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from router_backend import engines
from router_backend.checkpoints import ladder, machine
from router_backend.checkpoints.description import Checkpoint, gguf_file
from router_backend.checkpoints.ladder import Attempt, Candidate, Loaded, Rung
from router_backend.checkpoints.machine import Machine
from router_backend.engines import trial
from router_backend.engines.base import Engine, LocalModel
from router_backend.engines.threaded import ThreadedEngine
from router_backend.plan.write import PlanWriter
from router_backend.settings import Settings, load_settings

if TYPE_CHECKING:
    from router_backend.checkpoints.hub import Hub

T = TypeVar("T")

_log = logging.getLogger(__name__)


# What a reload reads again; all else stays as it was at the start.
_RELOADED = (
    *("model_repo", "model_fallbacks", "model_owner", "model_load_strategy", "model_load_strategies"),
    *("load_in_8bit", "load_in_4bit", "model_device", "engine", "prompt_format", "hf_token", "embedded_fallback"),
    *("upstream_api_key", "upstream_timeout", "upstream_budget_line"),
)


class Loader:
    """Loads the first checkpoint of the ladder that works. It owns the settings, and one hub for each walk."""

    def __init__(self, settings: Settings, here: Machine | None = None) -> None:
        """`here`: the machine to load on, where it is another than this one."""
        self.settings = settings
        self._here = here
        self._machine = here
        self._hub: Hub | None = None

    def reread(self) -> Loader:
        """One for what the settings name by now."""
        fresh = load_settings()
        return Loader(
            self.settings.model_copy(update={name: getattr(fresh, name) for name in _RELOADED}), here=self._here
        )

    def load(self, report: Callable[[Attempt], None]) -> Loaded[Engine]:
        """Walks the ladder. Blocks; tells `report` each attempt. Raises NothingLoads."""
        return self.first(self.engine, report)

    def first(self, begin: Callable[[Rung], T], report: Callable[[Attempt], None]) -> Loaded[T]:
        """As `load`, with what `begin` makes of a rung: it raises CandidateError, RungError or anything else."""
        self._machine, self._hub = self._here, None  # memory and networks change from one walk to the next

        def note(attempt: Attempt) -> None:
            report(attempt)
            words = attempt.outcome, attempt.candidate, attempt.strategy
            _log.info("%s %s [%s]", *words, extra={"reason": attempt.reason, "seconds": attempt.seconds})

        return ladder.first_that_loads(ladder.candidates(self.settings), self.rungs, begin, report=note)

    def rungs(self, candidate: Candidate) -> tuple[Rung, ...]:
        """A candidate's rungs on the machine. Raises CandidateError."""
        self._machine = self._machine or machine.inspect(self.settings.cuda_visible_devices)
        return ladder.rungs(candidate, self.settings, self._machine, missing=engines.missing, describe=self._describe)

    def engine(self, rung: Rung) -> Engine:
        """One rung's model as the service's engine, once it has answered. Raises as `model` does."""
        model = self.model(rung)
        trial.passed(model, self.settings.watchdog_timeout)
        return ThreadedEngine(model, PlanWriter(model, self.settings.tools))

    def model(self, rung: Rung) -> LocalModel:
        """Fetches one rung's checkpoint and loads it.

        Raises:
            CandidateError: the checkpoint cannot be had, or its engine is not installed.
            RungError: it does not load in this precision.
        """
        name, needs = rung.candidate.name, rung.needs
        _log.info("loading %s [%s]", name, rung.strategy, extra={"reason": needs and str(needs)})
        return engines.load(rung, self.settings, self.fetched(rung.candidate))

    def fetched(self, candidate: Candidate) -> Path:
        """Where a candidate's file or folder is, once it is there. Raises CandidateError where it cannot be had."""
        if candidate.kind == "embedded":
            from router_backend.checkpoints import embedded  # with the hub's library

            return embedded.checkpoint(fetch=not self.settings.hf_hub_offline)
        on_hub = candidate.kind in ("hub", "folder", "hub-gguf")
        return self._the_hub().fetch(candidate) if on_hub else Path(candidate.name)

    def _describe(self, candidate: Candidate) -> Checkpoint | None:
        if candidate.kind in ("embedded", "echo", "upstream"):
            return None
        return gguf_file(Path(candidate.name)) if candidate.kind == "gguf" else self._the_hub().describe(candidate)

    def _the_hub(self) -> Hub:
        if self._hub is None:
            from router_backend.checkpoints.hub import Hub  # as late as this: what is on this machine needs none

            self._hub = Hub(self.settings)
        return self._hub
