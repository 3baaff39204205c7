"""Softmax attention in the precision of its input, with forward-mode derivatives.

The eager attention of several families computes its softmax in float32 whatever the
input, and the fused kernels have no forward-mode derivative. This one has neither flaw.
It is registered with transformers under `NAME`, together with the additive mask of eager
attention: an attention function registered without one silently loses the causal mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

NAME = "tightpass"


def softmax_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q kᵀ · scaling + mask) v for (batch, heads, tokens, d_head) tensors.

    Returns (batch, tokens, heads, d_head) and the weights (batch, heads, tokens, tokens).
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def register() -> None:
    """Makes `attn_implementation=NAME` known to transformers; harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface  # takes seconds: only when needed
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, softmax_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
