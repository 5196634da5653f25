"""Each kind of adapter that PEFT's config can describe: merged as PEFT merges it, or refused by name, on every path.

The adapters are made by PEFT and trained for a few steps, so that all that they hold has changed.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftType, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora import config as lora_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from router_backend.checkpoints import adapter
from router_backend.errors import CandidateError
from router_backend.settings import load_settings
from router_tools.base import load_model
from router_tools.merge import MergeOptions, merge, quantized, verify
from tests.fakes import gguf_base, tiny
from tests.tools import test_merge

pytestmark = pytest.mark.torch
DOCS = Path(__file__).parents[2] / "docs/merge.md"
IDS = torch.arange(3, 60)[None]
base, tokenizer_folder = test_merge.base, test_merge.tokenizer_folder  # fixtures
PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]}

# Kind, as docs/merge.md names it → what PEFT's config is told.
MERGED: dict[str, dict[str, Any]] = {
    "plain LoRA": {},
    "rsLoRA (`use_rslora`)": {"use_rslora": True},
    "`rank_pattern`, `alpha_pattern`": {
        "rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.down_proj": 8},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 40, "q_proj": 7},
    },
    "both, with rsLoRA": {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 40}},
    "`init_lora_weights`: `false`": {"init_lora_weights": False},
    '`init_lora_weights`: `"gaussian"`': {"init_lora_weights": "gaussian"},
    '`init_lora_weights`: `"orthogonal"`': {"init_lora_weights": "orthogonal"},
    '`init_lora_weights`: `"mica"`': {"init_lora_weights": "mica"},
    '`init_lora_weights`: `"eva"`': {"init_lora_weights": "eva", "eva_config": lora_config.EvaConfig(rho=2.0)},
    "`lora_dropout`": {"lora_dropout": 0.1},
    "`layers_to_transform`, `exclude_modules`": {
        "layers_to_transform": [1],
        "exclude_modules": ["model.layers.1.self_attn.q_proj"],
    },
    '`target_modules`: `"all-linear"`, a pattern': {"target_modules": "all-linear"},
}
REFUSED: dict[str, dict[str, Any]] = {
    "DoRA (`use_dora`)": {"use_dora": True},
    "`bias`": {"bias": "all"},
    "`lora_bias`": {"lora_bias": True},
    "`modules_to_save`": {"modules_to_save": ["norm"]},
    "`trainable_token_indices`": {"trainable_token_indices": [1, 2]},
    "`target_parameters`": {"target_modules": [], "target_parameters": ["mlp.down_proj.weight"]},
    "embeddings": {"target_modules": ["embed_tokens"]},
    "the head of a base with tied embeddings": {"target_modules": ["lm_head"]},
    '`init_lora_weights`: `"pissa"`, `"pissa_niter_…"`': {"init_lora_weights": "pissa_niter_4"},
    '`init_lora_weights`: `"olora"`': {"init_lora_weights": "olora"},
    '`init_lora_weights`: `"lora_ga"`': {
        "init_lora_weights": "lora_ga",
        "lora_ga_config": lora_config.LoraGAConfig(),
    },
    "`layer_replication`": {"layer_replication": [[0, 2], [1, 2]]},
    "aLoRA (`alora_invocation_tokens`)": {"alora_invocation_tokens": [5, 6]},
    "VeLoRA (`velora_config`)": {"velora_config": lora_config.VeloraConfig()},
    "MonteCLoRA (`monteclora_config`)": {"monteclora_config": lora_config.MontecloraConfig()},
    "KaSA (`kasa_config`)": {"kasa_config": lora_config.KasaConfig()},
    "BD-LoRA (`use_bdlora`)": {"use_bdlora": lora_config.BdLoraConfig(["q_proj"], ["v_proj"], 2, match_strict=False)},
    "QA-LoRA (`use_qalora`)": {"use_qalora": True},
    "`ensure_weight_tying`": {"ensure_weight_tying": True},
}
# What PEFT cannot make here: it needs other packages, a prepared model or other layers.
CONFIG_ONLY: dict[str, dict[str, Any]] = {
    '`init_lora_weights`: `"corda"`': {"init_lora_weights": "corda"},
    '`init_lora_weights`: `"loftq"`': {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
    "Arrow (`arrow_config`)": {"arrow_config": {"top_k": 3}},
    "`fan_in_fan_out`": {"fan_in_fan_out": True},
    "Megatron (`megatron_config`)": {"megatron_config": {"tensor_parallel": 1}},
}


@pytest.fixture(scope="module")
def base_gguf(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_base.write(base, tmp_path_factory.mktemp("gguf") / "base.gguf")


def train(base: Path, out: Path, **recipe: Any) -> Any:  # noqa: ANN401
    """PEFT's model after three steps, saved as PEFT saves it."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about what the recipes ask for
        config = LoraConfig(**PLAIN | recipe)
        if config.init_lora_weights == "eva":
            model = get_peft_model(model, config, low_cpu_mem_usage=True)
            initialize_lora_eva_weights(
                model, [{"input_ids": IDS.roll(step)} for step in range(4)], show_progress_bar=False
            )
        else:
            model = get_peft_model(model, config)
        optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-2)
        for _ in range(3):
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        model.eval().save_pretrained(str(out))
    return model


