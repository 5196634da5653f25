"""llama.cpp's own HTTP server in a process of its own, as xllamacpp starts it. It ends with its input.

python -m tests.fakes.llama_server FILE KEY
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import xllamacpp

from router_backend.checkpoints.embedded import checkpoint

NAME = "embedded-router"
_ROOT = Path(__file__).parents[2]


def main(path: str, key: str) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {NAME}
    params.n_ctx, params.n_parallel = 2 * 4096, 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = params.n_ctx_checkpoints = 0
    params.api_keys = [key]
    params.endpoint_metrics = True
    params.verbosity = -1
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    del server


@contextlib.contextmanager
def llama_server(key: str) -> Iterator[str]:
    """Its URL, with the embedded checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.llama_server", str(checkpoint()), key],
        cwd=_ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), "it did not start"
        yield f"{url}/v1"
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
