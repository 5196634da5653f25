"""The app with the echo engine, for tests that talk to it: in this process, on a port, and as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn
from starlette.testclient import TestClient

from router_backend.checkpoints.ladder import Attempt, Candidate, Loaded, Rung
from router_backend.engines.base import Engine, LocalModel
from router_backend.engines.echo import EchoModel
from router_backend.engines.threaded import ThreadedEngine
from router_backend.plan.write import PlanWriter
from router_backend.server.app import create_app
from router_backend.server.middleware.connection import Limits
from router_backend.server.serve import bind, configuration
from router_backend.service.service import GenerationService
from router_backend.settings import Settings, load_settings
from router_backend.types import GenerateRequest, ModelInfo

T = TypeVar("T")


def echo_service(
    model: EchoModel, settings: Settings, rung: Rung | None = None, attempts: tuple[Attempt, ...] = ()
) -> tuple[GenerationService, ThreadedEngine]:
    """A service over an echo model, not started. `rung` and `attempts`: what the ladder says of it."""
    engine = ThreadedEngine(model, PlanWriter(model, settings.tools))

    def load(report: Callable[[Attempt], None]) -> Loaded[Engine]:
        return Loaded(engine, rung or Rung(Candidate("echo", "echo"), "native"), attempts)

    return GenerationService(settings, load), engine


def plan_words(request: GenerateRequest, words: str = "say how it is done and check it") -> str:
    """A script for the echo model: one of the choices, or the same words for every text of a plan."""
    rules = request.grammar or ""
    if "CHOICE:" in rules:
        options = [json.loads(each) for each in re.findall(r'"(?:[^"\\]|\\.)*"', rules.partition("CHOICE:")[2])]
        return str(options[len(request.prefix) % len(options)])
    if "TAG:" in rules:
        return f'tag-{len(request.prefix)}",'
    lead = " " if rules.startswith('start: (" "') else ""
    return f'{lead}{words}",'


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for a condition. The limit is for what would never come: a busy machine takes its time."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"still not so after {seconds} seconds"
        time.sleep(0.01)


async def become(condition: Callable[[], bool], seconds: float = 60) -> None:
    """As `until`, in an event loop."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"still not so after {seconds} seconds"
        await asyncio.sleep(0.002)


def says_plans(request: GenerateRequest) -> str:
    """A script for the echo model: a plan where one is written, else the prompt."""
    return plan_words(request) if request.grammar else request.prompt


def echo_model(*, slots: int = 4, context_length: int = 4096, **rest: Any) -> EchoModel:  # noqa: ANN401
    return EchoModel(ModelInfo("echo", "native", "echo", context_length, slots), **{"script": says_plans, **rest})


@dataclass
class App:
    """The app behind starlette's test client (of whichever httpx it finds), and the parts that tests look at."""

    client: Any
    model: EchoModel
    engine: ThreadedEngine
    service: GenerationService

    def generate(
        self,
        prompt: str = "one two three",
        headers: dict[str, str] | None = None,
        **body: Any,  # noqa: ANN401
    ) -> httpx.Response:
        response: httpx.Response = self.client.post("/v1/generate", json={"prompt": prompt, **body}, headers=headers)
        return response


@contextlib.contextmanager
def app(model: EchoModel | None = None, *, ready: bool = True, ui: bool = False, **settings: object) -> Iterator[App]:
    """The started app in this process, its model loaded unless not `ready`."""
    model = model or echo_model()
    service, engine = echo_service(model, load_settings(drain_timeout=1, **settings))
    with TestClient(create_app(service, ui=ui), "http://localhost", follow_redirects=False) as client:
        if ready:
            until(lambda: service.health().status == "ok")
        model.seen.clear()  # the warm-up
        yield App(client, model, engine, service)


@dataclass
class Served:
    """A server on a real port."""

    url: str
    model: EchoModel
    engine: ThreadedEngine
    service: GenerationService
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """In the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits, and every slot is free."""
        health = self.service.health()
        free = self.engine.free_slots == self.model.info.slots
        return health.running == health.waiting == 0 and free and not self.model.active


class Kept:
    """A session's model, which outlives a server."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self.seen: list[GenerateRequest] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def close(self) -> None: ...


@contextlib.contextmanager
def served(
    model: EchoModel | None = None,
    *,
    ui: bool = False,
    limits: Limits | None = None,
    rung: Rung | None = None,
    attempts: tuple[Attempt, ...] = (),
    **settings: object,
) -> Iterator[Served]:
    """The app under uvicorn, in a thread."""
    model = model or echo_model()
    service, engine = echo_service(model, load_settings(**{"drain_timeout": 1, **settings}), rung, attempts)
    server = uvicorn.Server(configuration(create_app(service, ui=ui, limits=limits), limits))
    with bind("127.0.0.1", 0) as listener:
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve(sockets=[listener])

        thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server")
        thread.start()
        try:
            until(lambda: server.started and service.health().status == "ok")
            model.seen.clear()
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", model, engine, service, loops[0])
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()


@dataclass
class Process:
    """`router-backend serve` as it is run by people."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def read(self) -> None:
        assert self.popen.stdout is not None
        self.lines.extend(self.popen.stdout)

    def url(self) -> str:
        until(lambda: "serving on http" in self.output or self.popen.poll() is not None)
        found = re.search(r"serving on (http://\S+)", self.output)
        assert found, self.output
        return found[1]

    def ready(self) -> str:
        """The address, once the model is loaded."""
        url = self.url()
        until(lambda: answers(f"{url}/health"))
        return url

    def stop(self, seconds: float = 60) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = 60) -> int:
        code = self.popen.wait(seconds)
        until(lambda: self.popen.stdout is None or self.popen.stdout.closed or not self._reader.is_alive())
        return code

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self.read, name="reader")
        self._reader.start()


@contextlib.contextmanager
def process(
    *arguments: str, folder: Path, command: str = "serve", within: Sequence[str] = (), **environment: str
) -> Iterator[Process]:
    """A process of the command line; output and errors together. It is ended at the end of the block.

    `within` is what begins it, by `exec`.
    """
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LANG") if name in os.environ}
    popen = subprocess.Popen(
        [*within, sys.executable, "-W", "ignore", "-m", "router_backend.cli", command, *arguments],
        env=inherited | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **environment},
        cwd=folder,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    running = Process(popen)
    try:
        yield running
    finally:
        popen.kill()
        running.wait()
        assert popen.stdout is not None
        popen.stdout.close()


def answers(url: str) -> bool:
    """Whether it says 200."""
    try:
        return httpx.get(url, timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """The results of `work(0)` … at once, in order."""
    results: list[Any] = [None] * count

    def one(index: int) -> None:
        results[index] = work(index)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    return results
