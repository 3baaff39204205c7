"""The verdict on the k leading singular values alone: J is never formed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from tightpass.arrays import dtype_name, on_host
from tightpass.confidence import CERTAIN, allowed_energy
from tightpass.evidence.arithmetic import estimated_of_products, frobenius, measured_of_products, norm2
from tightpass.evidence.arithmetic import work_of as work_of_measuring
from tightpass.evidence.bounds import structural_bounds
from tightpass.evidence.collect import check_range
from tightpass.evidence.explain import by_distance, of_attention
from tightpass.evidence.explain import work_of as work_of_heads
from tightpass.evidence.units import units
from tightpass.evidence.units import work_of as work_of_units
from tightpass.jacobians.forms.base import Cost
from tightpass.jacobians.operator import Jacobian
from tightpass.jacobians.twice.block import TwiceCost, twice
from tightpass.models.shape import Shape
from tightpass.rank.floor import Floor, storage
from tightpass.rank.records import Bound, Evidence, Explanation, Part
from tightpass.rank.spectrum import Spectrum
from tightpass.spectra.leading.krylov import BLOCK, Leading, svds
from tightpass.spectra.leading.krylov import work_of as work_of_svds
from tightpass.work import Work, passing

DEFAULT_K = 64
ARRAYS = 3
"""Of all columns of a product, beside what comes in: a copy by token, the answer, and that by column."""
ENERGY_PROBES = 32
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
            (evidence.arithmetic, storage(str(values.dtype)), *_parts_of(found)),
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


def work_of(cost: Cost, exact: TwiceCost, kind: str, tokens: int, shape: Shape, k: int, itemsize: int) -> Work:
    """Of `leading_spectrum`."""
    size = tokens * shape.width
    k = min(k, size)
    columns, several = max(k, BLOCK), ARRAYS * size * itemsize

    def product(columns: int) -> Work:
        return passing(several * columns + cost.product_bytes(columns, itemsize), cost.product)

    norm = passing(cost.norm * 8) if cost.norm else product(ENERGY_PROBES).then(passing(2 * ENERGY_PROBES * size * 8))
    return (
        work_of_svds(size, size, k, itemsize, product(columns))
        .then(replace(norm, flops=0.0), work_of_heads(cost, kind, tokens, shape, itemsize), exact.made)
        .then(
            work_of_units(shape, kind, tokens, itemsize), work_of_measuring(cost, exact, kind, tokens, shape, itemsize)
        )
    )


def _parts_of(found: Leading) -> tuple[Part, Part]:
    """Of the products with the basis, and of the subspace where it was cut off."""
    U, S, Vh = on_host(found.U).astype(np.float64), on_host(found.S), on_host(found.Vh).astype(np.float64)
    unit = np.eye(len(S))
    spoiled = (norm2(unit - U.T @ U) + norm2(unit - Vh @ Vh.T)) / 2 * float(S[0])
    R = np.sqrt(np.sum(np.square(on_host(found.residuals), dtype=np.float64)))
    missed = "" if found.converged else "; not all converged"
    return (
        Part("SVD", spoiled, "measured: what U and V lack in orthonormality, times σ₁", CERTAIN),
        Part("truncation", float(R), f"measured: the residuals of all triplets, in Frobenius norm{missed}", CERTAIN),
    )


def evidence_without_blocks(J: Jacobian) -> Evidence:
    """What `evidence.collect` learns, as far as products and the weights tell it."""
    energies = J.block_energies()
    known = J.known_energy() if energies is None else float(energies.sum())
    estimated = known is None
    energy = _estimated_energy(J) if known is None else known
    check_range(energy, np.sqrt(energy))
    if J.block is None:
        size = Bound(min(J.shape), f"{J.shape[0]} × {J.shape[1]} matrix")
        return Evidence(energy, estimated_of_products(J), (size,), 0, None, J.route, estimated)
    heads, paths = of_attention(J, energy)  # before `exact` is held
    rounding = None if estimated else _rounding_of_energy(J, energy)
    exact, units_found = None if J.rejected else twice(J.block), units(J.block)
    arithmetic = estimated_of_products(J) if exact is None else measured_of_products(J, exact)
    moved = math.sqrt(min(J.shape)) * arithmetic.bound if exact is None else frobenius(J, exact)
    return Evidence(
        energy=energy,
        arithmetic=arithmetic,
        bounds=structural_bounds(J.block, units_found),
        kinks=units_found.kinks,
        undecided=units_found.undecided,
        active=units_found.active,
        route=J.route,
        estimated=estimated,
        saturated=0 if exact is None else exact.saturated,
        excess=None if rounding is None else moved + rounding,
        explanation=Explanation(
            heads=heads, paths=paths, distances=None if energies is None else by_distance(energies)
        ),
    )


def _rounding_of_energy(J: Jacobian, energy: float) -> float:
    """By how much ‖J‖_F may be more than √`energy` for rounding in that, whose terms may cancel."""
    allowed = allowed_energy(min(J.shape), dtype_name(J.dtype)) * J.form.energy_reach()
    return math.sqrt(energy + allowed) - math.sqrt(energy)


def _estimated_energy(J: Jacobian) -> float:
    """E‖J·z‖² = ‖J‖_F² for Gaussian z (Hutchinson 1990)."""
    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(J.shape[1], ENERGY_PROBES, generator=generator, dtype=J.dtype).to(J.device)
    return float((J.matmat(Z).double() ** 2).sum()) / ENERGY_PROBES
