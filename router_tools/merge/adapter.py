"""Adapter: a LoRA adapter in PEFT's format, and the tensors of a checkpoint that its layers belong to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from router_backend.errors import CandidateError
from router_backend.plan.prompt import BUDGET_KEY

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
# What PEFT can put into an adapter beside plain LoRA, and what merging it would have to know.
_UNSUPPORTED = ("use_dora", "fan_in_fan_out", "modules_to_save", "target_parameters", "trainable_token_indices")


@dataclass(frozen=True, slots=True)
class Lora:
    """One layer's product.

    Attributes:
        lower: A, (rank, in).
        upper: B, (out, rank).
        scale: what the product is multiplied by.
    """

    lower: torch.Tensor
    upper: torch.Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.upper.shape[0], self.lower.shape[1]

    def rows(self, start: int, end: int) -> torch.Tensor:
        """What is added to these rows of the weight, in fp32."""
        return (self.upper[start:end].float() * self.scale) @ self.lower.float()


def read(folder: Path) -> dict[str, Lora]:
    """The adapter's layers by the path of the module that they belong to.

    Raises:
        CandidateError: it is damaged, or no plain LoRA adapter.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
        tensors = load_file(folder / ADAPTER)
        kind, extra = config.get("peft_type"), [name for name in _UNSUPPORTED if config.get(name)]
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise CandidateError(f"{folder} cannot be read as an adapter: {type(error).__name__}") from None
    if kind != "LORA" or extra or config.get("bias", "none") != "none":
        raise CandidateError(f"only plain LoRA adapters can be merged, not {kind} with {', '.join(extra) or 'biases'}")
    return _layers(config, tensors)


def _layers(config: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Lora]:
    layers = {}
    for key in sorted(key for key in tensors if key.endswith(".lora_A.weight")):
        module = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        lower, upper = tensors.pop(key), tensors.pop(key.replace(".lora_A.", ".lora_B."), None)
        if upper is None or upper.shape[1] != lower.shape[0]:
            raise CandidateError(f"the adapter is broken: {module} has no two matrices that fit together")
        layers[module] = Lora(lower, upper, _scale(config, module, lower.shape[0]))
    if tensors:
        raise CandidateError(f"the adapter holds {len(tensors)} tensors that are no LoRA weights ({min(tensors)})")
    if not layers:
        raise CandidateError("the adapter holds no LoRA weights")
    return layers


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """As PEFT reads its own files: `alpha_pattern` holds the modules with an alpha of their own."""
    patterns = config.get("alpha_pattern") or {}
    named = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = float(next(named, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def knows_budgets(folder: Path) -> bool:
    """Whether it was trained with the line of `plan.prompt.with_budget`."""
    with safe_open(folder / ADAPTER, "pt") as opened:
        return BUDGET_KEY in (opened.metadata() or {})


def fit(layers: Mapping[str, Lora], shapes: Mapping[str, Collection[int]]) -> dict[str, Lora]:
    """The layers by the name of the checkpoint's tensor that each belongs to.

    Names in files and paths of modules differ in how the language model is wrapped, so `model` and `language_model` are
    left out of the comparison.

    Raises:
        CandidateError: a layer fits no tensor.
    """
    there = {_bare(name): name for name in shapes if name.endswith(".weight")}
    found = {}
    for module, lora in layers.items():
        name = there.get(_bare(f"{module}.weight"))
        if name is None or tuple(shapes[name]) != lora.shape:
            has = f"that is {tuple(shapes[name])} in the base" if name else "that the base does not have"
            raise CandidateError(f"the adapter is for another base: it holds {module} of {lora.shape}, {has}")
        found[name] = lora
    return found


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ("model", "language_model"))
