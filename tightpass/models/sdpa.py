"""torch's fused attention by a path that has derivatives in forward mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SDPA = nn.functional.scaled_dot_product_attention


def differentiable(*args: Any, **kwargs: Any) -> Any:
    """As `scaled_dot_product_attention`, by plain products and a softmax."""
    with sdpa_kernel(SDPBackend.MATH):
        return SDPA(*args, **kwargs)


def followable(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function with all its attention on that path, unless it chooses another itself. `nn.MultiheadAttention` and layers of
    `nn.Transformer` have fused kernels of their own, which have no derivative in forward mode either."""

    def computed(x: torch.Tensor) -> torch.Tensor:
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                return function(x)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    return computed
