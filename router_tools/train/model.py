"""The network that is trained: a frozen causal LM with PEFT's LoRA on all its linear layers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from router_backend.checkpoints.adapter import ADAPTER, ADAPTER_CONFIG
from router_backend.errors import CandidateError, explained
from router_backend.plan.prompt import BUDGET_KEY
from router_tools import base

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from router_backend.settings import Settings

_SCALE = 2


def load_base(name: str, settings: Settings) -> tuple[Any, PreTrainedTokenizerBase]:
    """The base model in fp32 and its tokenizer.

    Args:
        name: `embedded`, a GGUF file, a local folder or a hub repo. A GGUF is dequantised.

    Raises:
        SettingsError: the name only looks like one.
        CandidateError: it does not load.
    """
    path = base.files(base.named("--base", name, settings), settings)
    with explained(f"{name} does not load as a base to train on"):
        tokenizer, model = base.load_tokenizer(path), base.load_model(path)
    with explained(f"the tokenizer or chat template of {name} does not work"):
        if tokenizer.chat_template:
            tokenizer.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)
        tokenizer("x")
    if tokenizer.eos_token_id is None:
        raise CandidateError(f"the tokenizer of {name} names no token that ends an answer (eos_token)")
    return model, tokenizer


def with_adapter(model: Any, rank: int, *, half: bool, begin: Path | None = None) -> PeftModel:  # noqa: ANN401
    """The base, frozen, with a LoRA adapter of fp32 weights.

    Args:
        half: the base and what it computes are bf16.
        begin: a folder with the adapter to begin with, in PEFT's format, whatever its rank is.

    Raises:
        CandidateError: that adapter does not load, or does not fit the base.
    """
    model.name_or_path = ""  # PEFT would ask the hub about the base whenever it saves
    model.config.use_cache = False
    if half:
        model.to(torch.bfloat16)
    with warnings.catch_warnings():
        # PEFT asks by a name that transformers has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        if begin is None:
            config = LoraConfig(r=rank, lora_alpha=_SCALE * rank, target_modules="all-linear", task_type="CAUSAL_LM")
            return get_peft_model(model, config)
        with explained(f"the adapter of {begin} does not go on this base"):
            return PeftModel.from_pretrained(model, str(begin), is_trainable=True)


class Rounded:
    """Keeps the base at what makes its sum with the adapter the weights that a GGUF of a kind would hold.

    The gradient passes the rounding by (the straight-through estimator; for LoRA: Bondarenko et al., "Low-Rank
    Quantization-Aware Training for LLMs", 2024), so that the adapter learns to make up for it.
    """

    def __init__(self, model: PeftModel, kind: str) -> None:
        self._kind = GGMLQuantizationType[kind]
        layers = [(each, each.get_base_layer().weight) for each in model.modules() if isinstance(each, LoraLayer)]
        block = GGML_QUANT_SIZES[self._kind][0]  # `merge` leaves rows that are no whole blocks in sixteen bits
        self._layers = [(each, weight.detach().clone()) for each, weight in layers if not weight.shape[1] % block]

    @torch.no_grad()
    def __call__(self) -> None:
        """To be called whenever the adapter has changed."""
        for layer, weight in self._layers:
            change = layer.get_delta_weight(layer.active_adapters[0])
            whole = (weight + change).float().cpu().numpy()
            held = torch.from_numpy(dequantize(quantize(whole, self._kind), self._kind)).to(change)
            layer.get_base_layer().weight.copy_(held - change)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes the adapter in fp16, in PEFT's format, with the mark that it was trained to read a budget line."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: each.half().cpu().contiguous() for name, each in get_peft_model_state_dict(model).items()}
    # One key alone: safetensors writes several in an order that changes from call to call.
    save_file(weights, folder / ADAPTER, {BUDGET_KEY: "true"})
    given = model.active_peft_config
    kept = ("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "bias")
    config = {name: getattr(given, name) for name in kept} | {"target_modules": sorted(given.target_modules)}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 products are fast there, not merely possible."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
