"""Capacity on paper, by simulation, and from real servers: how many plans a second a layout gives.

    python benchmarks/capacity.py --check [--seconds 60]   one, two, four servers, two loads: predicted, measured
    python benchmarks/capacity.py --scale                  8, 64 and 1,024 GPUs, on the figures of cards.py
    python benchmarks/capacity.py --front URL              a front end's own processor, before an upstream that is quick
    python benchmarks/capacity.py --plot FILE.png          cards, loads and the points of the last --check as a picture

`--check` starts each server as a process of its own: our whole app, stages and the queue in front included. Its model
is the echo engine with the pace of a card, which sleeps for a pass that gets longer with each plan in it. The
simulation is told three plans on an idle server and predicts the rest; it exits 1 where a figure is off by more than
20 %. What it cannot show is the pace of a real card: cards.py says what it takes that from.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
from cards import COLD, GEMMA_8, QWEN_4, best, card, pace, rate, seats
from serving import server, until_ok
from simulation import Balance, Fate, Layout, Pace, Plan, bursts, poisson, simulate

sys.path.insert(0, str(Path(__file__).parents[1]))
from router_backend.engines.echo import EchoModel
from router_backend.types import Chunk, GenerateRequest, ModelInfo
from tests.fakes.running import says_plans, served

# The servers of --check: so slow that a busy machine shows little. A plan takes 2 to 4 s alone, twice that among four.
PACE = Pace(0.010, 0.007)
SLOTS, QUEUE = 4, 4
BUDGETS = (220, 300, 420)
LOAD = 0.85  # of what the replicas can do
WITHIN = 0.20
POINTS = Path(__file__).parents[1] / "docs" / "capacity.json"


class Paced(EchoModel):
    """Says plans at the pace of a card that decodes all its requests in one batch."""

    pace: Pace

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        for passes, chunk in enumerate(super().generate(request, cancelled, slot), 1):
            time.sleep(self.pace.fixed + self.pace.each * len(self.active))
            yield replace(chunk, timings=replace(chunk.timings, forward_passes=passes))


def replica(its: Pace) -> None:
    """One server with one card, until standard input closes. Prints its address."""
    model = Paced(ModelInfo("echo", "native", "echo", 4096, SLOTS), says_plans)
    model.pace = its
    with served(model, slots=SLOTS, queue_limit=QUEUE, request_timeout=600) as its_server:
        print(its_server.url, flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def replicas(count: int, its: Pace) -> Iterator[list[tuple[str, psutil.Process]]]:
    """Addresses of so many servers, and their processes."""
    command = [sys.executable, __file__, "--replica", str(its.fixed), str(its.each)]
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
    """Three plans, one after the other; and what a plan costs the processor where no card is waited for."""
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
    with replicas(1, Pace(0, 0)) as [(url, process)]:
        return Known(passes, max(0.0, outside), processor_seconds(url, process))


def processor_seconds(url: str, process: psutil.Process) -> float:
    """Of a server, for a plan of 600 tokens."""
    with httpx.Client(base_url=url, timeout=60) as client:

        def ask(times: int) -> float:
            for _ in range(times):
                client.post("/v1/generate", json=body(600)).raise_for_status()
            spent = process.cpu_times()
            return float(spent.user + spent.system)

        before = ask(5)
        return (ask(20) - before) / 20


def front(upstream: str) -> None:
    with server(MODEL_REPO=upstream) as (url, _):
        until_ok(url)
        [process] = psutil.Process().children()
        print(f"a front end: {1000 * processor_seconds(url, process):.0f} ms of processor a plan of 600 tokens")


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
    idle = replace(PACE, outside=known.outside)
    mean = sum(known.passes.values()) / len(known.passes)
    each = LOAD * SLOTS / (mean * idle.seconds(SLOTS))
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
                fates = simulate(Layout(count, count, SLOTS, QUEUE), idle, plans)
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


# Beyond what is here: a front end for each card.
BALANCES: tuple[Balance, ...] = ("hash", "two")


def scaled(cards: int, load: float, balance: Balance, seconds: float, *, burst: bool = False) -> list[Fate]:
    """A pool of cards at `load` of what they can do; half of the plans in bursts, or none."""
    on = card("H100")
    plans = best(GEMMA_8, on)
    asked, dice = load * cards * rate(GEMMA_8, on, plans), random.Random(cards)
    when = bursts(asked, seconds, dice, 60) if burst else poisson(asked, seconds, dice)
    passes = COLD.passes
    work = [Plan(at, dice.uniform(0.8, 1.2) * passes) for at in when]
    return simulate(Layout(cards, cards, plans, plans, balance), pace(GEMMA_8, on), work)


def scale(seconds: float) -> None:
    """Half a minute of warm-up is not counted, nor the plans that come in the last half minute."""
    print("| GPUs | load | plans/s | p50 s | p95 s, by hash | p95 s, less busy of two | refused, by hash and of two |")
    print("|---|---|---|---|---|---|---|")
    for cards in (8, 64, 1024):
        for load, burst in ((0.5, False), (0.8, False), (0.95, False), (0.8, True)):
            p50, p95, refused, done = [], [], [], 0.0
            for balance in BALANCES:
                fates = scaled(cards, load, balance, seconds, burst=burst)
                fates = [fate for fate in fates if 30 < fate.plan.arrives < seconds - 30]
                times = [fate.seconds for fate in fates if fate.ended is not None]
                p50.append(share(times, 0.5))
                p95.append(share(times, 0.95))
                refused.append(1 - len(times) / len(fates))
                done = len(times) / (seconds - 60)
            what = f"{load:.0%}{', bursts' if burst else ''}"
            lost = " and ".join(f"{each:.1%}" for each in refused)
            print(
                f"| {cards} | {what} | {done:.0f} | {p50[1]:.1f} | {p95[0]:.1f} | {p95[1]:.1f} | {lost} |", flush=True
            )


def plot(file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (checked, batches, loads) = pyplot.subplots(1, 3, figsize=(15, 4.5))
    for point in json.loads(POINTS.read_text("utf-8"))["points"]:
        shape = "o" if point["load"] == "Poisson" else "s"
        for name, colour in (("mean s", "tab:blue"), ("p95 s", "tab:orange")):
            label = f"{name.removesuffix(' s')}, {point['load']}" if point["servers"] == 1 else None
            checked.plot(point["measured"][name], point["predicted"][name], shape, color=colour, label=label)
    most = 1.1 * max(checked.get_xlim()[1], checked.get_ylim()[1])
    checked.plot([0, most], [0, most], color="black", linewidth=0.8)
    checked.fill_between([0, most], [0, 0.8 * most], [0, 1.2 * most], color="grey", alpha=0.2, label="within 20 %")
    checked.set(xlim=(0, most), ylim=(0, most), xlabel="measured, seconds a plan", ylabel="predicted, seconds a plan")
    checked.set_title("One, two and four servers")
    checked.legend()
    for checkpoint, name in ((GEMMA_8, "RTX Pro 6000"), (GEMMA_8, "H100"), (GEMMA_8, "H200"), (QWEN_4, "H100")):
        counts = range(1, min(128, seats(checkpoint, card(name))) + 1)
        speeds = [rate(checkpoint, card(name), count) for count in counts]
        batches.plot(counts, speeds, label=f"{checkpoint.name}, {name}")
    batches.set(xlabel="plans at once", ylabel="plans a second", title="One card, on paper", ylim=(0, None))
    batches.legend()
    shares = [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0]
    for cards, colour in ((8, "tab:blue"), (64, "tab:orange")):
        for balance, line in zip(BALANCES, ("--", "-"), strict=True):
            p95 = [share([fate.seconds for fate in scaled(cards, load, balance, 120)], 0.95) for load in shares]
            named = "by hash" if balance == "hash" else "less busy of two"
            loads.plot([100 * each for each in shares], p95, line, color=colour, label=f"{cards} GPUs, {named}")
    loads.set(xlabel="load, % of a full batch on every card", ylabel="p95, seconds a plan", ylim=(0, None))
    loads.set_title("Gemma 3 27B in 8 bits on H100s, simulated")
    loads.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--check", action="store_true")
    options.add_argument("--scale", action="store_true")
    options.add_argument("--front")
    options.add_argument("--plot", type=Path)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--replica", type=float, nargs=2, help="fixed and further seconds of a pass; for --check")
    chosen = options.parse_args()
    if chosen.replica:
        replica(Pace(*chosen.replica))
    if chosen.scale:
        scale(max(120, chosen.seconds))
    if chosen.front:
        front(chosen.front)
    if chosen.plot:
        plot(chosen.plot)
    return check(chosen.seconds) if chosen.check else 0


if __name__ == "__main__":
    sys.exit(main())
