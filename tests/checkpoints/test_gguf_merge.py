"""Base and adapter become one GGUF, which computes what both compute together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from transformers import AutoModelForCausalLM, GgufConfig, LlamaForCausalLM

from router_backend.checkpoints.adapter import ADAPTER, ADAPTER_CONFIG
from router_backend.checkpoints.gguf_merge import merge
from router_backend.errors import CandidateError
from router_backend.plan.prompt import BUDGET_KEY
from router_tools.train.model import save_adapter, with_adapter

WIDTH, INNER, HEADS, GROUPS, LAYERS, VOCABULARY = 64, 96, 4, 2, 2, 64

pytestmark = pytest.mark.torch


def write_base(
    path: Path,
    arch: str = "llama",
    inner: int = INNER,
    groups: int | None = GROUPS,
    more: Callable[[GGUFWriter], object] = lambda writer: None,
) -> Path:
    """A small checkpoint as llama.cpp stores it, of random weights."""
    chance = np.random.default_rng(0)
    own = WIDTH // HEADS * (groups or HEADS)
    shapes = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (own, WIDTH),
        "attn_v": (own, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (inner, WIDTH),
        "ffn_up": (inner, WIDTH),
        "ffn_down": (WIDTH, inner),
    }
    writer = GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(HEADS)
    if groups:
        writer.add_head_count_kv(groups)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(VOCABULARY)])
    writer.add_tensor("token_embd.weight", chance.normal(0, 1, (VOCABULARY, WIDTH)).astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", chance.normal(1, 0.1, WIDTH).astype(np.float32))
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", chance.normal(0, 0.2, shape).astype(np.float32))
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )


def write_adapter(model: LlamaForCausalLM, folder: Path) -> torch.Tensor:
    """Gives the model a random adapter and saves it; returns what both compute for some tokens."""
    torch.manual_seed(0)
    adapted = with_adapter(model, 4, half=False)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
            weight.data = weight.data.half().float()
    save_adapter(adapted, folder)
    return logits(adapted.eval())


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(1, 40)[None]).logits[0]
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, torch.Tensor]:
    """A base, an adapter, and what they compute together."""
    folder = tmp_path_factory.mktemp("merge")
    base = write_base(folder / "base.gguf")
    return base, folder / "adapter", write_adapter(load(base), folder / "adapter")


def test_the_merged_file_computes_what_base_and_adapter_do(
    made: tuple[Path, Path, torch.Tensor], tmp_path: Path
) -> None:
    base, adapter, together = made
    merge(base, adapter, tmp_path / "merged.gguf", kind="F32")
    torch.testing.assert_close(logits(load(tmp_path / "merged.gguf")), together, rtol=1e-4, atol=1e-3)
    assert (logits(load(base)) - together).abs().max() > 1


@pytest.mark.parametrize("kind", ["Q8_0", "F16", "Q4_0"])
def test_the_kind_is_as_asked_and_what_matters_most_gets_eight_bits(
    made: tuple[Path, Path, torch.Tensor], tmp_path: Path, kind: str
) -> None:
    base, adapter, together = made
    merge(base, adapter, tmp_path / "merged.gguf", kind=kind)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "merged.gguf").tensors}
    assert {kinds[name] for name in kinds if "norm" in name} == {"F32"}
    assert kinds["blk.1.ffn_up.weight"] == kind
    assert kinds["token_embd.weight"] == ("Q8_0" if kind == "Q4_0" else kind)
    found = logits(load(tmp_path / "merged.gguf"))
    alike = torch.cosine_similarity(found, together, dim=-1).mean()
    assert alike > {"F16": 0.9999, "Q8_0": 0.98, "Q4_0": 0.7}[kind]


def test_the_result_is_the_same_to_the_byte_and_says_what_it_knows(
    made: tuple[Path, Path, torch.Tensor], tmp_path: Path
) -> None:
    base, adapter, _ = made
    first = merge(base, adapter, tmp_path / "first.gguf")
    assert first == hashlib.sha256((tmp_path / "first.gguf").read_bytes()).hexdigest()
    assert merge(base, adapter, tmp_path / "second.gguf", expect=first) == first
    fields = GGUFReader(tmp_path / "first.gguf").fields
    assert fields[BUDGET_KEY].contents() is True
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0
    assert fields["tokenizer.ggml.tokens"].contents()[:2] == ["t0", "t1"]
    assert merge(tmp_path / "first.gguf", adapter, tmp_path / "again.gguf") != first


def test_another_hash_leaves_no_file(made: tuple[Path, Path, torch.Tensor], tmp_path: Path) -> None:
    base, adapter, _ = made
    with pytest.raises(CandidateError, match=r"has the hash [0-9a-f]{12}…, it should have 000000000000…"):
        merge(base, adapter, tmp_path / "merged.gguf", expect="0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut weights", "no config", "another architecture", "another base", "no base"])
def test_what_does_not_fit_together_is_refused(
    made: tuple[Path, Path, torch.Tensor], tmp_path: Path, damage: str
) -> None:
    base, adapter = made[0], tmp_path / "adapter"
    adapter.mkdir()
    for name in (ADAPTER, ADAPTER_CONFIG):
        (adapter / name).write_bytes((made[1] / name).read_bytes())
    if damage == "cut weights":
        (adapter / ADAPTER).write_bytes((adapter / ADAPTER).read_bytes()[:5000])
    elif damage == "no config":
        (adapter / ADAPTER_CONFIG).unlink()
    elif damage == "another architecture":
        base = write_base(tmp_path / "base.gguf", arch="mamba")
    elif damage == "another base":
        base = write_base(tmp_path / "base.gguf", inner=32)
    else:
        base = tmp_path / "none.gguf"
    with pytest.raises(CandidateError):
        merge(base, adapter, tmp_path / "merged.gguf")
    assert not (tmp_path / "merged.gguf").exists()


# Faults of kind A that a GGUF could have


def linear(writer: GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)


def yarn(writer: GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(64)


def llama3(writer: GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, WIDTH // HEADS // 2).astype(np.float32))


@pytest.mark.parametrize("scaling", [linear, yarn, llama3])
def test_fault_a_rope_scaling_is_kept(
    made: tuple[Path, Path, torch.Tensor], tmp_path: Path, scaling: Callable[[GGUFWriter], None]
) -> None:
    base = write_base(tmp_path / "base.gguf", more=scaling)
    merge(base, made[1], tmp_path / "merged.gguf")
    before, after = (rope(path) for path in (base, tmp_path / "merged.gguf"))
    assert len(before) > 1 and after == before


def rope(path: Path) -> dict[str, object]:
    reader = GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items() if "rope" in name}
    return said | {tensor.name: tensor.data.tolist() for tensor in reader.tensors if "rope" in tensor.name}


@pytest.mark.parametrize("groups", [1, GROUPS])
def test_fault_a_key_rows_are_those_of_as_many_heads_as_the_base_says(tmp_path: Path, groups: int) -> None:
    """One key head for all, and some: the rows of the keys are reordered within each."""
    base = write_base(tmp_path / "base.gguf", groups=groups)
    together = write_adapter(load(base), tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged.gguf", kind="F32")
    torch.testing.assert_close(logits(load(tmp_path / "merged.gguf")), together, rtol=1e-4, atol=1e-3)


def test_fault_a_a_number_of_key_heads_for_each_layer_is_refused(
    made: tuple[Path, Path, torch.Tensor], tmp_path: Path
) -> None:
    base = write_base(
        tmp_path / "base.gguf", groups=None, more=lambda writer: writer.add_head_count_kv([GROUPS] * LAYERS)
    )
    with pytest.raises(CandidateError, match=r"llama\.attention\.head_count_kv is not a number"):
        merge(base, made[1], tmp_path / "merged.gguf")


def test_fault_a_without_a_number_of_key_heads_there_are_as_many_as_heads(tmp_path: Path) -> None:
    said = write_base(tmp_path / "said.gguf", groups=HEADS)
    unsaid = write_base(tmp_path / "unsaid.gguf", groups=None)
    write_adapter(load(said), tmp_path / "adapter")
    made = []
    for base in (said, unsaid):
        merge(base, tmp_path / "adapter", tmp_path / "merged.gguf", kind="F32")
        made.append({each.name: each.data.copy() for each in GGUFReader(tmp_path / "merged.gguf").tensors})
    assert all(np.array_equal(weight, made[1][name]) for name, weight in made[0].items())
    key = next(each.data for each in GGUFReader(said).tensors if each.name == "blk.0.attn_k.weight")
    assert not np.array_equal(made[0]["blk.0.attn_k.weight"], key)


def test_fault_a_one_file_of_several_is_refused(made: tuple[Path, Path, torch.Tensor], tmp_path: Path) -> None:
    base = write_base(tmp_path / "b-00001-of-00002.gguf", more=lambda writer: writer.add_uint16("split.count", 2))
    with pytest.raises(CandidateError, match="one of 2 files: join them first"):
        merge(base, made[1], tmp_path / "merged.gguf")
    assert not (tmp_path / "merged.gguf").exists()
