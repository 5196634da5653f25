"""Whether the merged checkpoint computes what base and adapter compute together: their logits, side by side."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from router_backend.errors import CandidateError
from router_backend.plan.prompt import router_prompt
from router_tools.merge.adapter import Lora, fit

_QUERY = "Prove that the sum of two odd numbers is even, then write and test a Python function that checks it."
_TOKENS = 128
# What rounding the weights may cost, by bits of the mantissa.
TOLERANCE = {torch.float32: 0.001, torch.float16: 0.01, torch.bfloat16: 0.06}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two rows of logits are.

    Attributes:
        difference: root mean square of the differences, as a part of the logits' own spread.
        same_choice: share of positions with the same most likely token.
    """

    difference: float
    same_choice: float

    def __str__(self) -> str:
        return f"logits differ by {self.difference:.2%} of their spread, {self.same_choice:.1%} same first choices"


def agreement(found: torch.Tensor, wanted: torch.Tensor) -> Agreement:
    """Of two tensors (positions, vocabulary)."""
    spread = (wanted - wanted.mean(-1, keepdim=True)).pow(2).mean().sqrt()
    difference = (found - wanted).pow(2).mean().sqrt() / spread
    return Agreement(float(difference), float((found.argmax(-1) == wanted.argmax(-1)).float().mean()))


def prompt_ids(folder: Path) -> torch.Tensor:
    """The beginning of a router prompt, (1, tokens). Raises CandidateError where there is no tokenizer that works."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids: list[int] = tokenizer(router_prompt(_QUERY)).input_ids[:_TOKENS]
    except Exception as error:
        raise CandidateError(f"{folder} has no tokenizer that works: {type(error).__name__}") from None
    return torch.tensor([ids])


@torch.no_grad()
def logits(folder: Path, ids: torch.Tensor, *, memory: int, layers: Mapping[str, Lora] | None = None) -> torch.Tensor:
    """What the checkpoint computes for the tokens, in fp32; with the adapter's layers beside it, unmerged.

    What does not fit into the memory stays in its files until it is its turn, which is slow.

    Returns:
        (positions, vocabulary)
    """
    with tempfile.TemporaryDirectory() as offload:
        where: dict[str, Any] = {"device_map": "cpu"}
        if 2 * sum(path.stat().st_size for path in folder.glob("*.safetensors")) > memory:  # in fp32
            where = {"device_map": "auto", "max_memory": {"cpu": memory // 2}, "offload_folder": offload}
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, **where
        ).eval()
        if layers:
            modules = {f"{name}.weight": each for name, each in model.named_modules() if _linear(each)}
            shapes = {name: (each.out_features, each.in_features) for name, each in modules.items()}
            for name, lora in fit(layers, shapes).items():
                modules[name].register_forward_hook(_beside(lora))
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0].float()
    return found


def copy_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What a quantised copy computes, loaded as a whole. Raises CandidateError where it does not load again."""
    try:
        return logits(folder, ids, memory=sys.maxsize)
    except (RuntimeError, ValueError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise CandidateError(f"the quantised copy does not load again: {type(error).__name__}: {said}") from None


def _linear(module: torch.nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _beside(lora: Lora) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    """The product beside the layer, as the adapter was trained: x Wᵀ + s (x Aᵀ) Bᵀ."""
    lower, upper = lora.lower.float().T, lora.upper.float().T * lora.scale

    def add(_: torch.nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        return out + (given[0] @ lower) @ upper

    return add
