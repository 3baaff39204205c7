"""Models that are refused: they have none of the blocks."""

from __future__ import annotations

from tightpass.models.families.base import REFUSED

REFUSED |= dict.fromkeys(
    ("mamba", "mamba2", "falcon_mamba"),
    "has no attention or MLP blocks: its layers are state-space mixers",
)
