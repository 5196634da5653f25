"""Figures that can be recomputed by hand, for the checkpoints that routers are made of. No weights, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from router_backend.checkpoints.description import Checkpoint, Folder, count, describe
from router_backend.checkpoints.footprint import NF4_BYTES, Footprint, cpu_dtype, estimate, gigabytes, room, shortfall
from router_backend.checkpoints.machine import Accelerator, Machine
from tests.fakes.hub import write_safetensors

Shapes = dict[str, tuple[int, ...]]

# As their config.json has them.
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
QWEN_32B: dict[str, Any] = {
    "model_type": "qwen3",
    "num_hidden_layers": 64,
    "hidden_size": 5120,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 25600,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}
GEMMA_27B: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 62,
        "hidden_size": 5376,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "intermediate_size": 21504,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
}


def decoder(config: dict[str, Any], norms: tuple[str, ...], *, head_norms: bool, prefix: str = "model.") -> Shapes:
    """The tensors of a language model of the Llama kind."""
    hidden, wide, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    q, kv = heads * head_dim, config["num_key_value_heads"] * head_dim
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (config["vocab_size"], hidden), f"{prefix}norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        block = f"{prefix}layers.{layer}"
        shapes |= {
            f"{block}.self_attn.q_proj.weight": (q, hidden),
            f"{block}.self_attn.k_proj.weight": (kv, hidden),
            f"{block}.self_attn.v_proj.weight": (kv, hidden),
            f"{block}.self_attn.o_proj.weight": (hidden, q),
            f"{block}.mlp.gate_proj.weight": (wide, hidden),
            f"{block}.mlp.up_proj.weight": (wide, hidden),
            f"{block}.mlp.down_proj.weight": (hidden, wide),
        }
        shapes |= {f"{block}.{norm}.weight": (hidden,) for norm in norms}
        if head_norms:
            shapes |= {f"{block}.self_attn.{each}_norm.weight": (head_dim,) for each in "qk"}
    return shapes


def siglip(prefix: str = "vision_tower.vision_model.") -> Shapes:
    """Gemma's eyes: 27 blocks of 1152 and 4304, patches of 14 x 14 pixels, 4096 of them."""
    shapes: Shapes = {
        f"{prefix}embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        f"{prefix}embeddings.patch_embedding.bias": (1152,),
        f"{prefix}embeddings.position_embedding.weight": (4096, 1152),
        f"{prefix}post_layernorm.weight": (1152,),
        f"{prefix}post_layernorm.bias": (1152,),
        "multi_modal_projector.mm_input_projection_weight": (1152, 5376),
        "multi_modal_projector.mm_soft_emb_norm.weight": (1152,),
    }
    for layer in range(27):
        block = f"{prefix}encoder.layers.{layer}"
        for name, (rows, columns) in {
            **{f"self_attn.{each}": (1152, 1152) for each in ("q_proj", "k_proj", "v_proj", "out_proj")},
            "mlp.fc1": (4304, 1152),
            "mlp.fc2": (1152, 4304),
        }.items():
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{block}.{norm}.weight": (1152,), f"{block}.{norm}.bias": (1152,)}
    return shapes


def llama_8b() -> Checkpoint:
    shapes = decoder(LLAMA_8B, ("input_layernorm", "post_attention_layernorm"), head_norms=False)
    return count(LLAMA_8B, {**shapes, "lm_head.weight": (128256, 4096)}, 16_060_556_376)


def qwen_32b() -> Checkpoint:
    shapes = decoder(QWEN_32B, ("input_layernorm", "post_attention_layernorm"), head_norms=True)
    return count(QWEN_32B, {**shapes, "lm_head.weight": (151936, 5120)}, 65_524_246_528)


def gemma_27b() -> Checkpoint:
    around = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
    norms = ("input_layernorm", "post_attention_layernorm", *around)
    text = decoder(GEMMA_27B["text_config"], norms, head_norms=True, prefix="language_model.model.")
    return count(GEMMA_27B, {**text, **siglip()}, 54_864_813_280)


@pytest.mark.parametrize(
    ("known", "parameters", "linear"),
    [
        # A block of Llama: q and o 4096 x 4096, k and v 1024 x 4096, three of 14336 x 4096.
        (llama_8b(), 8_030_261_248, 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096)),
        # Of Qwen: q and o 8192 x 5120 (its heads are wider than its hidden size), k and v 1024 x 5120.
        (qwen_32b(), 32_762_123_264, 64 * (2 * 8192 * 5120 + 2 * 1024 * 5120 + 3 * 25600 * 5120)),
        # Of Gemma: q and o 4096 x 5376, k and v 2048 x 5376; and of its eyes.
        (
            gemma_27b(),
            27_432_406_640,
            62 * (2 * 4096 * 5376 + 2 * 2048 * 5376 + 3 * 21504 * 5376) + 27 * (4 * 1152 * 1152 + 2 * 4304 * 1152),
        ),
    ],
    ids=["Llama 3.1 8B", "Qwen 3 32B", "Gemma 3 27B"],
)
def test_parameters_as_they_are_published(known: Checkpoint, parameters: int, linear: int) -> None:
    assert known.linear + known.other == parameters
    assert known.linear == linear


