"""Capacity on paper, by simulation, and from real servers: how many plans a second a layout gives.

    python benchmarks/capacity.py --check [--seconds 45]   one, two and four servers, two shapes of load: predicted and measured
    python benchmarks/capacity.py --cards                  plans a second and the price of a plan, card by card
    python benchmarks/capacity.py --scale                  8, 64 and 1,024 GPUs
    python benchmarks/capacity.py --plot FILE.png          the last two as a picture, and the points of the last --check

`--check` starts each server as a process of its own: our whole app, plans in stages and the queue in front included. Its
model is the echo engine with the pace of a card, which sleeps for a pass that gets longer with each plan in it. The
simulation is told three plans on an idle server and predicts the rest; it exits 1 where a figure is off by more than
20 %. What it cannot show is the pace of a real card: `--cards` says what it takes that from.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
from simulation import Balance, Fate, Layout, Pace, Plan, bursts, poisson, simulate

sys.path.insert(0, str(Path(__file__).parents[1]))
from router_backend.engines.echo import EchoModel
from router_backend.types import Chunk, GenerateRequest, ModelInfo
from tests.fakes.running import served, says_plans

# The servers of --check. A plan takes 1.5 to 3 s alone and twice that among four.
PACE = Pace(0.006, 0.004)
SLOTS, QUEUE = 4, 6
BUDGETS = (220, 300, 420)
LOAD = 0.75  # of what the replicas can do
WITHIN = 0.20
POINTS = Path(__file__).parents[1] / "docs" / "capacity.json"


class Card(EchoModel):
    """Says plans at the pace of a card that decodes all its requests in one batch."""

    pace: Pace

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        passes = 0
        for chunk in super().generate(request, cancelled, slot):
            time.sleep(self.pace.fixed + self.pace.each * len(self.active))
            passes += 1
            yield replace(chunk, timings=replace(chunk.timings, forward_passes=passes))


def replica(pace: Pace) -> None:
    """One server with one card, until standard input closes. Prints its address."""
    card = Card(ModelInfo("echo", "native", "echo", 4096, SLOTS), says_plans)
    card.pace = pace
    with served(card, slots=SLOTS, queue_limit=QUEUE, request_timeout=600) as server:
        print(server.url, flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def replicas(count: int, pace: Pace) -> Iterator[list[tuple[str, psutil.Process]]]:
    """Addresses of so many servers, and their processes."""
    command = [sys.executable, __file__, "--replica", str(pace.fixed), str(pace.each)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        yield [(each.stdout.readline().strip(), psutil.Process(each.pid)) for each in started if each.stdout]
    finally:
        for each in started:
            each.communicate(timeout=120)


def body(budget: int) -> dict[str, Any]:
    return {"prompt": "Derive the convergence rate of Newton's method.", "max_new_tokens": budget, "details": True}


@dataclass(frozen=True)
class Known:
    """What was measured on an idle server: forward passes of each budget, and the seconds of a pass beside them."""

    passes: dict[int, int]
    outside: float
    cpu_seconds: float


def calibrate() -> Known:
    """Three plans, one after the other; and what a plan costs the server's own processor where no card is waited for."""
    passes: dict[int, int] = {}
    seconds = 0.0
    with replicas(1, PACE) as [(url, _)], httpx.Client(base_url=url, timeout=60) as client:
        client.post("/v1/generate", json=body(BUDGETS[0])).raise_for_status()
        for budget in BUDGETS:
            began = time.monotonic()
            answer = client.post("/v1/generate", json=body(budget)).raise_for_status().json()
            seconds += time.monotonic() - began
            passes[budget] = answer["details"]["timings"]["forward_passes"]
    outside = seconds / sum(passes.values()) - PACE.seconds(1)
    with replicas(1, Pace(0, 0)) as [(url, process)], httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(5):
            client.post("/v1/generate", json=body(600)).raise_for_status()
        before = process.cpu_times()
        for _ in range(20):
            client.post("/v1/generate", json=body(600)).raise_for_status()
        after = process.cpu_times()
    return Known(passes, max(0.0, outside), (after.user + after.system - before.user - before.system) / 20)