@torch.no_grad()
def differ(found: Any, wanted: Any) -> float:  # noqa: ANN401
    return verify.agreement(verify.of(found, IDS), verify.of(wanted, IDS)).difference


def quiet(options: MergeOptions) -> int:
    return merge(options, load_settings(), lambda _: None)


@pytest.mark.parametrize("kind", MERGED)
def test_it_is_merged_as_peft_merges_it(base: Path, base_gguf: Path, tmp_path: Path, kind: str) -> None:
    """Into a folder, a GGUF and a copy in 4 bits: the logits are those of PEFT's own result, within 1e-3."""
    wanted = train(base, tmp_path / "adapter", **MERGED[kind]).merge_and_unload()
    assert differ(wanted, load_model(base)) > 0.02, "the adapter does something"
    out = tmp_path / "out"
    assert quiet(MergeOptions(str(base), tmp_path / "adapter", out, dtype="fp32", copies=("4bit",))) == 0
    assert differ(load_model(out), wanted) < 1e-3
    assert quiet(MergeOptions(str(base_gguf), tmp_path / "adapter", tmp_path / "out.gguf", gguf="F32")) == 0
    assert differ(load_model(tmp_path / "out.gguf"), wanted) < 1e-3
    wanted.save_pretrained(tmp_path / "peft")
    four = quantized.write(tmp_path / "peft", tmp_path / "peft-4bit", "4bit", shard_bytes=1 << 30)
    assert differ(load_model(tmp_path / "out-4bit"), four) < 1e-3


@pytest.mark.parametrize("kind", [*REFUSED, *CONFIG_ONLY])
def test_it_is_refused_by_name(base: Path, base_gguf: Path, tmp_path: Path, kind: str) -> None:
    train(base, tmp_path / "adapter", **REFUSED.get(kind, {}))
    if kind in CONFIG_ONLY:
        place = tmp_path / "adapter" / adapter.ADAPTER_CONFIG
        place.write_text(json.dumps(json.loads(place.read_text("utf-8")) | CONFIG_ONLY[kind]), "utf-8")
    name = {"embeddings": "embed_tokens", "the head of a base with tied embeddings": "lm_head"}.get(kind)
    name = name or list((REFUSED | CONFIG_ONLY)[kind])[-1 if "target_parameters" in kind else 0]
    for given, out in ((base, "out"), (base_gguf, "out"), (base_gguf, "out.gguf")):
        with pytest.raises(CandidateError, match=rf"cannot be merged: .*{name}"):
            quiet(MergeOptions(str(given), tmp_path / "adapter", tmp_path / out))
        assert not (tmp_path / out).exists()


def test_the_head_is_merged_where_it_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    """Without the copy of the base's own head that PEFT saves beside it; with tied embeddings it is refused."""
    folder = tiny.save("llama31", tmp_path / "base")
    wanted = train(folder, tmp_path / "adapter", target_modules=["lm_head", "q_proj"]).merge_and_unload()
    with pytest.raises(CandidateError, match=r"cannot be merged: .*lm_head\.base_layer"):
        quiet(MergeOptions(str(folder), tmp_path / "adapter", tmp_path / "out", dtype="fp32"))
    _drop(tmp_path / "adapter", "base_layer")
    assert quiet(MergeOptions(str(folder), tmp_path / "adapter", tmp_path / "out", dtype="fp32")) == 0
    assert differ(load_model(tmp_path / "out"), wanted) < 1e-3


