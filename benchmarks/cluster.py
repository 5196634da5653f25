"""A Ray cluster of two nodes on this machine, under load, while it grows, is updated and loses parts.

    PYTHONPATH=. .venv/cluster/bin/python benchmarks/cluster.py [overhead] [faults] [streams] [embedded] [head]

(`make cluster-test` sets up what it needs.) The echo engine, taught to say a word in 50 ms, so that requests last. Each
replica has four slots. Exits 1 where a request is lost that must not be: an accepted one may be lost with the replica
that worked on it alone, by a 503 that says so. Loopback; no duration is asserted.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema
from serving import server, until_ok

from router_backend.cluster.layout import PROXY_VARIABLE, Layout, configuration
from router_backend.settings import load_settings
from tests.fakes.cluster import at_work
from tests.fakes.running import in_threads, until

SLOW = {"prompt": " ".join(["slow"] * 20), "output": "text", "max_new_tokens": 20}  # a second
PATIENCE = 240.0  # seconds for what takes a few on an idle machine


@dataclass
class Load:
    """Clients that ask again as soon as they are answered, until they are told to stop."""

    url: str
    clients: int
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _began: float = 0.0

    async def __aenter__(self) -> Load:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.AsyncClient(base_url=self.url, timeout=300, limits=limits)
        self._began, self._going = time.monotonic(), True
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self.clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._going = False
        await asyncio.gather(*self._tasks)
        await self._http.aclose()
        self._took = time.monotonic() - self._began

    async def _client(self) -> None:
        while self._going:
            began = time.monotonic()
            try:
                answer = await self._http.post("/v1/generate", json=SLOW)
            except httpx.TransportError as error:
                self.outcomes[f"broken: {error!r}"] += 1
                await asyncio.sleep(1)
                continue
            if answer.status_code == 200 and answer.json()["text"] == SLOW["prompt"]:
                self.outcomes["whole"] += 1
                self.seconds.append(time.monotonic() - began)
                continue
            wait = answer.headers.get("retry-after")
            told = answer.json().get("error", {}) if "json" in answer.headers["content-type"] else {}
            code = told.get("code", answer.text[:60])
            self.outcomes[f"{answer.status_code} {code}{'' if wait else ' without Retry-After'}"] += 1
            await asyncio.sleep(float(wait or 1))

    @property
    def lost(self) -> dict[str, int]:
        return {what: times for what, times in self.outcomes.items() if what != "whole"}

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        p50, p95 = ordered[len(ordered) // 2], ordered[int(0.95 * len(ordered))]
        rate = f"{self.clients} clients, {self._took:.0f} s: {self.outcomes['whole'] / self._took:.1f} answers/s"
        return f"{rate}, p50 {p50:.2f} s, p95 {p95:.2f} s, lost {self.lost or 0}"


@dataclass
class Nodes:
    """Two nodes with a proxy each, on ports of their own."""

    cluster: Any
    folder: Path
    port: int
    worker_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self) -> Any:  # noqa: ANN401 - Ray has no types
        return self.cluster.add_node(num_cpus=2, env_vars={"RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(self.worker_port)})

    def deploy(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """The command, as people give it. Its exit code, and what it said last."""
        told = {"ENGINE": "echo", "PORT": str(self.port), "RAY_ADDRESS": self.cluster.address, "DRAIN_TIMEOUT": "20"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.fakes.cluster", "--cpus", "1", *arguments],
            env={**os.environ, **told, **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )
        said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        return done.returncode, said[-1] if said else ""


def replicas() -> int:
    """Replicas that serve."""
    return int(serve.status().applications["router"].deployments["Router"].replica_states.get("RUNNING", 0))


def processes() -> list[psutil.Process]:
    """The processes of replicas, of this test's nodes alone."""
    return [
        each for each in psutil.Process().children(recursive=True) if _name(each).startswith("ray::ServeReplica:router")
    ]


def _name(process: psutil.Process) -> str:
    try:
        return str((process.cmdline() or [""])[0])
    except psutil.Error:  # it has ended
        return ""


