"""What the server adds to the engine: start-up, a load, one request's overhead, several clients' throughput, cancel.

Starts `router-backend serve` on a free port of loopback for each part and ends it. Interleaves what it compares.

    python benchmarks/serving.py [start] [plans] [load] [overhead] [throughput] [cancel]
    BEFORE=../before python benchmarks/serving.py plans   # in turns with the checkout of another version
    BUSY=1 python benchmarks/serving.py plans             # beside a process that keeps a core busy
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from router_backend.checkpoints.embedded import base

PROMPT = "Tell a long story about a lighthouse keeper and the sea, with many details."
_ADDRESS = re.compile(r"http://[\d.]+:\d+")


@contextlib.contextmanager
def server(tree: Path | None = None, /, **environment: str) -> Iterator[tuple[str, float]]:
    """The server's address, and when its process was started; of the checkout `tree`, if there is one."""
    command = [sys.executable, "-m", "router_backend.cli", "serve", "--port", "0"]
    began = time.monotonic()
    variables = {**os.environ, "MODEL_REPO": "embedded", **environment}
    process = subprocess.Popen(command, env=variables, cwd=tree, stderr=subprocess.PIPE, text=True)
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
    answer = client.post(f"{url}/v1/generate", json={"output": "text", "details": True, **fields}, timeout=330)
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


def plans() -> None:
    """Wall seconds of process start → ready, of a plan, of another one, and of four at once.

    `TOKENS` (600) is their budget, `ROUNDS` (5) how often each version starts, and `BUSY=1` gives them a neighbour that
    wants a core for itself.
    """
    trees = [Path(__file__).parents[1], *map(Path, filter(None, [os.environ.get("BEFORE")]))]
    rows: dict[Path, list[tuple[float, ...]]] = {tree: [] for tree in trees}
    tokens = int(os.environ.get("TOKENS", "600"))
    body = {"prompt": PROMPT, "output": "plan", "max_new_tokens": tokens, "temperature": 0}
    with neighbour() if os.environ.get("BUSY") else contextlib.nullcontext():
        for turn in range(int(os.environ.get("ROUNDS", "5"))):
            for tree in trees[:: -1 if turn % 2 else 1]:
                with server(tree) as (url, began), httpx.Client() as client, ThreadPoolExecutor(4) as pool:
                    until_ok(url)
                    times = [began, time.monotonic()]
                    for clients in (1, 1, 4):
                        work = [pool.submit(generate, client, url, **body, seed=seed) for seed in range(clients)]
                        for plan in work:
                            plan.result()
                        times.append(time.monotonic())
                    rows[tree].append(tuple(after - before for before, after in pairwise(times)))
    for tree, measured in rows.items():
        each = [f"{statistics.median(values):.1f} (worst {max(values):.1f})" for values in zip(*measured, strict=True)]
        print(f"{tree}: ready after {each[0]} s, first plan {each[1]} s, second {each[2]} s, four at once {each[3]} s")


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def large(path: Path) -> None:
    """A GGUF of 1.6 GB in Q8_0, which llama.cpp repacks: the embedded base's tokenizer, random weights."""
    reader = GGUFReader(base())
    width, inner, heads, layers = 2048, 8192, 32, 24
    sizes = {"block_count": layers, "embedding_length": width, "feed_forward_length": inner, "rope.dimension_count": 64}
    sizes |= {"attention.head_count": heads, "attention.head_count_kv": 8}
    writer = GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = sizes.get(name.removeprefix("llama."), field.contents())
        writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    writer.add_key_value("llama.attention.key_length", 64, GGUFValueType.UINT32)
    writer.add_key_value("llama.attention.value_length", 64, GGUFValueType.UINT32)
    random = np.random.default_rng(1)
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    shapes = {"token_embd": (vocabulary, width), "output_norm": (width,)}
    for layer in range(layers):
        block = {"attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, width), "attn_output": (width, width)}
        block |= {"attn_k": (width // 4, width), "attn_v": (width // 4, width), "ffn_down": (width, inner)}
        block |= {"ffn_gate": (inner, width), "ffn_up": (inner, width)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
            continue
        packed = random.integers(0, 256, (shape[0], shape[1] // 32, 34), np.uint8)
        packed[:, :, :2] = np.frombuffer(np.float16(0.0002).tobytes(), np.uint8)  # each block's scale
        packed = packed.reshape(shape[0], -1)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load() -> None:
    """`/livez`, asked every 20 ms while a large file loads: how long it takes to answer."""
    with tempfile.TemporaryDirectory() as folder:
        large(path := Path(folder) / "large.gguf")
        for _ in range(3):
            with server(MODEL_REPO=str(path)) as (url, began), httpx.Client(timeout=60) as client:
                times = []
                while True:
                    asked = time.monotonic()
                    answer = client.get(f"{url}/livez")
                    times.append(1000 * (time.monotonic() - asked))
                    assert answer.status_code == 200
                    if answer.json()["phase"] == "serving":
                        break
                    time.sleep(0.02)
            times.sort()
            p50, p99 = statistics.median(times), times[int(0.99 * len(times))]
            print(
                f"{path.stat().st_size / 1e9:.1f} GB, ready after {time.monotonic() - began:.1f} s: "
                f"/livez {len(times)} times, p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {times[-1]:.1f} ms"
            )


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
    parts = {
        "start": start,
        "plans": plans,
        "load": load,
        "overhead": overhead,
        "throughput": throughput,
        "cancel": cancel,
    }
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
