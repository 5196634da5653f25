"""Doors for tests: `app.py` as a process of its own, on a machine of one's own or as ZeroGPU starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from gradio_client import Client

from tests.fakes.llama_server import NAME, llama_server
from tests.fakes.running import Process, answers, until
from tests.fakes.upstream import KEY
from tests.fakes.zerogpu import FakeZeroGPU, fake_zerogpu
from tests.vllm import vllm

PATIENCE = 300.0  # seconds for an answer: a busy machine, or a model of another server's, takes its time
APP = Path(__file__).with_name("space_app.py")


@dataclass
class Door:
    """One way into the app. `api` is there where the GPU is lent; `serves`: engine, strategy and model of `/health`."""

    process: Process
    url: str
    api: FakeZeroGPU = field(default_factory=FakeZeroGPU)
    answered_at: float = 0.0
    serves: tuple[str, str, str] = ("echo", "native", "echo")

    @property
    def lends(self) -> bool:
        return bool(self.api.url)

    @property
    def echoes(self) -> bool:
        """Whether its model says again what it was asked. A real one says what it likes."""
        return self.serves[0] == "echo"

    def connect(self, version: str = "1.1", **body: object) -> socket.socket:
        """Sends a request to `/v1/generate`, and leaves it to the caller to read, or to hang up."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        sent = json.dumps(body).encode()
        head = f"POST /v1/generate HTTP/{version}\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
        connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        return connection

    def generate(self, prompt: str = "hello", headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
        sent = {"prompt": prompt, "output": "text", **body}
        return httpx.post(f"{self.url}/v1/generate", json=sent, headers=headers, timeout=PATIENCE)

    def released(self, since: float, seconds: float) -> None:
        """Waits for the GPU to be given back, at most so long."""
        until(lambda: any(call.at >= since for call in self.api.of("/release")), seconds)

    @property
    def idle(self) -> bool:
        queue = httpx.get(f"{self.url}/health", timeout=PATIENCE).json()["queue"]
        return queue["running"] == queue["waiting"] == 0 and not self.api.held


def client(door: Door, path: str = "/gradio", **more: object) -> Client:
    """A visitor of the UI, patient on a busy machine."""
    return Client(f"{door.url}{path}", verbose=False, httpx_kwargs={"timeout": PATIENCE}, **more)


@contextlib.contextmanager
def plain_door(folder: Path, model: str = "echo", **environment: str) -> Iterator[Door]:
    with _process(folder, model, environment) as (process, url):
        yield Door(process, url)


@contextlib.contextmanager
def embedded_door(folder: Path, **environment: str) -> Iterator[Door]:
    """The trained router on llama.cpp."""
    with plain_door(folder, "real", MODEL_REPO="embedded", **environment) as door:
        door.serves = ("llamacpp", "gguf", "embedded")
        yield door


@contextlib.contextmanager
def llama_server_door(folder: Path, **environment: str) -> Iterator[Door]:
    """The trained router behind llama.cpp's own server."""
    with llama_server(KEY) as url, _before(url, NAME, folder, environment) as door:
        yield door


@contextlib.contextmanager
def vllm_door(folder: Path, **environment: str) -> Iterator[Door]:
    """The trained router behind a vLLM, which `make doors` sets up."""
    with vllm() as url, _before(url, "router", folder, environment) as door:
        yield door


@contextlib.contextmanager
def _before(url: str, model: str, folder: Path, environment: dict[str, str]) -> Iterator[Door]:
    with plain_door(folder, "real", MODEL_REPO=url, UPSTREAM_API_KEY=KEY, SLOTS="2", **environment) as door:
        door.serves = ("upstream", "served", model)
        yield door


@contextlib.contextmanager
def space_door(folder: Path, model: str = "echo", **environment: str) -> Iterator[Door]:
    """ZeroGPU, but for the GPU: the real `spaces`, against a device API that lends what is not there."""
    with sent_door(folder, None, environment, model=model) as door:
        yield door


@contextlib.contextmanager
def sent_door(
    folder: Path, files: Path | None, environment: dict[str, str], *, model: str = "torch", healthy: bool = True
) -> Iterator[Door]:
    """As `space_door`, of the files that a Space was sent. Not `healthy`: nothing will load."""
    with fake_zerogpu() as api:
        told = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": api.url, **environment}
        with _process(folder, model, told, files, healthy) as (process, url):
            yield Door(process, url, api, time.monotonic())


@contextlib.contextmanager
def _process(
    folder: Path, model: str, environment: dict[str, str], files: Path | None = None, healthy: bool = True
) -> Iterator[tuple[Process, str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    told = {"HOME": str(folder), "PORT": str(port), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "THREADS": "1"}
    popen = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(APP), model, *([str(files)] if files else [])],
        env=inherited | told | {"ENGINE": "echo" if model == "echo" else ""} | environment,
        cwd=folder,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    running, url = Process(popen), f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(f"{url}/livez") or popen.poll() is not None, 300)
        assert popen.poll() is None, running.output
        until(lambda: answers(f"{url}/health") or not healthy)
        yield running, url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        running.wait()
        assert popen.stdout is not None
        popen.stdout.close()