async def becomes(what: str, condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    await asyncio.to_thread(until, condition, PATIENCE)
    print(f"  {what} after {time.monotonic() - began:.0f} s", flush=True)


def check(holds: bool, what: str) -> None:
    print(f"  {'holds' if holds else 'FAILS'}: {what}", flush=True)
    if not holds:
        FAILED.append(what)


FAILED: list[str] = []


async def faults(nodes: Nodes) -> None:
    ServeDeploySchema.model_validate(configuration(Layout(1, 3), load_settings(), "127.0.0.1", nodes.port))
    worker = nodes.add()
    code, said = nodes.deploy("--replicas", "1:3", "--grow-after", "1", "--shrink-after", "5")
    print(f"two nodes, 1 to 3 replicas: {said}", flush=True)
    assert code == 0

    print("the load doubles and goes back")
    async with Load(nodes.url, 4) as load:
        await asyncio.sleep(20)
    print(f"  {load}")
    check(not load.lost, "no request is lost")
    async with Load(nodes.url, 8) as load:
        await becomes("a second replica serves", lambda: replicas() >= 2)
        await asyncio.sleep(10)
    print(f"  {load}")
    check(not load.lost, "no request is lost while replicas grow")
    async with Load(nodes.url, 2) as load:
        await becomes("one replica is left", lambda: replicas() == 1)
    print(f"  {load}")
    check(not load.lost, "no request is lost while replicas shrink")

    print("a client that leaves")
    one, two = nodes.url, f"http://127.0.0.1:{nodes.worker_port}"  # the proxy of each node
    for url, stream in ((one, True), (one, False), (two, False)):
        body = {"prompt": "slow " * 1200, "output": "text", "max_new_tokens": 1200, "stream": stream}
        async with httpx.AsyncClient(timeout=60) as http:
            asked = asyncio.create_task(http.post(f"{url}/v1/generate", json=body))
            await becomes("it is at work", lambda: at_work(nodes.url) == 1)
            asked.cancel()
            await becomes(f"its slot is free ({'stream' if stream else 'plain'})", lambda: at_work(nodes.url) == 0)

    code, said = nodes.deploy("--replicas", "3:3")
    print(f"three replicas: {said}")
    assert code == 0

    print("a replica is killed")
    async with Load(nodes.url, 9) as load:
        await asyncio.sleep(5)
        victim = processes()[0]
        victim.kill()
        await becomes("two replicas are left", lambda: replicas() == 2)
        await becomes("three replicas serve again", lambda: replicas() == 3)
        await asyncio.sleep(5)
    print(f"  {load}")
    check(set(load.lost) <= {"503 engine_lost"}, "what is lost is told by a 503 that may be repeated")
    check(sum(load.lost.values()) <= 9, "no more than what was at work")

    print("a node is lost")
    async with Load(nodes.url, 6) as load:
        await asyncio.sleep(5)
        await asyncio.to_thread(nodes.cluster.remove_node, worker, False)
        await asyncio.sleep(20)
    print(f"  {load}; {replicas()} replicas serve")
    check(set(load.lost) <= {"503 engine_lost"}, "what is lost is told by a 503 that may be repeated")
    check(sum(load.lost.values()) <= 6, "no more than what was at work")
    nodes.add()  # in the main thread, where Ray may set its signals
    await becomes("three replicas serve, with a new node", lambda: replicas() == 3)

    print("a rolling update")
    before = {each.pid for each in processes()}
    async with Load(nodes.url, 6) as load:
        await asyncio.sleep(3)
        code, said = await asyncio.to_thread(nodes.deploy, "--replicas", "2:2", MAX_NEW_TOKENS="700")
        await becomes("only new replicas are left", lambda: not before & {each.pid for each in processes()})
    print(f"  {said}\n  {load}")
    check(code == 0 and not load.lost, "no request is lost")

    print("a rolling update to a checkpoint that does not load")
    broken = nodes.folder / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(2000))
    before = {each.pid for each in processes()}
    async with Load(nodes.url, 6) as load:
        await asyncio.sleep(3)
        code, said = await asyncio.to_thread(
            nodes.deploy, "--replicas", "2:2", ENGINE="", MODEL_REPO=str(broken), EMBEDDED_FALLBACK="0"
        )
    print(f"  exit {code}: {said[:200]}\n  {load}")
    check(code == 1 and not load.lost, "it is refused, and no request is lost")
    check(replicas() == 2 and before <= {each.pid for each in processes()}, "the old replicas go on")


