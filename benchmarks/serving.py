"""What the server adds to the engine: start-up, overhead of one request, throughput of several clients, cancel.

Starts `router-backend serve` on a free port of loopback for each part and ends it. Interleaves what it compares.

    python benchmarks/serving.py [start] [overhead] [throughput] [cancel]
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

PROMPT = "Tell a long story about a lighthouse keeper and the sea, with many details."
_ADDRESS = re.compile(r"http://[\d.]+:\d+")


@contextlib.contextmanager
def server(**environment: str) -> Iterator[tuple[str, float]]:
    """The server's address, and when its process was started."""
    command = [sys.executable, "-m", "router_backend.cli", "serve", "--port", "0"]
    began = time.monotonic()
    variables = {**os.environ, "MODEL_REPO": "embedded", **environment}
    process = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = None
    for line in process.stderr:
        if address := _ADDRESS.search(line):
            break
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        assert address is not None
        yield address[0], began
    finally:
        process.terminate()
        process.wait(60)


def until_ok(url: str) -> None:
    while httpx.get(f"{url}/readyz", timeout=120).status_code != 200:
        time.sleep(0.02)


def generate(client: httpx.Client, url: str, **fields: object) -> dict[str, Any]:
    answer = client.post(f"{url}/v1/generate", json={"output": "text", "details": True, **fields}, timeout=300)
    answer.raise_for_status()
    return dict(answer.json())


def start() -> None:
    """Process start → /livez, → first token of an answer, with the embedded model on a warm disk."""
    rows = []
    for _ in range(5):
        with server() as (url, began):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"{url}/livez")
                    alive = time.monotonic() - began
                    break
                time.sleep(0.005)
            body = {"prompt": PROMPT, "output": "text", "max_new_tokens": 2, "stream": True}
            with httpx.stream("POST", f"{url}/v1/generate", json=body, timeout=60) as answer:
                next(answer.iter_lines())
            rows.append((alive, time.monotonic() - began))
    for name, values in zip(("/livez", "first token"), zip(*rows, strict=True), strict=True):
        print(f"start → {name}: median {statistics.median(values):.2f} s, worst {max(values):.2f} s of {len(values)}")


def overhead() -> None:
    """A client's seconds less the engine's own (prefill and decode), one request at a time on one connection."""
    for engine, variables, tokens, times in (("echo", {"ENGINE": "echo"}, 16, 300), ("llamacpp", {}, 16, 60)):
        with server(**variables) as (url, _), httpx.Client() as client:
            until_ok(url)
            added = []
            for index in range(times + 5):
                began = time.monotonic()
                answer = generate(client, url, prompt=PROMPT, max_new_tokens=tokens, seed=1)
                seconds = time.monotonic() - began
                timings = answer["details"]["timings"]
                if index >= 5:
                    added.append(1000 * (seconds - timings["prefill_seconds"] - timings["decode_seconds"]))
            added.sort()
            print(f"added to {engine}: p50 {statistics.median(added):.2f} ms, p95 {added[int(0.95 * times)]:.2f} ms")


def throughput() -> None:
    """Tokens/s of one client and of eight at once, four slots, in turns."""
    with server(SLOTS="4") as (url, _):
        until_ok(url)
        speeds: dict[int, list[float]] = {1: [], 8: []}
        for turn in range(3):
            for clients in (1, 8):
                with ThreadPoolExecutor(clients) as pool, httpx.Client() as client:
                    began = time.monotonic()
                    answers = list(
                        pool.map(
                            lambda seed, client=client: generate(
                                client, url, prompt=PROMPT, max_new_tokens=128, temperature=0.7, seed=seed
                            ),
                            range(turn * 10, turn * 10 + clients),
                        )
                    )
                    seconds = time.monotonic() - began
                tokens = sum(answer["details"]["usage"]["completion_tokens"] for answer in answers)
                assert len(answers) == clients and all(answer["text"] for answer in answers)
                speeds[clients].append(tokens / seconds)
        one, eight = (statistics.median(speeds[clients]) for clients in (1, 8))
        print(f"one client {one:.0f} tokens/s, eight {eight:.0f} tokens/s: {eight / one:.2f} times")


def cancel() -> None:
    """How long after a client has left its slot answers another: one slot, so that there is no other way."""
    with server(SLOTS="1") as (url, _), httpx.Client() as next_client:
        until_ok(url)
        body = {"prompt": PROMPT, "output": "text", "max_new_tokens": 2000}
        seconds = []
        for stream in (False, True) * 4:
            with contextlib.suppress(httpx.TimeoutException), httpx.Client(timeout=0.6) as client:
                if stream:
                    with client.stream("POST", f"{url}/v1/generate", json={**body, "stream": True}) as answer:
                        for _ in zip(range(40), answer.iter_lines(), strict=False):
                            pass
                else:
                    client.post(f"{url}/v1/generate", json=body)
            left = time.monotonic()
            generate(next_client, url, prompt="Hi", max_new_tokens=1)
            seconds.append(time.monotonic() - left)
        median, worst = statistics.median(seconds), max(seconds)
        print(f"client left → its slot has answered the next: median {median:.2f} s, worst {worst:.2f} s")


def main() -> None:
    parts = {"start": start, "overhead": overhead, "throughput": throughput, "cancel": cancel}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
