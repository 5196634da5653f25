"""Placing: what the service of a Space loads from, in the one thread where ZeroGPU's stand-in for CUDA is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue

from router_backend.checkpoints import machine
from router_backend.checkpoints.ladder import Attempt, Loaded, NothingLoads, Rung
from router_backend.checkpoints.machine import Accelerator
from router_backend.engines.base import Engine
from router_backend.errors import NotReady
from router_backend.plan.write import PlanWriter
from router_backend.service.host import Load
from router_backend.service.loader import Loader
from router_backend.settings import Settings
from router_backend.space.engine import SpaceEngine, memory_gb

Report = Callable[[Attempt], None]


class Placing:
    """Loads in the main thread, whichever thread asks.

    What runs on the processor can be replaced later. Weights on the GPU stay for as long as the process lives.
    """

    def __init__(self, settings: Settings) -> None:
        """Places the first checkpoint that loads. For the main thread, before the launch packs what is placed.

        Raises:
            NothingLoads: none does, and ALLOW_WARM_START_FAILURE is not set.
        """
        self._loader = loader(settings)
        self._asked: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._on_gpu: Loaded[Engine] | None = None
        self._first: Loaded[Engine] | NothingLoads | None
        try:
            self._first = place(self._loader, lambda attempt: None)
        except NothingLoads as error:
            if not settings.allow_warm_start_failure:
                raise
            self._first = error

    def load(self, report: Report) -> Loaded[Engine]:
        """What a service loads with: what was placed, or why nothing was; after that it is tried again."""
        return self._load(self._loader, report)

    def reread(self) -> Load:
        """What a service reloads with. Raises NotReady where the GPU's weights are placed already."""
        if self._on_gpu is not None:
            raise NotReady("ZeroGPU takes other weights at the start only: restart the Space to serve them")
        return partial(self._load, self._loader.reread())

    def work(self, until: threading.Event) -> None:
        """Places what is asked for. For the main thread, after the launch."""
        while not until.is_set():  # another thread may get the signal, which does not wake this one to handle it
            with suppress(Empty):
                self._asked.get(timeout=0.2)()

    def _load(self, loader: Loader, report: Report) -> Loaded[Engine]:
        if self._on_gpu is not None:
            return self._on_gpu
        first, self._first = self._first, None
        if isinstance(first, NothingLoads):
            raise first
        loaded = first or self._in_main_thread(partial(place, loader, report))
        if loaded.model.gpu is not None:
            self._on_gpu = loaded
        return loaded

    def _in_main_thread(self, work: Callable[[], Loaded[Engine]]) -> Loaded[Engine]:
        done: Future[Loaded[Engine]] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

        self._asked.put(run)
        return done.result()


def loader(settings: Settings) -> Loader:
    """One that counts with the slice of a GPU that a call is lent."""
    name = f"ZeroGPU {settings.zerogpu_size}"
    room = round(memory_gb(settings) * 1e9)
    return Loader(settings, replace(machine.inspect(), accelerators=(Accelerator(name, room, room),)))


def place(loader: Loader, report: Report) -> Loaded[Engine]:
    """Loads the first rung that fits into the slice, in this thread. Raises NothingLoads.

    There is no GPU to try a rung on: what does not fit is known by arithmetic, and what cannot answer by its first
    request.
    """
    settings = loader.settings

    def begin(rung: Rung) -> Engine:
        # What runs on the processor, or elsewhere, costs nobody's quota.
        if rung.candidate.engine in ("llamacpp", "upstream") or "cpu" in (rung.strategy, settings.model_device):
            return loader.engine(rung)
        model = loader.model(rung)
        weights = rung.needs.weights if rung.needs else 0
        return SpaceEngine(model, PlanWriter(model, settings.tools), settings, weights=weights)

    return loader.first(begin, report)