async def streams(nodes: Nodes) -> None:
    """A replica is killed while it streams."""
    code, said = nodes.deploy("--replicas", "2:2")
    assert code == 0, said
    body = {"prompt": "slow " * 200, "output": "text", "max_new_tokens": 200, "stream": True}  # ten seconds
    async with httpx.AsyncClient(timeout=300) as http:
        asked = [asyncio.create_task(http.post(f"{nodes.url}/v1/generate", json=body)) for _ in range(6)]
        await becomes("six streams are at work", lambda: at_work(nodes.url) == 6)
        await asyncio.sleep(1)
        processes()[0].kill()
        answers = [(await each).text.strip().split("\n\n") for each in asked]
    ended = Counter("engine_lost" if "engine_lost" in answer[-2] else "whole" for answer in answers)
    print(f"  streams: {dict(ended)}", flush=True)
    check(all(answer[-1] == "data: [DONE]" for answer in answers), "each stream ends as streams do")
    check(0 < ended["engine_lost"] < 6, "those of the killed replica say so, the others are whole")


def overhead(nodes: Nodes) -> None:
    """The same request, now here, now there."""
    code, said = nodes.deploy("--replicas", "1")
    assert code == 0, said
    body = {"prompt": "one two three", "output": "text"}
    with server(ENGINE="echo", MODEL_REPO="") as (plain, _), httpx.Client(timeout=60) as http:
        until_ok(plain)
        took: dict[str, list[float]] = {plain: [], nodes.url: []}
        for turn in range(420):
            for url, times in took.items():
                began = time.perf_counter()
                http.post(f"{url}/v1/generate", json=body).raise_for_status()
                if turn >= 20:
                    times.append(1000 * (time.perf_counter() - began))
        for name, times in zip(("plain", "cluster"), took.values(), strict=True):
            ordered = sorted(times)
            p95 = ordered[int(0.95 * len(ordered))]
            print(
                f"  {name}: median {statistics.median(ordered):.1f} ms, p95 {p95:.1f} ms, n {len(ordered)}", flush=True
            )


def embedded(nodes: Nodes) -> None:
    """The embedded model takes the place of the echo."""
    code, said = nodes.deploy("--replicas", "2:2", ENGINE="", MODEL_REPO="embedded")
    print(f"the embedded model: {said}", flush=True)
    assert code == 0

    def plan(number: int) -> float:
        began = time.monotonic()
        answer = httpx.post(f"{nodes.url}/v1/plan", json={"query": f"Plan a trip to {number} towns."}, timeout=300)
        answer.raise_for_status()
        assert answer.json()["plan"]["route_plan"]
        return time.monotonic() - began

    times = in_threads(4, plan)
    print(f"  4 plans at once on 2 replicas: {', '.join(f'{each:.0f}' for each in times)} s")


async def head(nodes: Nodes) -> None:
    """What goes on when the head's processes are gone. A minute later everything ends, this process too."""
    nodes.add()  # in the main thread, where Ray may set its signals
    code, said = nodes.deploy("--replicas", "4:4")
    print(f"four replicas on two nodes: {said}", flush=True)
    assert code == 0
    async with Load(f"http://127.0.0.1:{nodes.worker_port}", 4) as load:
        await asyncio.sleep(5)
        await asyncio.to_thread(nodes.cluster.head_node.kill_all_processes, check_alive=False, allow_graceful=False)
        for second in range(0, 50, 10):
            await asyncio.sleep(10)
            print(f"  {second + 10} s after the head: {dict(load.outcomes)}", flush=True)
    check(set(load.lost) <= {"503 engine_lost"}, "the other node's replicas answer through its own proxy")


PARTS: dict[str, Callable[[Nodes], None]] = {
    "overhead": overhead,
    "faults": lambda nodes: asyncio.run(faults(nodes)),
    "streams": lambda nodes: asyncio.run(streams(nodes)),
    "embedded": embedded,
    "head": lambda nodes: asyncio.run(head(nodes)),
}


def main() -> int:
    chosen = sys.argv[1:] or ["overhead", "faults", "streams", "embedded"]
    with tempfile.TemporaryDirectory() as folder:
        with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
            ports = first.getsockname()[1], second.getsockname()[1]
        os.environ.update(PROXY_VARIABLE, RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1", RAY_SERVE_LOG_TO_STDERR="0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        nodes = Nodes(cluster, Path(folder), *ports)
        ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
        try:
            for name in chosen:
                PARTS[name](nodes)
        finally:
            ray.shutdown()
            cluster.shutdown()
    print("FAILED: " + "; ".join(FAILED) if FAILED else "all of it holds")
    return bool(FAILED)


if __name__ == "__main__":
    sys.exit(main())
