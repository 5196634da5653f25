"""Cross-entropy over a vocabulary that is much wider than the model, without keeping its logits."""

from __future__ import annotations

from typing import Any

import torch

_CHUNK = 512


class _HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of a frozen output head, a chunk of tokens at a time.

    The gradient for the hidden states is worked out together with the loss, so that no logits are kept and none are
    computed twice. After the fused linear cross-entropy of Liger Kernel (Hsu et al., 2024).
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), _CHUNK):
            rows, wanted = hidden[start : start + _CHUNK], targets[start : start + _CHUNK, None]
            logs = (rows @ head.T).float().log_softmax(-1)
            said = logs.gather(1, wanted)
            total -= said.sum()
            if ctx.needs_input_grad[0]:
                chances = logs.exp_().scatter_add_(1, wanted, torch.full_like(said, -1))
                gradient[start : start + _CHUNK] = chances.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN401
        return ctx.saved_tensors[0] * outer[0], None, None


def head_loss(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy.

    Args:
        hidden: (tokens, width) states, each the one that predicts its target.
        head: (vocabulary, width), frozen, of the same type.
        targets: (tokens,) ids.
    """
    return _HeadLoss.apply(hidden, head, targets)  # type: ignore[no-any-return, no-untyped-call]
