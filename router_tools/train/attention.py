"""Causal attention for training on a processor.

torch's fused attention spends a third of a whole training step there in its backward pass. With the chances kept from
the forward pass, both passes are plain matrix products, a block of queries at a time so that nothing above the diagonal
but the block's own corner is computed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AttentionInterface

NAME = "blocked_causal"
_BLOCK = 256


class _Attention(torch.autograd.Function):
    """Softmax(Q Kᵀ) V under a causal mask.

    Shapes: query (groups, repeats, length, width), key and value (groups, length, width), where `groups` counts the key
    heads of all rows and `repeats` the query heads that share one.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        out = torch.empty_like(query)
        kept = []
        for start, end in _blocks(query.shape[2]):
            block = query[:, :, start:end]
            scores = (block.flatten(1, 2) @ key[:, :end].mT).view(*block.shape[:3], end)
            above = torch.ones(end - start, end - start, dtype=torch.bool, device=query.device).triu_(1)
            scores[..., start:].masked_fill_(above, -torch.inf)
            chances = scores.softmax(-1).flatten(1, 2)
            out[:, :, start:end] = (chances @ value[:, :end]).view_as(block)
            kept.append(chances)
        ctx.save_for_backward(query, key, value, out, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # noqa: ANN401
        query, key, value, out, *kept = ctx.saved_tensors
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (start, end), chances in zip(_blocks(query.shape[2]), kept, strict=True):
            block, gradient = (each[:, :, start:end].flatten(1, 2) for each in (query, outer[0]))
            to_value[:, :end] += chances.mT @ gradient
            mean = (gradient * out[:, :, start:end].flatten(1, 2)).sum(-1, keepdim=True)
            to_scores = (gradient @ value[:, :end].mT).sub_(mean).mul_(chances)
            to_query[:, :, start:end] = (to_scores @ key[:, :end]).view_as(to_query[:, :, start:end])
            to_key[:, :end] += to_scores.mT @ block
        return to_query, to_key, to_value


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + _BLOCK, length)) for start in range(0, length, _BLOCK)]


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,  # noqa: ANN401 - what other implementations take
) -> tuple[torch.Tensor, None]:
    """The form that transformers calls: (batch, heads, length, width) in, (batch, length, heads, width) out."""
    rows, heads, length, width = query.shape
    if length != key.shape[2]:  # one token more, after a cache
        return F.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True).transpose(1, 2), None
    repeats = heads // key.shape[1]
    groups = (query * scaling).reshape(-1, repeats, length, width)
    out = _Attention.apply(groups, key.flatten(0, 1), value.flatten(0, 1))  # type: ignore[no-untyped-call]
    return out.view(rows, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
