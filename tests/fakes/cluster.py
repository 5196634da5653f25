"""`router-backend cluster` whose replicas have an echo that can be told to be slow; and the door to one.

python -m tests.fakes.cluster [ARGUMENTS OF THE COMMAND]
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.running import Process, until
from tests.fakes.space import Door

ROOT = Path(__file__).parents[2]

# A Python that has Ray, which the one of the tests has not: `make cluster-test` sets it.
PYTHON = os.environ.get("CLUSTER_PYTHON", "")


class ClusterDoor(Door):
    """The door to a cluster: what is at work there is the sum over its replicas."""

    @property
    def idle(self) -> bool:
        return at_work(self.url) == 0


def at_work(url: str) -> float:
    """Requests that run or wait, on all replicas."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text)
    return sum(sample.value for family in families for sample in family.samples if sample.name in names)


@contextlib.contextmanager
def cluster_door(folder: Path, model: str = "echo", **environment: str) -> Iterator[Door]:
    """Two replicas on a Ray cluster of this machine's own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    told = {"HOME": str(folder), "PORT": str(port), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "ENGINE": model}
    popen = subprocess.Popen(
        [PYTHON, "-W", "ignore", "-m", "tests.fakes.cluster", "--replicas", "2", "--cpus", "0.5"],
        env=inherited | told | environment,
        cwd=folder,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    running = Process(popen)
    try:
        until(lambda: "replicas serve at" in running.output or popen.poll() is not None, 300)
        assert popen.poll() is None, running.output
        yield ClusterDoor(running, f"http://127.0.0.1:{port}")
        assert running.stop(120) == 0, running.output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        running.wait()
        assert popen.stdout is not None
        popen.stdout.close()


def main() -> None:
    """The command itself, with a lesson for each process that the cluster starts for it."""
    import ray

    from router_backend.cli import app

    plain = ray.init

    def taught(*, runtime_env: dict[str, Any] | None = None, **rest: object) -> None:
        hook = {"worker_process_setup_hook": "tests.fakes.space_app.teach_the_echo"}
        plain(runtime_env={**(runtime_env or {}), **hook}, **rest)

    ray.init = taught
    app(["cluster", *sys.argv[1:]])


if __name__ == "__main__":
    main()
