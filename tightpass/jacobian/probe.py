"""Checks of a Jacobian with random vectors: a claimed structure must not leak, written blocks must multiply as J does."""

from __future__ import annotations

import math

import torch

from tightpass.errors import VerificationError
from tightpass.jacobian.autodiff import Linearisation
from tightpass.structure import Structure

PROBED_TOKENS = 5


def check_structure(whole: Linearisation, structure: Structure) -> None:
    """Raises VerificationError if an output token depends on an input token that it must not.

    A random cotangent on output token t is pulled back; it may reach only the tokens of row t,
    for the first, the last and some tokens between. Anything above rounding is a leak.
    """
    tokens = whole.y.shape[0]
    chosen = sorted({round(i * (tokens - 1) / (PROBED_TOKENS - 1)) for i in range(PROBED_TOKENS)})
    generator = torch.Generator().manual_seed(0)
    cotangents = torch.zeros(len(chosen), *whole.y.shape, dtype=whole.y.dtype)
    for i, t in enumerate(chosen):
        cotangents[i, t] = torch.randn(whole.y.shape[1], generator=generator, dtype=whole.y.dtype)
    pulled = whole.pull(cotangents.to(whole.y.device)).abs().amax(-1)  # (probe, tokens)
    for i, t in enumerate(chosen):
        allowed = structure.row(t, tokens)
        outside = [s for s in range(tokens) if s not in allowed]
        leak = float(pulled[i, outside].max()) if outside else 0.0
        if not leak <= 4 * torch.finfo(pulled.dtype).eps * float(pulled[i].max()):
            raise VerificationError(
                f"claimed {structure.name}, but output token {t} depends on input tokens outside of "
                f"{allowed.start}..{allowed.stop - 1} (derivative {leak:.1e}); use structure=Dense()"
            )


class WrittenProduct:
    """Σ blocks·v of the panels as they pass, for a random v: what is stored, against a product that does not form J."""

    def __init__(self, tokens_in: int, like: torch.Tensor, tokens_out: int, d_out: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.v = torch.randn(tokens_in, like.shape[1], generator=generator, dtype=like.dtype).to(like.device)
        self.sum = like.new_zeros(tokens_out, d_out)

    def add(self, rows: tuple[int, ...], columns: tuple[int, ...], blocks: torch.Tensor) -> None:
        """Some blocks (n, d_out, d_in) at (rows[i], columns[i])."""
        products = (blocks @ self.v[list(columns), :, None])[..., 0]
        self.sum.index_add_(0, torch.tensor(rows, device=self.sum.device), products)

    def check(self, expected: torch.Tensor, name: str) -> float:
        """‖Σ blocks·v − J·v‖/‖J·v‖, J·v (tokens_out, d_out). Raises VerificationError unless it is within rounding."""
        error = ratio(float((self.sum - expected).norm()), float(expected.norm()))
        if not error <= explained(expected.dtype):
            raise VerificationError(
                f"{name}: the written blocks times a random vector differ from J·v by {error:.1e} "
                f"(rounding explains {explained(expected.dtype):.0e}); the kernels are wrong on this machine: "
                "set TIGHTPASS_KERNELS=reference, and report what `tightpass doctor` prints"
            )
        return error


def explained(dtype: torch.dtype) -> float:
    """Relative difference of two products that rounding can explain."""
    return max(1e4 * torch.finfo(dtype).eps, 1e-9)


def ratio(part: float, whole: float) -> float:
    """part / whole, infinite for anything that is not a number."""
    if not (math.isfinite(part) and math.isfinite(whole)):
        return math.inf
    return 0.0 if part == 0 else part / whole if whole > 0 else math.inf
