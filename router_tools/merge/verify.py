"""Whether what was written computes what base and adapter compute together: their logits, side by side.

Base and adapter are put together by PEFT, which the merge itself has nothing from: a misread adapter shows.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from peft import PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from router_backend.checkpoints.adapter import ADAPTER, Adapter, fit
from router_backend.checkpoints.gguf_merge import Reader, tensor_names
from router_backend.errors import CandidateError, explained
from router_backend.plan.prompt import router_prompt
from router_tools.base import load_model, load_tokenizer

_PROMPTS = (
    router_prompt("Prove that the sum of two odd numbers is even, then check it."),
    "Write and test a Python function that finds all pairs of odd numbers up to 1,000 whose sum is no power of two. "
    "Which libraries would be the fastest for 10**9 pairs, and what do their authors say about it? Name your sources.",
    '{"route_plan": ["/math(prove: odd + odd = even)", "/code(test it in Python)"], "route_rationale": "Proof first: '
    'the test is made of it.", "expected_artifacts": ["proof", "function", "log"], "thinking_outline": ["1. Define',
)
_TOKENS = 64  # of each
# What rounding the weights may cost, by bits of the mantissa.
TOLERANCE = {torch.float32: 0.001, torch.float16: 0.01, torch.bfloat16: 0.06}
# Where both sides were rounded alike: a few numbers lie so near a step that PEFT's fp32 falls on its other side.
SAME_ROUNDING = 0.01
# A copy that is loaded again holds what was saved.
SAME = 0.001


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
    """Of two tensors (..., vocabulary)."""
    spread = (wanted - wanted.mean(-1, keepdim=True)).pow(2).mean().sqrt()
    difference = (found - wanted).pow(2).mean().sqrt() / spread
    return Agreement(float(difference), float((found.argmax(-1) == wanted.argmax(-1)).float().mean()))


def prompt_ids(place: Path) -> torch.Tensor:
    """The beginnings of a few prompts, (prompts, tokens). Raises CandidateError where no tokenizer works."""
    with explained(f"{place} has no tokenizer that works"):
        tokenizer = load_tokenizer(place)
        ids: list[list[int]] = [tokenizer(text).input_ids[:_TOKENS] for text in _PROMPTS]
    return torch.tensor([each[: min(map(len, ids))] for each in ids])


@torch.no_grad()
def logits(folder: Path, ids: torch.Tensor, *, memory: int, adapter: Adapter | None = None) -> torch.Tensor:
    """What the checkpoint computes for tokens, as `of`; with an adapter beside it, unmerged, as PEFT reads it.

    What does not fit into the memory stays in its files until it is its turn, which is slow.

    Raises:
        CandidateError: the adapter does not fit, or a token has no row in the embeddings.
    """
    with tempfile.TemporaryDirectory() as offload:
        where: dict[str, Any] = {"device_map": "cpu"}
        if 2 * sum(path.stat().st_size for path in folder.glob("*.safetensors")) > memory:  # in fp32
            where = {"device_map": "auto", "max_memory": {"cpu": memory // 2}, "offload_folder": offload}
        model = load_model(folder, **where)
        for name, layer in _as_peft_reads(model, adapter).items() if adapter else ():
            model.get_submodule(name).register_forward_hook(partial(_beside, layer))
        return of(model, ids)


@torch.no_grad()
def gguf_logits(source: Path, ids: torch.Tensor, adapter: Adapter, *, rounded_as: Path) -> torch.Tensor:
    """What a GGUF base and an adapter compute, as `of`, merged by PEFT and rounded as the same tensors in another GGUF.

    So a merged file can be held to what its own precision allows, whichever that is. It is all in memory, in fp32.
    """
    model = load_model(source)
    for name, layer in _as_peft_reads(model, adapter).items():
        model.get_submodule(name).weight += layer.get_delta_weight("default")
    reader = Reader(rounded_as)
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    names = tensor_names(reader)
    for name, weight in model.named_parameters():
        kind = kinds[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        if kind is not GGMLQuantizationType.F32:
            weight.copy_(torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind)))
    return of(model, ids)


def of(model: Any, ids: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """A model's logits for tokens (prompts, tokens), in fp32: (prompts, tokens, vocabulary).

    Raises CandidateError where a token has no row.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if int(ids.max()) >= rows:
        raise CandidateError(f"the tokenizer has a token {int(ids.max())}, and the embeddings only {rows} rows")
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found


def _as_peft_reads(model: Any, adapter: Adapter) -> dict[str, LoraLayer]:  # noqa: ANN401
    """PEFT's own layers by the model's module that each belongs to: PEFT reads config and tensors.

    They are made on an empty twin, so that a model whose weights are left in files stays as it is.
    """
    linear = {name: each for name, each in model.named_modules() if hasattr(each, "in_features")}
    shapes = {f"{name}.weight": (each.out_features, each.in_features) for name, each in linear.items()}
    fitted = zip(fit(adapter.layers, shapes), adapter.layers, strict=True)
    owners = {name.removesuffix(".weight"): own for name, own in fitted}
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # PEFT's, of what it does itself, such as asking for a name that is to go
        config: Any = PeftConfig.from_pretrained(str(adapter.folder))
        config.target_modules, config.exclude_modules, config.layers_to_transform = set(owners), None, None
        config.init_lora_weights = True  # they are filled in; those that change the base are refused before
        twin = get_peft_model(type(model)(model.config), config)
    found = {name: each for name, each in twin.base_model.model.named_modules() if isinstance(each, LoraLayer)}
    tensors = {key.removeprefix("base_model.model."): each for key, each in load_file(adapter.folder / ADAPTER).items()}
    for module, own in owners.items():
        for half in ("lora_A", "lora_B"):
            place = getattr(found[module], half)["default"]
            if place.weight.shape != tensors[f"{own}.{half}.weight"].shape:
                raise CandidateError(f"PEFT reads {own} as {tuple(place.weight.shape)}, which its {half} is not")
            place.weight = torch.nn.Parameter(tensors[f"{own}.{half}.weight"].float(), requires_grad=False)
    return found


def _beside(layer: LoraLayer, _: torch.nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
    """The product beside the layer, as the adapter was trained: x Wᵀ + s (x Aᵀ) Bᵀ."""
    added: torch.Tensor = layer.lora_B["default"](layer.lora_A["default"](given[0])) * layer.scaling["default"]
    return out + added