def test_tied_embeddings_are_refused_also_without_the_base_s_own_head(
    base: Path, base_gguf: Path, tmp_path: Path
) -> None:
    train(base, tmp_path / "adapter", target_modules=["lm_head", "q_proj"])
    _drop(tmp_path / "adapter", "base_layer")
    with pytest.raises(CandidateError, match="it changes lm_head, which this base shares with its embeddings"):
        quiet(MergeOptions(str(base), tmp_path / "adapter", tmp_path / "out"))
    with pytest.raises(CandidateError, match=r"it holds lm_head .*there is no output\.weight"):
        quiet(MergeOptions(str(base_gguf), tmp_path / "adapter", tmp_path / "out.gguf"))


def _drop(folder: Path, part: str) -> None:
    kept = {key: value for key, value in load_file(folder / adapter.ADAPTER).items() if part not in key}
    save_file(kept, folder / adapter.ADAPTER)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_adapter_of_any_dtype_is_read_as_peft_reads_it(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    train(base, tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / adapter.ADAPTER)
    save_file({key: value.to(dtype) for key, value in weights.items()}, tmp_path / "adapter" / adapter.ADAPTER)
    assert quiet(MergeOptions(str(base), tmp_path / "adapter", tmp_path / "out", dtype="fp32")) == 0
    assert differ(load_model(tmp_path / "out"), test_merge.with_peft(base, tmp_path / "adapter")) < 1e-3


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_other_dtypes_are_refused_by_name(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    train(base, tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / adapter.ADAPTER)
    save_file({key: value.to(dtype) for key, value in weights.items()}, tmp_path / "adapter" / adapter.ADAPTER)
    with pytest.raises(CandidateError, match="it has to be one of F64, F32, F16, BF16"):
        adapter.read(tmp_path / "adapter")


@pytest.mark.parametrize("kind", [kind.value for kind in PeftType if kind is not PeftType.LORA])
def test_what_is_not_lora_is_refused_by_name(base: Path, tmp_path: Path, kind: str) -> None:
    train(base, tmp_path / "adapter")
    (tmp_path / "adapter" / adapter.ADAPTER_CONFIG).write_text(json.dumps({"peft_type": kind, "r": 4}), "utf-8")
    with pytest.raises(CandidateError, match=f"only LoRA adapters can be merged, not peft_type='{kind}'"):
        adapter.read(tmp_path / "adapter")


def test_every_field_of_peft_s_config_is_merged_without_effect_or_refused() -> None:
    """So that a field of a new PEFT is looked at: it is in neither list, and refused where it is set."""
    known = adapter._COMPUTED | adapter._WITHOUT_EFFECT | {"init_lora_weights"}
    refused = {name for recipe in (REFUSED | CONFIG_ONLY).values() for name in recipe}
    for field in dataclasses.fields(LoraConfig):
        assert field.name in known | refused | {"loftq_config"}, field.name
    with pytest.raises(CandidateError, match="cannot be merged: it was made with use_something_new=True"):
        adapter._refuse({"peft_type": "LORA", "use_something_new": True, "off": None, "none": [], "zero": 0})


def test_the_table_in_the_docs_is_true() -> None:
    """Each kind stands there once, and the tests above show each cell."""
    lines = [line.strip("| \n").split(" | ") for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| ")]
    table = {cells[0]: cells[1:] for cells in lines if len(cells) == 4 and cells[0] != "PEFT kind"}
    assert table.pop("other types: LoHa, LoKr, IA³, VeRA, AdaLoRA, OFT, …") == ["refused"] * 3
    assert table == {kind: ["equal"] * 3 for kind in MERGED} | {kind: ["refused"] * 3 for kind in REFUSED | CONFIG_ONLY}


@pytest.mark.parametrize("start", ["pissa", "PiSSA", "pissa_niter_16", "OLoRA", "corda", "lora_ga", "a later one"])
def test_fault_a_a_start_that_changes_the_base_is_refused_by_name(tmp_path: Path, start: str) -> None:
    halves = {"A": torch.ones(1, 2), "B": torch.ones(2, 1)}
    named = {f"base_model.model.x.lora_{half}.weight": each for half, each in halves.items()}
    save_file(named, tmp_path / adapter.ADAPTER)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "init_lora_weights": start}
    (tmp_path / adapter.ADAPTER_CONFIG).write_text(json.dumps(config), "utf-8")
    with pytest.raises(CandidateError, match=f"init_lora_weights='{start}' changed"):
        adapter.read(tmp_path)
