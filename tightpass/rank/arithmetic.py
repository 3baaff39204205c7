"""The floor's part of the model's own arithmetic: J against J in the other precision, at the same x.

A float32 J is as far from the truth as from the float64 J. The float32 J's error, scaled by the ratio of the
precisions, stands for that of a float64 J.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tightpass.jacobian.operator import Jacobian
from tightpass.rank.floor import CALIBRATED, Part
from tightpass.spectra.threads import one_per_core
from tightpass.spectra.verify import ASSUMED, CERTAIN, SAMPLED
from tightpass.structure import BlockDiagonal

Matrix = NDArray[np.floating[Any]]

NAME = "model arithmetic"
RATIO = 2.0**-29
"""The rounding unit of float64 over that of float32."""
SAFETY = 4.0
"""Times the scaled float32 error: against extended precision it was 0.8 to 2.2 times the true one (docs/trust.md)."""
LARGE = 2**28
"""Entries of a J from which on a sample of its block rows and columns is compared."""
DRAWN = 22
"""Block rows, and as many block columns, of a sample."""


class BlockDifferences:
    """‖J − J'‖₂ of two Jacobians in blocks: exact block norms, then the norm of their table.

    For a block matrix E, ‖E‖₂ ≤ ‖(‖E_ts‖₂)_ts‖₂: with equality where block-diagonal.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.table = np.zeros((rows, columns))

    def add(self, rows: tuple[int, ...], columns: tuple[int, ...], first: Matrix, second: Matrix) -> None:
        """Blocks (k, d_out, d_in) of both at the same places."""
        self.table[list(rows), list(columns)] = block_norms(first, second)

    @property
    def bound(self) -> float:
        return norm2(self.table)


def block_norms(first: Matrix, second: Matrix) -> list[float]:
    """‖A − B‖₂ of each pair of blocks (k, d_out, d_in), subtracted in float64."""
    pairs = zip(first, second, strict=True)
    return one_per_core(lambda pair: norm2(np.subtract(*pair, dtype=np.float64)), pairs)


def norm2(E: Matrix) -> float:
    """‖E‖₂ by the largest eigenvalue of the scaled Gram matrix, rounded up.

    The largest eigenvalue alone is safe to take from a Gram matrix: its relative error is a few N·eps.
    """
    scale = float(np.max(np.abs(E), initial=0.0))
    if not np.isfinite(scale):
        return float("inf")
    if scale == 0:
        return 0.0
    scaled = E / scale
    G = scaled.T @ scaled if E.shape[0] >= E.shape[1] else scaled @ scaled.T
    return scale * float(np.sqrt(np.linalg.eigvalsh(G)[-1])) * (1 + 1e-10)


def measured(difference: float, dtype: str, how: str, confidence: str = CERTAIN) -> Part:
    """From a bound on ‖J₃₂ − J₆₄‖₂, whichever of them is J.

    how   what was compared; `confidence` is lowered to "calibrated" where the difference must be scaled
    """
    method = f"measured: float32 J against float64 J at the same x, {how}"
    if dtype == "float32":
        return Part(NAME, difference * (1 + SAFETY * RATIO), method, confidence)
    least = CALIBRATED if confidence == CERTAIN else confidence
    return Part(NAME, SAFETY * RATIO * difference, f"{method}, scaled by 2⁻²⁹ · 4", least)


def assumed(energy: float, dtype: str) -> Part:
    """For a function that cannot be evaluated in a second precision: 16·eps·‖J‖_F."""
    bound = 16 * float(np.finfo(dtype).eps) * float(np.sqrt(energy))
    return Part(NAME, bound, "assumed: 16·eps·‖J‖_F, no second precision at hand", ASSUMED)


def is_large(J: Jacobian) -> bool:
    """Whether a sample is compared: J has many entries, and the sample is less than half of it."""
    blocks = J.structure.count(J.tokens_out, J.tokens_in)
    drawn = DRAWN if isinstance(J.structure, BlockDiagonal) else 2 * DRAWN
    return blocks * J.d_out * J.d_in > LARGE and min(J.tokens_out, J.tokens_in) >= 2 * drawn


def sampled(J: Jacobian, shadow: Jacobian, dtype: str, drawn: int = DRAWN, seed: int = 0) -> Part:
    """From whole block rows, and unless J is block-diagonal block columns, drawn at random.

    ‖E‖₂ ≤ √(max_t Σ_s ‖E_ts‖₂ · max_s Σ_t ‖E_ts‖₂) (Schur's test); the maxima are those of the sample, times 2 in a
    float32 run (the factor 4 of a float64 run is margin enough for both). With m drawn, at 99 % no more than a part
    1 − 0.01^(1/m) of all rows (columns) are worse than the worst that was seen.
    """
    rng = np.random.default_rng(seed)
    rows = rng.choice(J.tokens_out, min(drawn, J.tokens_out), replace=False)
    worst = max(sum(row_norms(J, shadow, int(t))) for t in rows)
    what = "blocks"
    if not isinstance(J.structure, BlockDiagonal):
        columns = rng.choice(J.tokens_in, min(drawn, J.tokens_in), replace=False)
        worst = math.sqrt(worst * max(sum(column_norms(J, shadow, int(s))) for s in columns))
        what = "block rows and columns"
    part = 1 - 0.01 ** (1 / len(rows))
    margin, times = (2, " × 2") if dtype == "float32" else (1, "")
    how = f"{len(rows)} of {J.tokens_out} {what}, the worst{times} (at 99 % at most {part:.0%} are worse than it)"
    return measured(margin * worst, dtype, how, SAMPLED)


def row_norms(J: Jacobian, shadow: Jacobian, t: int) -> list[float]:
    """‖E_ts‖₂ of all blocks of output token t, as they are written."""
    here, there = J.block_row(t), shadow.block_row(t)
    return block_norms(here.blocks.cpu().numpy(), there.blocks.cpu().numpy())


def column_norms(J: Jacobian, shadow: Jacobian, s: int) -> list[float]:
    """‖E_ts‖₂ of all blocks of input token s, by products."""

    def blocks(of: Jacobian) -> Matrix:
        units = of.x.new_zeros(of.tokens_in, of.d_in, of.d_in)
        units[s] = torch.eye(of.d_in, dtype=of.dtype, device=of.device)
        column = of.matmat(units.reshape(-1, of.d_in))
        return column.reshape(of.tokens_out, of.d_out, of.d_in).cpu().numpy()

    return block_norms(blocks(J), blocks(shadow))


def along(J: Jacobian, shadow: Jacobian, U: torch.Tensor, Vh: torch.Tensor, dtype: str) -> Part:
    """Where J is never formed: ‖[E·V; Eᵀ·U]‖₂ for the k triplets that were found, U (M, k), Vh (k, N).

    With R = [J V − U Σ; Jᵀ U − V Σ] and orthonormal U, V, k singular values of J + E lie within ‖R‖₂ + ‖[E V; Eᵀ U]‖₂
    of Σ (Kahan 1967): the errors in other directions do not matter to them.
    """
    wide = [(side.to(J.dtype), side.to(shadow.dtype)) for side in (Vh.T, U)]
    (V, V2), (W, W2) = [(a.to(J.device).contiguous(), b.to(J.device).contiguous()) for a, b in wide]
    pushed = J.matmat(V).double() - shadow.matmat(V2).double()
    pulled = J.rmatmat(W).double() - shadow.rmatmat(W2).double()
    size = norm2(torch.cat([pushed, pulled]).cpu().numpy())
    return measured(size, dtype, f"products with the {Vh.shape[0]} triplets that were found")
