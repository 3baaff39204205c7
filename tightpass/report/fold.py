"""How many times a fall is, in words; everywhere the same ones."""

from __future__ import annotations

import math


def fold(ratio: float) -> str:
    """A ratio ≥ 1, rounded down: "10^12" from 100 on, "42.3" below, "∞" of a fall to exactly 0."""
    if math.isinf(ratio):
        return "∞"
    return f"10^{math.floor(math.log10(ratio))}" if ratio >= 100 else f"{math.floor(10 * ratio) / 10:.1f}"