@pytest.mark.parametrize(
    ("known", "in_16_bits", "in_8_bits", "in_4_bits", "in_float32"),
    [
        # 8.03 G x 2. Linear 6.98 G: x 1, and x 0.516; the other 1.05 G x 2.
        (llama_8b(), 16.06, 6.98 + 2.10, 6.98 * 0.516 + 2.10, 32.12),
        # 32.76 G. Linear 31.21 G, other 1.56 G.
        (qwen_32b(), 65.52, 31.21 + 3.11, 31.21 * 0.516 + 3.11, 131.05),
        # 27.43 G. Linear 26.01 G, other 1.42 G, nearly all of it the embedding of 262208 x 5376.
        (gemma_27b(), 54.86, 26.01 + 2.85, 26.01 * 0.516 + 2.85, 109.73),
    ],
    ids=["Llama 3.1 8B", "Qwen 3 32B", "Gemma 3 27B"],
)
def test_weights_in_every_precision(
    known: Checkpoint, in_16_bits: float, in_8_bits: float, in_4_bits: float, in_float32: float
) -> None:
    def weights(strategy: str, dtype: str = "bfloat16") -> float:
        return estimate(known, strategy, 4096, 1, dtype=dtype).weights / 1e9

    assert weights("bf16") == weights("fp16") == weights("cpu") == pytest.approx(in_16_bits, abs=0.01)
    assert weights("8bit") == pytest.approx(in_8_bits, abs=0.04)  # 4 bytes more for each output row
    assert weights("4bit") == pytest.approx(in_4_bits, abs=0.04)
    assert weights("cpu", "float32") == pytest.approx(in_float32, abs=0.01)
    assert weights("native") == known.stored_bytes / 1e9


@pytest.mark.parametrize(
    ("known", "bytes_a_token"),
    [
        (llama_8b(), 2 * 32 * 8 * 128 * 2),  # keys and values, layers, heads, head, bytes
        (qwen_32b(), 2 * 64 * 8 * 128 * 2),
        (gemma_27b(), 2 * 62 * 16 * 128 * 2),  # layers with a sliding window keep everything too
    ],
    ids=["Llama 3.1 8B", "Qwen 3 32B", "Gemma 3 27B"],
)
def test_the_cache_of_every_token_in_every_slot(known: Checkpoint, bytes_a_token: int) -> None:
    assert estimate(known, "8bit", 4096, 1).cache == 4096 * bytes_a_token
    assert estimate(known, "bf16", 4096, 4).cache == 4 * 4096 * bytes_a_token
    assert estimate(known, "cpu", 4096, 4, dtype="float32").cache == 2 * 4 * 4096 * bytes_a_token
    longest = known.text["max_position_embeddings"]
    assert estimate(known, "bf16", 10 * longest, 1).cache == longest * bytes_a_token


def test_working_space() -> None:
    # A pass of 512 tokens: 4 of the hidden size and 3 of the feed-forward size, 2 bytes each; its scores against 4096
    # tokens in 32 heads; 32 rows of logits in float32. In 8 and 4 bits also one matrix unpacked.
    plain = 512 * (4 * 4096 + 3 * 14336) * 2 + 512 * 4096 * 32 * 2 + 32 * 128256 * 4
    assert estimate(llama_8b(), "bf16", 4096, 4).working == plain
    assert estimate(llama_8b(), "4bit", 4096, 4).working == plain + 4096 * 14336 * 2
    assert plain < 0.25e9


def test_nf4_with_double_quantisation() -> None:
    """4 bits, 8 bits for each 64 parameters, 32 bits for each 64 x 256: 4.127 bits, as the paper has it."""
    assert NF4_BYTES * 8 == 4 + 8 / 64 + 32 / (64 * 256)
    assert round(NF4_BYTES * 8, 3) == 4.127


def test_the_figures_are_told() -> None:
    assert str(estimate(gemma_27b(), "bf16", 4096, 1)) == (
        "needs 57.7 GB at bf16: 54.9 weights, 2.1 cache, 0.26 working space, 0.50 runtime"
    )
    assert gigabytes(54_000_000_000) == "54.0" and gigabytes(269_000_000) == "0.27" and gigabytes(949_999_999) == "0.95"


