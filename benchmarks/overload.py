"""Overload: 200 clients against four slots, beside as many clients as slots; and what `/livez` says meanwhile.

    python benchmarks/overload.py [--seconds 20] [--clients 200]

The embedded model, texts of 16 tokens. Refused clients come back when `Retry-After` says. Exits 1 where a refusal is
not well-formed or an answer is wrong. Goodput is whole answers a second, counted when all clients are at work: before
that it is the clients' own start that is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
from serving import server, until_ok

STARTING = 3.0  # seconds that do not count
BODY = {"prompt": "Tell a story about the sea.", "output": "text", "max_new_tokens": 16, "temperature": 0.7}


@dataclass
class Run:
    url: str
    seconds: float
    outcomes: Counter[str] = field(default_factory=Counter)
    probes: list[float] = field(default_factory=list)

    async def client(self, http: httpx.AsyncClient) -> None:
        start = time.monotonic() + STARTING
        end = start + self.seconds
        while time.monotonic() < end:
            answer = await http.post("/v1/generate", json=BODY)
            if answer.status_code == 200:
                self.outcomes["ok" if answer.json()["text"] else "empty"] += start < time.monotonic() < end
                continue
            error = answer.json()["error"]
            formed = answer.status_code == 429 and error["type"] == "rate_limit_error" and error["code"]
            wait = int(answer.headers.get("retry-after", 0))
            self.outcomes["refused" if formed and wait >= 1 else f"ill-formed {answer.status_code}"] += 1
            await asyncio.sleep(min(wait, max(0.0, end - time.monotonic())))

    async def probe(self, http: httpx.AsyncClient) -> None:
        while True:
            began = time.monotonic()
            (await http.get("/livez")).raise_for_status()
            self.probes.append(time.monotonic() - began)
            await asyncio.sleep(0.05)

    async def go(self, clients: int) -> Run:
        # Making a client costs 20 ms, 4 s for 200 of them: one for all, with a connection for each.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=300, limits=limits) as http:
            probe = asyncio.create_task(self.probe(http))
            await asyncio.gather(*(self.client(http) for _ in range(clients)))
            probe.cancel()
        return self

    @property
    def goodput(self) -> float:
        return self.outcomes["ok"] / self.seconds

    def __str__(self) -> str:
        probes = sorted(self.probes)
        p50, p99 = probes[len(probes) // 2], probes[int(0.99 * len(probes))]
        times = f"/livez p50 {1000 * p50:.0f} ms p99 {1000 * p99:.0f} ms"
        return f"{self.goodput:.2f} answers/s, {times}, {dict(self.outcomes)}"


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=20)
    options.add_argument("--clients", type=int, default=200)
    chosen = options.parse_args()
    wrong = False
    with server(SLOTS="4", THREADS="1", QUEUE_LIMIT="32") as (url, _):
        until_ok(url)
        asyncio.run(Run(url, 3).go(4))
        for turn in range(2):
            knee = asyncio.run(Run(url, chosen.seconds).go(4))
            over = asyncio.run(Run(url, chosen.seconds).go(chosen.clients))
            print(f"{turn}: 4 clients    {knee}\n   {chosen.clients} clients  {over}")
            print(f"   goodput at overload: {over.goodput / max(knee.goodput, 1e-9):.0%} of that at the knee")
            wrong |= bool((knee.outcomes + over.outcomes).keys() - {"ok", "refused"})
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
