"""What large arrays cost before anything is computed, and products of few rows with a large matrix at once or in parts.

    python benchmarks/pages.py

Fresh memory is written once, as torch and as NumPy hand it out (`forms/base.py: room`). Weights (n, 32) times P (32, 4096²), as
`forms/attention.py` takes them: at once, and `AT_ONCE` entries of each P_h at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from common import interleaved, save, table

from tightpass.jacobians.forms.attention import AT_ONCE
from tightpass.jacobians.forms.base import room

SIZES = (2**24, 2**26, 2**28)
"""Float32 numbers."""
ROWS = (4, 7, 11, 24)
HEADS, ENTRIES = 32, 4096**2


def fresh(count: int, rounds: int) -> dict[str, Any]:
    like = torch.empty(0)
    works = {"torch": lambda: like.new_empty(count).zero_(), "numpy": lambda: room((count,), like).zero_()}
    times, _ = interleaved(works, rounds)
    return {"mib": count * 4 // 2**20, "seconds": times}


def weighed(rows: int, P: torch.Tensor, rounds: int) -> dict[str, Any]:
    weights, out = torch.randn(rows, HEADS), torch.zeros(rows, ENTRIES)

    def in_parts() -> None:
        for part, into in zip(P.split(AT_ONCE, 1), out.split(AT_ONCE, 1), strict=True):
            torch.mm(weights, part, out=into)

    works = {"at once": lambda: torch.mm(weights, P, out=out), "in parts": in_parts}
    times, _ = interleaved(works, rounds)
    return {"rows": rows, "seconds": times}


def main() -> None:
    memory = [fresh(count, 7) for count in SIZES]
    P = torch.randn(HEADS, ENTRIES)
    products = [weighed(rows, P, 5) for rows in ROWS]
    for cases, what in ((memory, "mib"), (products, "rows")):
        names = list(cases[0]["seconds"])
        rows = [[str(c[what]), *(f"{1e3 * c['seconds'][name]['median']:.0f} ms" for name in names)] for c in cases]
        print(table([what, *names], rows))
    save("pages", {"fresh": memory, "weighed": products})


if __name__ == "__main__":
    main()
