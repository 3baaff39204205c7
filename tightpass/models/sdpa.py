"""torch's fused attention by a path that has derivatives in forward mode."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SDPA = nn.functional.scaled_dot_product_attention


def differentiable(*args: Any, **kwargs: Any) -> Any:
    """As `scaled_dot_product_attention`, by plain products and a softmax."""
    with sdpa_kernel(SDPBackend.MATH):
        return SDPA(*args, **kwargs)
