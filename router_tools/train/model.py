"""The network that is trained: a frozen causal LM with a LoRA adapter on all its linear layers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GgufConfig

from router_backend.checkpoints import embedded
from router_backend.engines.transformers.runner import cache_argument
from router_backend.errors import CandidateError
from router_tools.train import attention, lora
from router_tools.train.loss import head_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from router_tools.train.examples import Example


def load_base(base: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """The base model in fp32 and its tokenizer.

    Args:
        base: `embedded`, a GGUF file, a local folder or a hub repo. A GGUF is dequantised.

    Raises:
        CandidateError: it does not load.
    """
    path = embedded.base() if base == "embedded" else Path(base)
    more: dict[str, Any] = {}
    name = base
    if path.suffix == ".gguf":
        name, more = str(path.parent), {"gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **more)
        if more:
            more["quantization_config"] = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **more)
    except (OSError, ValueError, struct.error) as error:
        raise CandidateError(f"{base} does not load as a base to train on: {type(error).__name__}") from error
    return model, tokenizer


class Student:
    """A base with its adapter. `half`: everything in bf16 but the adapter's own weights, which are fp32."""

    def __init__(self, base: Any, rank: int, *, device: torch.device, half: bool) -> None:  # noqa: ANN401
        self.model = base.to(device, torch.bfloat16 if half else torch.float32)
        if device.type == "cpu":
            self.model.set_attn_implementation(attention.NAME)
        self.layers = lora.inject(self.model, rank)
        self.model.to(device).train()
        self.parameters = [each for layer in self.layers.values() for each in (layer.lora_a, layer.lora_b)]
        self._device = device
        self._head = self.model.get_output_embeddings().weight.detach()

    def loss(self, batch: list[Example]) -> torch.Tensor:
        """Cross-entropy summed over the batch's completion tokens.

        The rows are padded on the right: under a causal mask no token sees what is after it, so no other one is needed.
        """
        width = max(len(example.ids) for example in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        wanted = torch.zeros((len(batch), width), dtype=torch.bool)
        for index, example in enumerate(batch):
            ids[index, : len(example.ids)] = torch.tensor(example.ids)
            wanted[index, example.start : len(example.ids)] = True
        ids, wanted = ids.to(self._device), wanted.to(self._device)
        hidden = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return head_loss(hidden[:, :-1][wanted[:, 1:]], self._head, ids[:, 1:][wanted[:, 1:]])

    @torch.no_grad()
    def mean_loss(self, batches: list[list[Example]]) -> float:
        """Mean cross-entropy of a completion token."""
        self.model.eval()
        total = sum(self.loss(batch).item() for batch in batches)
        self.model.train()
        return total / sum(example.completion_tokens for batch in batches for example in batch)

    @torch.no_grad()
    def write(self, prompt: list[int], tokens: int) -> list[int]:
        """What the model answers, greedily and without a grammar."""
        self.model.eval()
        ids = torch.tensor([prompt], device=self._device)
        past = {cache_argument(self.model): DynamicCache()}
        said = []
        for _ in range(tokens):
            ids = self.model(input_ids=ids, use_cache=True, **past).logits[:, -1:].argmax(-1)
            said.append(int(ids))
        self.model.train()
        return said

    def state(self) -> dict[str, torch.Tensor]:
        return {str(index): each.detach() for index, each in enumerate(self.parameters)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, own in self.state().items():
                own.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Writes the adapter."""
        lora.save(self.layers, folder)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 products are fast there, not merely possible."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
