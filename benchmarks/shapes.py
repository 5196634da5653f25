"""Large checkpoints without their weights' worth: a model of a known shape with random weights, in each precision.

    python benchmarks/shapes.py --shape gemma3-27b --strategies 8bit,4bit,bf16 --folder /big/disk/shape      on a GPU
    python benchmarks/shapes.py --shape tiny --strategies 8bit,4bit,bf16 --cpu                               anywhere

Writes the checkpoint (safetensors in shards, as a hub has it; 54 GB for Gemma 3 27B; `--layers` takes fewer of its
blocks), loads it through the engine, and prints seconds, footprint against the estimate, milliseconds a forward pass
for one token and for a draft of sixteen, and the share of the memory bandwidth that one-token decoding reaches: the
weights must be read once for each pass, so bandwidth / weights is the most passes a second that there can be.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from router_backend.checkpoints import embedded
from router_backend.checkpoints.footprint import estimate
from router_backend.checkpoints.hub import Hub
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines.transformers.load import load
from router_backend.settings import load_settings

# Out of the public configurations.
SHAPES: dict[str, dict[str, Any]] = {
    "gemma3-27b": {
        "model_type": "gemma3_text",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "vocab_size": 262208,
        "sliding_window": 1024,
        "query_pre_attn_scalar": 168,
        "max_position_embeddings": 131072,
    },
    "llama31-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    },
    "tiny": {
        "model_type": "gemma3_text",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 49152,
        "sliding_window": 256,
        "max_position_embeddings": 8192,
    },
}
_SHARD = 4_000_000_000
_TOKENS = 1024
_TURNS = 20


def make(shape: str, layers: int | None, folder: Path) -> None:
    """Writes the checkpoint, one shard in memory at a time."""
    if (folder / "model.safetensors.index.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    figures = {**SHAPES[shape], **({"num_hidden_layers": layers} if layers else {})}
    config = AutoConfig.for_model(**figures, tie_word_embeddings=True, dtype="bfloat16")
    config.save_pretrained(folder)
    with torch.device("meta"):
        wanted = AutoModelForCausalLM.from_config(config).state_dict()
    wanted.pop("lm_head.weight", None)  # tied
    place: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    number = size = 0
    names = list(wanted)
    for name in names:
        shard[name] = torch.empty(wanted[name].shape, dtype=torch.bfloat16).normal_(0, 0.02)
        size += shard[name].nbytes
        if size >= _SHARD or name == names[-1]:
            number += 1
            file = f"model-{number:05}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            place.update(dict.fromkeys(shard, file))
            shard, size = {}, 0
    total = sum(each.numel() * 2 for each in wanted.values())
    index = {"metadata": {"total_size": total}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    gguf = embedded.base()
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def bandwidth(device: str) -> float:
    """Bytes a second that a large copy reads and writes together."""
    block = torch.empty(2**30 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    best = 0.0
    for _ in range(5):
        _sync(device)
        began = time.monotonic()
        target.copy_(block)
        _sync(device)
        best = max(best, 2 * block.nbytes / (time.monotonic() - began))
    return best


def _sync(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(strategy: str, folder: Path, device: str, speed: float) -> None:
    settings = load_settings(model_device="cpu" if device == "cpu" else "auto")
    candidate = Candidate(str(folder), "folder")
    expected = estimate(Hub(settings).describe(candidate), strategy, settings.context_length, settings.slots)
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    model = load(Rung(candidate, strategy), settings, folder)
    _sync(device)
    seconds = time.monotonic() - began
    runner = model._runner
    inner = runner._model  # type: ignore[attr-defined]
    weights = sum(each.numel() * each.element_size() for each in (*inner.parameters(), *inner.buffers()))
    if device == "cuda":
        weights = torch.cuda.memory_allocated()
    sequence = [7 + index % 40_000 for index in range(_TOKENS)]
    runner.run(sequence, [], lambda: False)
    times: dict[int, float] = {}
    for draft in (0, 16):
        spent = []
        for turn in range(_TURNS):
            sequence.append(100 + turn)
            _sync(device)
            start = time.monotonic()
            runner.run(sequence, [9] * draft, lambda: False)
            _sync(device)
            spent.append(time.monotonic() - start)
        times[draft] = sorted(spent)[_TURNS // 2]
    peak = f"{torch.cuda.max_memory_allocated() / 1e9:.2f}" if device == "cuda" else "-"
    share = weights / times[0] / speed
    print(
        f"{strategy} | {seconds:.1f} | {weights / 1e9:.2f} | {expected.weights / 1e9:.2f} | "
        f"{weights / expected.weights - 1:+.1%} | {peak} | {expected.total / 1e9:.2f} | {1000 * times[0]:.1f} | "
        f"{1000 * times[16]:.1f} | {1 / times[0]:.1f} | {share:.0%}",
        flush=True,
    )
    model.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="gemma3-27b")
    parser.add_argument("--layers", type=int, help="blocks, where fewer than the shape's")
    parser.add_argument("--strategies", default="8bit,4bit,bf16")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is written to")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    device = "cpu" if options.cpu else "cuda"
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        began = time.monotonic()
        make(options.shape, options.layers, folder)
        speed = bandwidth(device)
        print(f"{options.shape}: written in {time.monotonic() - began:.0f} s; memory moves {speed / 1e9:.0f} GB/s")
        print(
            "rung | load s | weights GB | estimated | off by | peak GB | estimated in all | ms a pass | "
            "with a draft of 16 | passes/s | of the bandwidth"
        )
        for strategy in options.strategies.split(","):
            measure(strategy, folder, device, speed)


if __name__ == "__main__":
    main()
