"""Models that are refused: they have none of the blocks."""

from __future__ import annotations

from tightpass.models.families.base import REFUSED

REFUSED |= dict.fromkeys(
    ("mamba", "mamba2", "falcon_mamba"),
    "has no attention or MLP blocks: its layers are state-space mixers.\nWhat can be had is the Jacobian of a whole layer, as "
    "of any function: tp.jacobian(lambda x: base.layers[0](x[None])[0], x), the base model and x (tokens, width) in float32",
)
