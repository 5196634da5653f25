"""Footprint: the memory that a checkpoint needs in each precision, before any of it is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from router_backend.checkpoints.description import Checkpoint
from router_backend.checkpoints.machine import Machine

# bitsandbytes' NF4: half a byte a parameter; each block of 64 has a scale of one byte, and each 256 of those scales a
# float32 scale of their own (double quantisation): 0.515869 bytes. A matrix also keeps two tables and an offset:
# 16, 256 and 1 float32. (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
NF4_TABLES = 4 * (16 + 256 + 1)
# LLM.int8: a byte a parameter, and a float32 scale for each output row.
INT8_ROW = 4

PASS_TOKENS = 512  # of a prompt, at most, in one forward pass
LOGIT_ROWS = 32  # positions of a pass whose logits are looked at: one, and those of a draft
RUNTIME = 500_000_000  # libraries and their buffers on the CPU, the CUDA context on a card

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes.

    Attributes:
        weights: of the model in this precision.
        cache: keys and values of every token of the context, in every slot.
        working: what one forward pass of `PASS_TOKENS` tokens needs beside them.
        runtime: what is there before a model is.
        block: weights of one block, the smallest part that moves to another card.
    """

    strategy: str
    weights: int
    cache: int
    working: int
    runtime: int = RUNTIME
    block: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.working + self.runtime

    def __str__(self) -> str:
        sizes = {"weights": self.weights, "cache": self.cache, "working space": self.working, "runtime": self.runtime}
        parts = ", ".join(f"{gigabytes(size)} {name}" for name, size in sizes.items() if size)
        return f"needs {gigabytes(self.total)} GB at {self.strategy}: {parts}"


def estimate(
    checkpoint: Checkpoint, strategy: str, context_length: int, slots: int, *, dtype: str = "bfloat16"
) -> Footprint:
    """What a checkpoint needs in a precision; `dtype` is what it computes in where the precision does not say."""
    element = 4 if dtype == "float32" and strategy not in ("bf16", "fp16") else 2
    text = checkpoint.text
    hidden, heads = _figure(text, "hidden_size"), _figure(text, "num_attention_heads")
    layers, wide = _figure(text, "num_hidden_layers"), _figure(text, "intermediate_size")
    kv_heads = _figure(text, "num_key_value_heads") or heads
    head_dim = _figure(text, "head_dim") or (hidden // heads if heads else 0)
    context = min(context_length, _figure(text, "max_position_embeddings") or context_length)
    weights = _weights(checkpoint, strategy, element)
    if not layers:  # a config without these figures: the weights are known, the rest is small beside them
        return Footprint(strategy, weights, 0, 0)
    activations = PASS_TOKENS * (4 * hidden + 3 * wide) * element
    scores = PASS_TOKENS * context * heads * element
    logits = LOGIT_ROWS * _figure(text, "vocab_size") * 4
    unpacked = hidden * wide * element if _unpacks(checkpoint, strategy) else 0
    return Footprint(
        strategy,
        weights,
        cache=2 * layers * kv_heads * head_dim * element * context * slots,
        working=activations + scores + logits + unpacked,
        block=weights // layers,
    )


def shortfall(needs: Footprint, machine: Machine, device: Device) -> str | None:
    """Why it does not fit into what is free, as arithmetic; None where it does."""
    return None if needs.total <= _room(needs, machine, device) else f"{needs}; {room(machine, device)}"


def disk_shortfall(needed: int, place: Path) -> str | None:
    """Why as many bytes do not fit on the disk where a place is, which need not exist yet; None where they do."""
    there = next(each for each in (place, *place.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    return None if needed <= free else f"needs {gigabytes(needed)} GB of disk, {gigabytes(free)} GB free in {place}"


def room(machine: Machine, device: Device) -> str:
    """What is free, as a phrase."""
    if device == "cpu":
        return f"{gigabytes(machine.free_bytes)} GB of memory free"
    free = [f"{gigabytes(card.free_bytes)} GB free on cuda:{i}" for i, card in enumerate(machine.accelerators)]
    return " and ".join(free)


def cpu_dtype(machine: Machine) -> tuple[str, str]:
    """The number format that the processor is fast at, and why: `("bfloat16", …)` or `("float32", …)`."""
    for feature in ("amx_bf16", "avx512_bf16", "bf16", "svebf16"):  # x86 twice, Arm twice
        if feature in machine.features:
            return "bfloat16", f"the processor multiplies bfloat16 ({feature}), and it is half as much to read"
    if not machine.features:
        return "float32", "the system does not tell what the processor can do"
    return "float32", "the processor has no bfloat16 arithmetic (no amx_bf16, avx512_bf16, bf16)"


def gigabytes(size: float) -> str:
    """Decimal, with the digits that matter: `54.0`, `0.27`."""
    return f"{size / 1e9:.1f}" if size >= 950_000_000 else f"{size / 1e9:.2f}"


def _unpacks(checkpoint: Checkpoint, strategy: str) -> bool:
    """Whether one matrix at a time is unpacked while it is multiplied."""
    return strategy in ("8bit", "4bit") or checkpoint.quantized in ("awq", "gptq")


def _weights(checkpoint: Checkpoint, strategy: str, element: int) -> int:
    linear, other = checkpoint.linear, checkpoint.other * element
    if strategy == "8bit":
        return linear + checkpoint.rows * INT8_ROW + other
    if strategy == "4bit":
        return round(linear * NF4_BYTES) + checkpoint.matrices * NF4_TABLES + other
    if strategy in ("bf16", "fp16", "cpu"):
        return linear * element + other
    if checkpoint.quantized == "compressed-tensors":  # its weights are unpacked by the first forward pass, and stay so
        return max(checkpoint.stored_bytes, linear * 2 + checkpoint.other * 2)
    return checkpoint.stored_bytes


def _room(needs: Footprint, machine: Machine, device: Device) -> int:
    """Bytes that this model can use. On several cards it is laid out block by block, so part of each may stay empty."""
    if device == "cpu":
        return machine.free_bytes
    free = [card.free_bytes for card in machine.accelerators]
    together = sum(free) - (len(free) - 1) * (needs.runtime + needs.block)
    return max([*free, together], default=0)


def _figure(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) else 0
