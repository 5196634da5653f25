"""A real vLLM on this machine with the embedded checkpoint, and the tests of the upstream engine against it.

python -m tests.vllm             # `make vllm-test`; PLANS=8: plans at once for each budget
python -m tests.vllm serve       # the server alone, until its input ends
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.fakes.upstream import KEY

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv" / "vllm"
_PATIENCE = 1200.0  # seconds until it serves: on two busy cores it takes minutes
_STARTED = (
    *("--host", "127.0.0.1", "--served-model-name", "router", "--api-key", KEY, "--enforce-eager"),
    *("--max-model-len", "4096", "--max-num-seqs", "8", "--structured-outputs-config.backend", "guidance"),
    # A plan's stages share a prefix that grows by a few tokens: small blocks keep most of it.
    *("--enable-prefix-caching", "--block-size", "32", "--enable-prompt-tokens-details"),
)


def checkpoint(folder: Path) -> Path:
    """The embedded checkpoint as a folder of safetensors, made once."""
    merged, base = folder / "merged", folder / "base"
    if not (merged / "config.json").is_file():
        from tests.fakes.gguf_base import as_folder  # it needs transformers, which a cluster's environment has not

        as_folder(base)
        adapter = ROOT / "router_backend" / "checkpoints" / "embedded" / "adapter"
        command = [sys.executable, "-m", "router_backend.cli", "merge", str(base), str(adapter), str(merged)]
        subprocess.run(command, check=True, cwd=ROOT)
    return merged


@contextlib.contextmanager
def vllm() -> Iterator[str]:
    """The URL of a server that is ready. It ends with the block, and all its processes with it.

    `UPSTREAM_URL` names one that runs already (`serve`), and is left running.
    """
    if running := os.environ.get("UPSTREAM_URL"):
        yield running
        return
    model = checkpoint(ENVIRONMENT / "checkpoint")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    log = ENVIRONMENT / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            # Its own command asks for the metadata of a package of another name.
            [
                *(ENVIRONMENT / "bin" / "python", "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", str(model), "--port", str(port), *_STARTED),
            ],
            env={**os.environ, **told, "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}"},
            cwd=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=10).status_code == 200:
                return
        time.sleep(1)
    sys.exit(f"vLLM does not serve: see {log}")


def main(command: str = "test") -> None:
    with vllm() as url:
        if command == "serve":
            print(url, KEY, flush=True)
            sys.stdin.read()
            return
        environment = {**os.environ, "UPSTREAM_URL": url, "PLANS": os.environ.get("PLANS", "8")}
        tests = [sys.executable, "-m", "pytest", "--durations=0", "tests/engines/test_upstream_real.py"]
        code = subprocess.run(tests, env=environment, cwd=ROOT, check=False).returncode
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