def test_what_is_missing_is_told() -> None:
    needs = Footprint("bf16", int(53e9), int(0.5e9), 0)
    machine = Machine("x86_64", 8, int(64e9), int(32e9), (Accelerator("Some GPU", int(48e9), int(47.5e9)),))
    assert shortfall(needs, machine, "cuda") == (
        "needs 54.0 GB at bf16: 53.0 weights, 0.50 cache, 0.50 runtime; 47.5 GB free on cuda:0"
    )
    assert shortfall(needs, machine, "cpu") == (
        "needs 54.0 GB at bf16: 53.0 weights, 0.50 cache, 0.50 runtime; 32.0 GB of memory free"
    )
    assert shortfall(Footprint("bf16", int(31e9), 0, 0), machine, "cpu") is None


def test_several_cards_hold_whole_blocks() -> None:
    def cards(*free: float) -> Machine:
        return Machine("x86_64", 8, 0, 0, tuple(Accelerator("Some GPU", 0, int(each * 1e9)) for each in free))

    needs = Footprint("bf16", int(60e9), 0, 0, block=int(1e9))  # 60.5 GB; each further card costs 1.5
    assert shortfall(needs, cards(31, 31), "cuda") is None  # exactly
    assert shortfall(needs, cards(31, 30.9), "cuda")
    assert shortfall(needs, cards(10, 61), "cuda") is None
    assert room(cards(31, 30.9), "cuda") == "31.0 GB free on cuda:0 and 30.9 GB free on cuda:1"


@pytest.mark.parametrize("strategy", ["8bit", "4bit", "bf16", "fp16", "cpu", "native"])
def test_a_config_without_the_usual_figures(strategy: str) -> None:
    odd = Checkpoint({"n_layer": 12}, 250_000_000, linear=85_000_000, rows=1, matrices=1, other=40_000_000)
    needs = estimate(odd, strategy, 4096, 4)
    assert needs.weights > 100_000_000 and needs.cache == needs.working == 0


def test_tied_embeddings_count_once() -> None:
    shapes = {"model.embed_tokens.weight": (100, 10), "lm_head.weight": (100, 10)}
    assert count({"tie_word_embeddings": True}, shapes, 0).other == 1000
    assert count({"tie_word_embeddings": False}, shapes, 0).other == 2000
    assert count({"tie_word_embeddings": True}, {"lm_head.weight": (100, 10)}, 0).other == 1000


@pytest.mark.parametrize(
    ("features", "choice", "why"),
    [
        ({"avx2", "avx512f", "avx512_bf16"}, "bfloat16", "avx512_bf16"),
        ({"avx512_bf16", "amx_bf16", "amx_tile"}, "bfloat16", "amx_bf16"),
        ({"asimd", "bf16"}, "bfloat16", "bf16"),
        ({"avx2", "avx512f"}, "float32", "no bfloat16 arithmetic"),
        (set(), "float32", "does not tell"),
    ],
)
def test_the_number_format_of_the_processor(features: set[str], choice: str, why: str) -> None:
    dtype, reason = cpu_dtype(Machine("any", 1, 1, 1, features=frozenset(features)))
    assert dtype == choice and why in reason


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, router_backend.checkpoints.footprint, router_backend.service.doctor; "
    code += "print([x for x in ('torch', 'transformers', 'huggingface_hub', 'xllamacpp') if x in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("method", "name", "shape", "unpacked"),
    [
        ("compressed-tensors", "weight_packed", (64, 8), True),  # 64 rows of 64 weights, eight in an int32
        ("gptq", "qweight", (8, 64), False),
        ("awq", "qweight", (64, 8), False),
    ],
)
def test_packed_weights(method: str, name: str, shape: tuple[int, int], unpacked: bool, tmp_path: Path) -> None:
    """compressed-tensors unpacks its weights into bfloat16 with the first forward pass; the others keep them packed."""
    section = {"quant_method": method, "config_groups": {"g": {"weights": {"num_bits": 4}}}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": section}))
    tensors = {f"model.layers.0.mlp.up_proj.{name}": shape, "model.embed_tokens.weight": (10, 64)}
    write_safetensors(tmp_path / "model.safetensors", tensors, packed="I32")
    known = describe(Folder(tmp_path))
    assert (known.linear, known.other) == (64 * 64, 10 * 64)
    needs = estimate(known, "native", 128, 1).weights
    assert needs == (2 * (64 * 64 + 10 * 64) if unpacked else known.stored_bytes)
