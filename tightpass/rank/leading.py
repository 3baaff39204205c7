"""The verdict on the k leading singular values alone: J is never formed."""

from __future__ import annotations

import numpy as np
import torch

from tightpass.jacobian.operator import Jacobian
from tightpass.kernels.ops import dtype_name
from tightpass.kernels.reference_svd import on_host
from tightpass.rank.bounds import Bound, structural_bounds, units
from tightpass.rank.evidence import OTHER, Evidence, check_range
from tightpass.rank.floor import Floor, Part, assumed_arithmetic
from tightpass.rank.verdict import Spectrum
from tightpass.spectra.krylov import Leading, svds

DEFAULT_K = 64
PROBES = 32
"""Random columns that ‖J‖_F² is estimated from where no closed form has it."""


def leading_spectrum(J: Jacobian, k: int = DEFAULT_K, vectors: int = 0) -> Spectrum:
    """The k leading singular values of J (all, where there are no more) by products, with what is known of the rest.

    The rank is an interval flagged "not converged" unless all values are known; its lower end is certain.
    """
    size = min(J.shape)
    k = min(k, size)
    found = svds(J, k)
    values, residuals = on_host(found.S), on_host(found.residuals)
    evidence = evidence_without_blocks(J)
    kept = slice(0, min(vectors, k))
    return Spectrum(
        name=J.name,
        tokens=J.tokens_in,
        values=values,
        blocks=None,
        floor=Floor(
            (evidence.arithmetic, Part("storage", 0.0, "none: nothing stored"), _svd_part(found)),
            conventional=max(J.shape) * float(np.finfo(values.dtype).eps) * float(values[0]),
        ),
        evidence=evidence,
        method=f"topk: {found.method}; {found.complete}",
        checks=(
            f"residuals of all {k} triplets measured, the worst {residuals.max():.1e}",
            found.complete,
            "adjoint, linearity and the same answer twice",
        ),
        U=on_host(found.U)[:, kept] if vectors else None,
        Vh=on_host(found.Vh)[kept] if vectors else None,
        residuals=residuals[kept] if vectors else None,
        total=size,
    )


def _svd_part(found: Leading) -> Part:
    worst = float(on_host(found.residuals).max())
    missed = "" if found.converged else "; not all converged"
    return Part("SVD", worst, f"measured: the worst residual, a singular value lies that close to each{missed}")


def evidence_without_blocks(J: Jacobian) -> Evidence:
    """What `evidence.collect` learns, as far as products and the weights tell it."""
    energy, estimated = _energy(J)
    check_range(energy, np.sqrt(energy))
    arithmetic = assumed_arithmetic(energy, dtype_name(J.dtype))
    if J.block is None:
        size = Bound(min(J.shape), f"{J.shape[0]} × {J.shape[1]} matrix")
        return Evidence(energy, arithmetic, (size,), 0, None, J.route, estimated)
    found = units(J.block, J.block.in_precision(OTHER[J.dtype]))
    bounds = structural_bounds(J.block, found)
    return Evidence(energy, arithmetic, bounds, found.kinks, found.active, J.route, estimated)


def _energy(J: Jacobian) -> tuple[float, bool]:
    """‖J‖_F², and whether it is an estimate: E‖J·z‖² = ‖J‖_F² for Gaussian z (Hutchinson 1990)."""
    if J.form is not None:
        return J.energy(), False
    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(J.shape[1], PROBES, generator=generator, dtype=J.dtype).to(J.device)
    return float((J.matmat(Z).double() ** 2).sum()) / PROBES, True
