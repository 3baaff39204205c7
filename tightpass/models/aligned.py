"""Where a model's weights lie in memory."""

from __future__ import annotations

from torch import nn

ALIGNED = 64
"""Bytes, as torch aligns its own: libraries' products are rounded otherwise where an array begins in between (measured, on some
processors)."""


def aligned(base: nn.Module) -> nn.Module:
    """The model, its weights where torch would put them and not where they lay in a file, so that no number depends on that."""
    for parameter in base.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNED:
            parameter.data = parameter.data.clone()
    return base
