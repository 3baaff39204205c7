"""What norms of transformers add to the variance."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def rms_epsilon(norm: nn.Module, dtype: torch.dtype) -> float:
    """Of an RMSNorm at an x of some precision: torch's own takes that precision's unit if none is given."""
    given: Any = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return given if isinstance(given, float) else torch.finfo(dtype).eps