async def measure(urls: list[str], arrivals: list[float], budgets: list[int]) -> list[float | None]:
    """Seconds of each request that was answered with a plan, None for a refusal. Replicas take turns."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        for url in urls:
            (await client.get(f"{url}/readyz")).raise_for_status()
        start = time.monotonic()

        async def ask(index: int) -> float | None:
            await asyncio.sleep(start + arrivals[index] - time.monotonic())
            began = time.monotonic()
            answer = await client.post(f"{urls[index % len(urls)]}/v1/generate", json=body(budgets[index]))
            if answer.status_code == 429:
                return None
            assert set(json.loads(answer.raise_for_status().json()["text"])) >= {"route_plan", "handoff_plan"}
            return time.monotonic() - began

        return await asyncio.gather(*(ask(index) for index in range(len(arrivals))))


def share(values: list[float], of: float) -> float:
    return sorted(values)[min(len(values) - 1, int(of * len(values)))]


def figures(arrivals: list[float], seconds: list[float | None]) -> dict[str, float]:
    """Plans a second until the last one had come, their mean and 95th percentile in seconds, and those refused."""
    kept = [(when + each, each) for when, each in zip(arrivals, seconds, strict=True) if each is not None]
    times = [each for _, each in kept]
    return {
        "plans/s": len(kept) / max(end for end, _ in kept),
        "mean s": sum(times) / len(times),
        "p95 s": share(times, 0.95),
        "refused": len(arrivals) - len(kept),
    }


def seconds_of(fates: list[Fate]) -> list[float | None]:
    return [None if fate.ended is None else fate.seconds for fate in fates]


def check(seconds: float) -> int:
    known = calibrate()
    pace = replace(PACE, outside=known.outside)
    mean = sum(known.passes.values()) / len(known.passes)
    each = LOAD * SLOTS / (mean * pace.seconds(SLOTS))
    print(f"idle: passes {known.passes}, {1000 * known.outside:.2f} ms a pass outside the card", end="; ")
    print(f"{1000 * known.cpu_seconds:.0f} ms of processor a plan of 600 tokens\n")
    print("| servers | load | asked | | plans/s | mean s | p95 s | refused |\n|---|---|---|---|---|---|---|---|")
    points: list[dict[str, Any]] = []
    worst = 0.0
    for count in (1, 2, 4):
        with replicas(count, PACE) as started:
            urls = [url for url, _ in started]
            for load in ("Poisson", "bursts"):
                dice = random.Random(count)
                rate = each * count
                when = list(poisson(rate, seconds, dice) if load == "Poisson" else bursts(rate, seconds, dice, 15))
                budgets = dice.choices(BUDGETS, k=len(when))
                plans = [Plan(at, known.passes[budget]) for at, budget in zip(when, budgets, strict=True)]
                fates = simulate(Layout(count, count, SLOTS, QUEUE), pace, plans)
                predicted = figures(when, seconds_of(fates))
                found = figures(when, asyncio.run(measure(urls, when, budgets)))
                off = {name: predicted[name] / found[name] - 1 for name in ("plans/s", "mean s", "p95 s")}
                off["refused"] = (predicted["refused"] - found["refused"]) / len(when)
                worst = max(worst, *map(abs, off.values()))
                points.append({"servers": count, "load": load, "predicted": predicted, "measured": found})
                for name, row in (("predicted", predicted), ("measured", found)):
                    numbers = f"{row['plans/s']:.2f} | {row['mean s']:.2f} | {row['p95 s']:.2f} | {row['refused']:.0f}"
                    print(f"| {count} | {load} | {len(when)} | {name} | {numbers} |")
                print(f"| | | | off by | {' | '.join(f'{100 * each:+.0f} %' for each in off.values())} |", flush=True)
    POINTS.write_text(json.dumps({"known": {"cpu_seconds": known.cpu_seconds}, "points": points}, indent=1) + "\n")
    print(f"\nworst: {100 * worst:.0f} % (refusals as a share of what was asked); allowed {100 * WITHIN:.0f} %")
    return int(worst > WITHIN)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--check", action="store_true")
    options.add_argument("--seconds", type=float, default=45)
    options.add_argument("--replica", type=float, nargs=2)
    chosen = options.parse_args()
    if chosen.replica:
        replica(Pace(*chosen.replica))
    return check(chosen.seconds) if chosen.check else 0


if __name__ == "__main__":
    sys.exit(main())
