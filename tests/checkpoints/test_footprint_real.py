"""The estimate against what is really there, in every precision, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache

from router_backend.checkpoints.description import Folder, describe
from router_backend.checkpoints.footprint import estimate
from router_backend.engines.transformers.runner import cache_argument

pytestmark = [pytest.mark.torch, pytest.mark.real]

FOUR_BITS = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)


def tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, buffers, and what bitsandbytes keeps beside its weights."""
    yield from model.buffers()
    for weight in model.parameters():
        yield weight
        state = getattr(weight, "quant_state", None)
        beside = [getattr(weight, "SCB", None)]
        while state is not None:
            beside += [getattr(state, name, None) for name in ("absmax", "code", "offset")]
            state = getattr(state, "state2", None)
        yield from (each for each in beside if isinstance(each, torch.Tensor))


def measured(model: torch.nn.Module) -> int:
    """Bytes of storage, each once."""
    storages = (each.untyped_storage() for each in tensors(model))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize(
    ("strategy", "dtype", "quantization"),
    [
        ("8bit", torch.bfloat16, BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)),
        ("4bit", torch.bfloat16, FOUR_BITS),
        ("bf16", torch.bfloat16, None),
        ("fp16", torch.float16, None),
        ("cpu", torch.float32, None),
        ("cpu", torch.bfloat16, None),
    ],
)
def test_weights_are_foreseen(
    shallow_checkpoint: Path, strategy: str, dtype: torch.dtype, quantization: BitsAndBytesConfig | None
) -> None:
    options: dict[str, Any] = {"quantization_config": quantization} if quantization else {}
    model = AutoModelForCausalLM.from_pretrained(shallow_checkpoint, dtype=dtype, device_map={"": "cpu"}, **options)
    known = describe(Folder(shallow_checkpoint))
    foreseen = estimate(known, strategy, 2048, 1, dtype=str(dtype).removeprefix("torch."))
    print(f"\n{strategy} {dtype}: {foreseen.weights / 1e6:.2f} MB foreseen, {measured(model) / 1e6:.2f} MB measured")
    assert foreseen.weights == pytest.approx(measured(model), rel=0.001)
    # And after a pass, where the engine's own kernels may have packed the weights anew; with the pass's own cache.
    with torch.inference_mode():
        cache = DynamicCache()
        model(torch.arange(64)[None], use_cache=True, **{cache_argument(model): cache})
    assert foreseen.weights == pytest.approx(measured(model), rel=0.02)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kept * 2048 // 64 == foreseen.cache
