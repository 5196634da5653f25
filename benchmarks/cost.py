"""What a change costs each request: two checkouts of this repository, served with the echo engine, in turns.

    git worktree add /tmp/before COMMIT
    PYTHONPATH=. python benchmarks/cost.py /tmp/before . [--rounds 40] [--requests 400]

A round sends as many requests to one as to the other, over one connection. Processor time of the server, and wall time,
for a request; the ratio is the median of the rounds'.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from tests.fakes.running import answers, until

ASKED = {"/health": None, "/v1/generate": {"prompt": "one two three", "output": "text"}}


class Served(NamedTuple):
    process: psutil.Process
    client: httpx.Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=400)
    options = parser.parse_args()
    print("| | before | after | ratio: processor | quartiles | wall |\n|---|---|---|---|---|---|")
    with serving(options.before) as before, serving(options.after) as after:
        for path in ASKED:
            found: dict[Served, list[tuple[float, float]]] = {before: [], after: []}
            for each in found:
                measured(each, path, options.requests)
            for turn in range(options.rounds):
                for each in (before, after) if turn % 2 else (after, before):
                    found[each].append(measured(each, path, options.requests))
            pairs = list(zip(found[before], found[after], strict=True))
            cpu, wall = ([new[at] / old[at] for old, new in pairs] for at in (0, 1))
            microseconds = [statistics.median(each for each, _ in rounds) for rounds in found.values()]
            low, middle, high = statistics.quantiles(cpu)
            shown = " | ".join(f"{each:.0f} µs" for each in microseconds)
            print(f"| `{path}` | {shown} | {middle:.3f} | {low:.3f} to {high:.3f} | {statistics.median(wall):.3f} |")


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = {"PYTHONPATH": str(root.absolute()), "PORT": str(port), "HOST": "127.0.0.1", "ENGINE": "echo"}
    command = [sys.executable, "-W", "ignore", "-m", "router_backend.cli", "serve"]
    offline = {"MODEL_REPO": "echo", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, cwd=root, env={**os.environ, **told, **offline}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}/readyz"))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Served(psutil.Process(process.pid), client)
    finally:
        process.kill()
        process.wait()


def measured(server: Served, path: str, requests: int) -> tuple[float, float]:
    """Microseconds of a request: of the server's processor, and of wall time."""
    body = ASKED[path]
    request = server.client.build_request(
        "GET" if body is None else "POST",
        path,
        content=json.dumps(body),
        headers={"content-type": "application/json"} if body else {},
    )
    before, start = server.process.cpu_times(), time.perf_counter()
    for _ in range(requests):
        server.client.send(request).raise_for_status()
    took, after = time.perf_counter() - start, server.process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return 1e6 * spent / requests, 1e6 * took / requests


if __name__ == "__main__":
    main()
