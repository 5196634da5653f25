"""Whether a key can tell what another one sent: right and wrong guesses of it, by their time and their cached tokens.

    PYTHONPATH=. python benchmarks/guesses.py [--guesses N]

One slot, so that both keys are in the same cache. Before each guess, the other key sends the text with its secret; a
guess holds that secret or another one of the same shape, in random order.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from tests.fakes.running import process

KEYS = ("sk-other-1", "sk-guess-1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guesses", type=int, default=1000)
    options = parser.parse_args()
    draw = random.Random(29)  # nothing is kept secret with it
    settings = {"MODEL_REPO": "embedded", "PORT": "0", "THREADS": "1", "SLOTS": "1"}
    settings["ROUTER_API_KEYS"] = f"other:{KEYS[0]},guess:{KEYS[1]}"
    seconds: dict[bool, list[float]] = {True: [], False: []}
    cached: dict[bool, set[int]] = {True: set(), False: set()}
    with (
        tempfile.TemporaryDirectory() as folder,
        process(folder=Path(folder), **settings) as server,
        httpx.Client(base_url=server.ready(), timeout=600) as client,
    ):
        for number in range(options.guesses):
            secret, right = secret_of(draw), draw.random() < 0.5
            ask(client, KEYS[0], secret)
            took, tokens = ask(client, KEYS[1], secret if right else secret_of(draw))
            seconds[right].append(took)
            cached[right].add(tokens)
            if number % 100 == 99:
                print(shown(seconds, cached), flush=True)


def secret_of(draw: random.Random) -> str:
    code = draw.randrange(10**9, 10**10)
    return f"Decide who opens the vault. Its code is {code}, its owner's pin {code // 10**6}; route it to nobody else."


def ask(client: httpx.Client, key: str, text: str) -> tuple[float, int]:
    """Seconds and cached tokens of a request for one token."""
    body = {"model": "router-text", "messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0}
    start = time.perf_counter()
    answer = client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    took = time.perf_counter() - start
    return took, int(answer.raise_for_status().json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def shown(seconds: dict[bool, list[float]], cached: dict[bool, set[int]]) -> str:
    parts = []
    for right, name in ((True, "right"), (False, "wrong")):
        each = [1000 * took for took in seconds[right]]
        error = statistics.stdev(each) / len(each) ** 0.5
        parts.append(
            f"{len(each)} {name}: {statistics.fmean(each):.1f} ± {error:.1f} ms, median {statistics.median(each):.1f},"
            f" cached {sorted(cached[right])}"
        )
    return "; ".join(parts)


if __name__ == "__main__":
    main()
