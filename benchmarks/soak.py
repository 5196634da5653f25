"""Soak: many different requests, one client in five leaves at a random moment; then nothing may be left.

    python benchmarks/soak.py [--minutes 15] [--requests 10000] [--engine echo|embedded] [--clients 16]

One request in 200 asks the embedded model for a plan, the others for a few words: a slope needs many requests.
Starts `router-backend serve` and watches its memory, threads and file handles. Exits 1 where an answer was wrong,
memory grows by more than 1 MB in 1,000 requests after the warm-up, threads or handles grow, or a slot is not free at
the end.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import psutil
from serving import server, until_ok

WORDS = ("prove", "bound", "graph", "walk", "kernel", "matrix", "search", "paper", "measure", "derive", "plot", "learn")
SLOPE_LIMIT = 1.0  # MB in 1,000 requests


@dataclass
class Soak:
    url: str
    requests: int
    until: float
    slowest: float
    plans: bool
    seed: int = 1
    outcomes: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> int | None:
        with self.lock:
            if self.sent >= self.requests or time.monotonic() > self.until:
                return None
            self.sent += 1
            return self.sent

    def client(self) -> None:
        with httpx.Client(base_url=self.url, timeout=120) as http:
            while (number := self.next()) is not None:
                outcome = self.ask(http, random.Random(self.seed * 1_000_003 + number))
                with self.lock:
                    self.outcomes[outcome] += 1

    def ask(self, http: httpx.Client, dice: random.Random) -> str:
        prompt = " ".join(dice.choices(WORDS, k=dice.randint(1, 8))) + f" {dice.random()}"
        text = dice.random() < 0.995 or not self.plans  # the echo engine writes none
        body = {
            "prompt": prompt,
            "output": "text" if text else "plan",
            "max_new_tokens": dice.randint(1, 8) if text else dice.randint(210, 700),
            "seed": dice.getrandbits(32),
            "temperature": dice.choice([0, 0.2, 1]),
            "stream": dice.random() < 0.5,
        }
        leaves = dice.random() < 0.2
        try:
            if leaves:
                http.post("/v1/generate", json=body, timeout=httpx.Timeout(120, read=dice.random() * self.slowest))
                return "answered before it left"
            answer = http.post("/v1/generate", json=body)
        except httpx.ReadTimeout:
            return "left"
        if answer.status_code != 200:
            return f"status {answer.status_code} {answer.json()['error']['code']}"
        if body["stream"]:
            return (
                "ok" if answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text else "broken stream"
            )
        if not text:
            json.loads(answer.json()["text"])
        return "ok"


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--minutes", type=float, default=15)
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--engine", choices=["echo", "embedded"], default="echo")
    options.add_argument("--clients", type=int, default=16)
    chosen = options.parse_args()
    variables = {"ENGINE": "echo"} if chosen.engine == "echo" else {"MODEL_REPO": "embedded", "THREADS": "1"}
    with server(**variables) as (url, _):
        until_ok(url)
        watched = process_of(url)
        end, real = time.monotonic() + 60 * chosen.minutes, chosen.engine == "embedded"
        soak = Soak(url, chosen.requests, end, 1 if real else 0.05, plans=real)
        clients = [threading.Thread(target=soak.client) for _ in range(chosen.clients)]
        for client in clients:
            client.start()
        samples = [sample(watched, soak.sent)]
        while any(client.is_alive() for client in clients):
            time.sleep(1)
            samples.append(sample(watched, soak.sent))
        time.sleep(2)
        samples.append(sample(watched, soak.sent))
        queue = httpx.get(f"{url}/health").json()["queue"]
    return report(soak, samples, queue)


def process_of(url: str) -> psutil.Process:
    port = int(url.rpartition(":")[2])
    me = psutil.Process()
    for child in me.children(recursive=True):
        if any(each.laddr and each.laddr.port == port for each in child.net_connections()):
            return child
    raise SystemExit("the server's process is not found")


def sample(process: psutil.Process, sent: int) -> tuple[int, float, int, int]:
    return sent, process.memory_info().rss / 1e6, process.num_threads(), process.num_fds()


def report(soak: Soak, samples: list[tuple[int, float, int, int]], queue: dict[str, int]) -> int:
    warm = [each for each in samples if each[0] >= soak.sent / 4]
    slope = 1000 * statistics.linear_regression([each[0] for each in warm], [each[1] for each in warm]).slope
    print(f"requests {soak.sent}: {dict(soak.outcomes)}")
    eighths = [samples[at * (len(samples) - 1) // 8] for at in range(9)]
    print("MB after so many requests:", ", ".join(f"{each[1]:.1f} ({each[0]})" for each in eighths))
    print(f"after the first quarter {warm[0][1]:.0f} → {warm[-1][1]:.0f} MB, slope {slope:.2f} MB in 1,000 requests")
    print(f"threads {warm[0][2]} → {warm[-1][2]}, handles {warm[0][3]} → {warm[-1][3]}, at the end {queue}")
    wrong = [name for name in soak.outcomes if name not in ("ok", "left", "answered before it left")]
    trouble = [*wrong]
    trouble += ["memory grows"] if slope > SLOPE_LIMIT else []
    trouble += ["threads grow"] if samples[-1][2] > warm[0][2] + 2 else []
    trouble += ["handles grow"] if samples[-1][3] > warm[0][3] + 2 else []
    trouble += ["a slot is not free"] if queue["running"] or queue["waiting"] else []
    print("wrong:", ", ".join(trouble) if trouble else "nothing")
    return int(bool(trouble))


if __name__ == "__main__":
    sys.exit(main())
