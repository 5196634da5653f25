"""Seconds and connections of a download: 2 GB in eight shards from a hub on loopback.

    git worktree add /elsewhere/before 02a489c
    python benchmarks/downloads.py [--before /elsewhere/before] [--rounds 3] [--megabytes 250]

Compares this version, the one in `--before` (with a transfer of its own) and huggingface_hub's `snapshot_download`
alone, each in a process and with an empty cache of its own, one after the other in each round. The hub runs in this
process. Seconds are those of the call, without the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fakes.hub import FakeHub, fake_hub, write_safetensors

ROOT = Path(__file__).parent.parent
SHARDS = 8
OURS = """
import sys, time
try:
    from router_backend.checkpoints import hub
    from router_backend.checkpoints.ladder import Candidate
except ImportError:
    from router_backend import hub
    from router_backend.ladder import Candidate
from router_backend.settings import load_settings
settings = load_settings(hf_endpoint=sys.argv[1], hf_hub_offline=False, hub_timeout=120)
start = time.monotonic()
hub.fetch(Candidate("acme/large", "hub"), settings)
print(time.monotonic() - start)
"""
LIBRARY = """
import sys, time
from huggingface_hub import snapshot_download
start = time.monotonic()
snapshot_download("acme/large", endpoint=sys.argv[1], token=False)
print(time.monotonic() - start)
"""


def write(folder: Path, megabytes: int) -> None:
    place = {}
    for number in range(SHARDS):
        file, name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors", f"model.layers.{number}.mlp.up_proj.weight"
        write_safetensors(folder / file, {name: (500 * megabytes, 1000)})
        place[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")


def run(code: str, source: Path, hub: FakeHub) -> tuple[float, int, int]:
    """Seconds, connections and requests of one download."""
    hub.connections = 0
    hub.asked.clear()
    with tempfile.TemporaryDirectory() as cache:
        own = {"HF_HUB_CACHE": cache, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_ENDPOINT": hub.url}
        environment = {**os.environ, **own, "PYTHONPATH": str(source), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-c", code, hub.url]
        done = subprocess.run(command, env=environment, cwd=cache, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout), hub.connections, len(hub.asked)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=250)
    options = parser.parse_args()
    kinds = {"this version": (OURS, ROOT), "the library alone": (LIBRARY, ROOT)}
    if options.before:
        kinds["before"] = (OURS, options.before)
    found: dict[str, list[tuple[float, int, int]]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder, fake_hub() as hub:
        write(Path(folder), options.megabytes)
        _ = hub.add("acme/large", Path(folder)).files  # its hashes
        for _ in range(options.rounds):
            for name, (code, source) in kinds.items():
                found[name].append(run(code, source, hub))
    for name, results in found.items():
        seconds = [each[0] for each in results]
        print(
            f"{name:18} {statistics.median(seconds):6.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), "
            f"{results[-1][1]} connections, {results[-1][2]} requests"
        )


if __name__ == "__main__":
    main()
