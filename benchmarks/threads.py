"""llama.cpp's threads beside a busy neighbour: `python benchmarks/threads.py [--rounds 4] [--tokens 40]`.

All ways to run are loaded at once and take turns, with one stream and with four, without and with a neighbour
(`python -c "while True: pass"`). Tokens a second: the median of the rounds, and the best. The load of the machine is
printed before and after: what else runs is a neighbour too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from router_backend.checkpoints.embedded import checkpoint
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines.llamacpp import LlamaCppModel, load
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, SamplingParams

SLOTS = 4
# Threads, and the variables of OpenMP, where they are not the engine's own.
WAYS: dict[str, tuple[int, dict[str, str]]] = {
    "the default": (0, {}),
    "1 thread": (1, {}),
    "2 threads": (2, {}),
    "2 threads, 1,000 turns": (2, {"GOMP_SPINCOUNT": "1000"}),
    "2 threads, passive": (2, {"OMP_WAIT_POLICY": "passive"}),
}


def loaded(threads: int, variables: dict[str, str]) -> LlamaCppModel:
    kept = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        settings = load_settings(threads=threads, slots=SLOTS, context_length=1024)
        model = load(Rung(Candidate("embedded", "embedded"), "gguf"), settings, checkpoint())
        assert isinstance(model, LlamaCppModel)
        return model
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def rate(model: LlamaCppModel, streams: int, tokens: int) -> float:
    """Tokens a second of all streams together."""

    def write(slot: int) -> int:
        asked = GenerateRequest(
            "t", f"Tell story {slot}.", SamplingParams(tokens, seed=1), grammar="start: /[a-z ]{9999}/"
        )
        return list(model.generate(asked, lambda: False, slot))[-1].usage.completion_tokens

    begin = time.monotonic()
    with ThreadPoolExecutor(streams) as pool:
        return sum(pool.map(write, range(streams))) / (time.monotonic() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    chosen = parser.parse_args()
    print("load", os.getloadavg()[0])
    models = {way: loaded(*WAYS[way]) for way in chosen.ways}
    rates: dict[tuple[str, bool, int], list[float]] = defaultdict(list)
    try:
        for _ in range(chosen.rounds):
            for busy in (False, True):
                command = [sys.executable, "-c", "while True: pass" if busy else ""]
                with subprocess.Popen(command) as neighbour:
                    for way, model in models.items():
                        for streams in (1, SLOTS):
                            rates[way, busy, streams].append(rate(model, streams, chosen.tokens))
                    neighbour.kill()
    except KeyboardInterrupt:
        pass
    finally:
        for model in models.values():
            model.close()
    print("| | idle: 1 stream | 4 streams | one busy neighbour: 1 stream | 4 streams |\n|---|---|---|---|---|")
    for way in models:
        found = [rates[way, busy, streams] for busy in (False, True) for streams in (1, SLOTS)]
        cells = [f"{statistics.median(each):.0f} (best {max(each):.0f})" if each else "" for each in found]
        print(f"| {' | '.join([way, *cells])} |", flush=True)
    print("load", os.getloadavg()[0])


if __name__ == "__main__":
    main()
