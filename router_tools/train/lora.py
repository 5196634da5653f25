"""LoRA (Hu et al., 2021, arXiv:2106.09685): a frozen linear layer with a trained low-rank product beside it.

Written here rather than taken from PEFT for speed on a processor: one function in bf16, without PEFT's casts to fp32
and back. Files are in PEFT's format, so that its users can load them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from router_backend.plan.prompt import BUDGET_KEY

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


class _LoraProduct(torch.autograd.Function):
    """x Wᵀ + (x Aᵀ) Bᵀ, where W gets no gradient; `lower` and `upper` are A and the scaled B."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        weight: torch.Tensor,
        lower: torch.Tensor,
        upper: torch.Tensor,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ lower.T
        ctx.save_for_backward(rows, inner, weight, lower, upper)
        return (rows @ weight.T).addmm_(inner, upper.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor, torch.Tensor]:  # noqa: ANN401
        rows, inner, weight, lower, upper = ctx.saved_tensors
        gradient = outer[0].reshape(-1, outer[0].shape[-1])
        toward_inner = gradient @ upper
        back = (gradient @ weight).addmm_(toward_inner, lower)
        return back.view(*outer[0].shape[:-1], -1), None, toward_inner.T @ rows, gradient.T @ inner


class LoraLinear(nn.Module):
    """A linear layer without bias, frozen, with its adapter.

    Attributes:
        lora_a, lora_b: fp32, (rank, in) and (out, rank).
        scale: what the product is multiplied by.
    """

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.scale = 2.0
        self.lora_a = nn.Parameter(torch.empty(rank, frozen.in_features))
        self.lora_b = nn.Parameter(torch.zeros(frozen.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = self.frozen.weight.dtype
        upper = (self.lora_b * self.scale).to(kind)
        return _LoraProduct.apply(x, self.frozen.weight, self.lora_a.to(kind), upper)  # type: ignore[no-any-return, no-untyped-call]


def inject(model: nn.Module, rank: int) -> dict[str, LoraLinear]:
    """Freezes the model and puts an adapter on every linear layer but the output head. Returns them by their path."""
    model.requires_grad_(False)
    head = model.get_output_embeddings()  # type: ignore[operator]
    found = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head}
    layers = {name: LoraLinear(each, rank) for name, each in found.items()}
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer)
    return layers


def save(layers: dict[str, LoraLinear], folder: Path) -> None:
    """Writes the adapter in fp16 and in PEFT's format."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, layer in layers.items():
        for letter, weight in (("A", layer.lora_a), ("B", layer.lora_b)):
            tensors[f"base_model.model.{name}.lora_{letter}.weight"] = weight.detach().half().cpu().contiguous()
    # One key alone: safetensors writes several in an order that changes from call to call.
    save_file(tensors, folder / ADAPTER, {BUDGET_KEY: "true"})
    one = next(iter(layers.values()))
    rank = one.lora_a.shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": one.scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
