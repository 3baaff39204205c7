"""One Jacobian -> its verdict: decomposed by whichever method is asked for, and judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tightpass import doors
from tightpass.errors import InputError, VerificationError
from tightpass.evidence.collect import collect
from tightpass.evidence.leading import DEFAULT_K, leading_spectrum
from tightpass.jacobians.operator import Jacobian, Transposed
from tightpass.jacobians.written import Written
from tightpass.rank.floor import Floor, storage
from tightpass.rank.records import Evidence, Part
from tightpass.rank.spectrum import Spectrum
from tightpass.spectra.batched import Factors
from tightpass.spectra.exact import cross_check, leading, singular_values
from tightpass.spectra.verify import SvdError
from tightpass.structure import Source

METHODS = ("auto", "exact", "topk")


def spectrum(J: Jacobian | Transposed, method: str = "auto", vectors: int = 0, k: int | None = None) -> Spectrum:
    """The singular values of a Jacobian, or of its transpose J.T, with floor, labels and rank.

    method   "auto" or "exact": all values, J is written out in memory; "topk": the k leading ones, J is never formed
    vectors  how many leading singular vectors to keep as U, Vh, with residuals
    k        of "topk" only; 64 if left out

    Raises VerificationError if the values cannot be verified.
    """
    check_method(method)
    if isinstance(J, Transposed):
        return transposed(spectrum(J.T, method, vectors, k), J)
    if not isinstance(J, Jacobian):
        raise InputError(f"spectrum expects the result of tightpass.jacobian, got {type(J).__name__}")
    if isinstance(vectors, bool) or not isinstance(vectors, int | np.integer):
        raise InputError(f"vectors must be a whole number, got {doors.shown(vectors)}")
    if vectors < 0:
        raise InputError(f"vectors must be at least 0, got {vectors}")
    check_k(method, k, vectors)
    check_count_of_values(J.shape, k, vectors)
    if method == "topk":
        found = leading_spectrum(J, DEFAULT_K if k is None else k, vectors)
        return replace(found, checks=(*found.checks, *J.looked), tokens_out=J.tokens_out)
    written = Written.like(J)
    evidence = collect(J, written.kept.append, written.panels)
    found = verdict(written, evidence, J.name, J.tokens_in, vectors, J.factors)
    return replace(found, checks=(*found.checks, *J.looked), tokens_out=J.tokens_out)


def transposed(s: Spectrum, of: Transposed) -> Spectrum:
    """That of Jᵀ: the same values, known as well, their vectors exchanged, and every distance t − s the other way."""
    why = s.evidence.explanation
    turned = None if why.distances is None else tuple((-apart, share) for apart, share in reversed(why.distances))
    return replace(
        s,
        name=of.name,
        tokens=of.tokens_in,
        tokens_out=of.T.tokens_in,
        evidence=replace(s.evidence, explanation=replace(why, distances=turned)),
        U=None if s.Vh is None else s.Vh.T.copy(),
        Vh=None if s.U is None else s.U.T.copy(),
    )


def verdict(
    source: Source,
    evidence: Evidence,
    name: str,
    tokens: int,
    vectors: int = 0,
    factors: Factors | None = None,
    memory: int | None = None,
) -> Spectrum:
    """Decomposes a source that has been written out, by its factors where they are known, and judges it."""
    exact = singular_values(source, factors, memory)
    error, checks = cross_check(exact)
    dtype = exact.values.dtype
    sigma1 = float(exact.values[0])
    floor = Floor(
        (evidence.arithmetic, storage(str(dtype)), svd_part(error)),
        conventional=max(source.shape) * float(np.finfo(dtype).eps) * sigma1,
    )
    triplets = leading(source, exact, vectors) if vectors else None
    found = Spectrum(
        name=name,
        tokens=tokens,
        values=exact.values,
        blocks=exact.blocks,
        floor=floor,
        evidence=evidence,
        method=f"exact: {exact.route}",
        checks=checks,
        U=None if triplets is None else triplets.U,
        Vh=None if triplets is None else triplets.Vh,
        residuals=None if triplets is None else triplets.residuals,
    )
    return replace(found, checks=(*checks, *cross_examined(found)))


def cross_examined(s: Spectrum) -> tuple[str, ...]:
    """What else was held against the floor, in words: a second route, and directions and values that must be zero.

    Raises VerificationError where one of these is larger than the floor, which is then too small.
    """
    checks, floor, null = [], s.floor.total, s.evidence.explanation.null
    if s.evidence.agreement is not None:
        checks.append(
            f"blocks times a random vector against a product that does not form J: {s.evidence.agreement:.0e}"
        )
    if null is not None:
        if null > s.evidence.arithmetic.bound:
            raise VerificationError(
                f"{s.name}: J has gain {null:.1e} along directions that the LayerNorm removes, "
                f"more than the floor's part of the model's arithmetic, {s.evidence.arithmetic.bound:.1e}"
            )
        checks.append(f"gain {null:.0e} along directions that the LayerNorm removes, the floor is {floor:.0e}")
    if s.known_zeros is not None:
        if s.known_zeros.largest > floor:
            raise VerificationError(
                f"{s.name}: a singular value that structure says is zero came out as {s.known_zeros.largest:.1e}, "
                f"more than the floor, {floor:.1e}"
            )
        zeros = s.known_zeros
        checks.append(f"{zeros.count} values that are zero by structure: the largest is {zeros.largest:.0e}")
    return tuple(checks)


def svd_part(error: SvdError) -> Part:
    return Part("SVD", error.bound, error.method, error.confidence, error.chance)


def check_k(method: str, k: int | None, vectors: int) -> None:
    """Raises InputError for a k without "topk", below one, or for more vectors than values."""
    if k is None:
        return
    if method != "topk":
        raise InputError(f"k is how many values method topk finds; method {method} finds all of them")
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise InputError(f"k must be a whole number, got {doors.shown(k)}")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if vectors > k:
        raise InputError(f"vectors must be at most k = {k}, got {vectors}")


def check_count_of_values(shape: tuple[int, int], k: int | None, vectors: int) -> None:
    """Raises InputError for more values, or vectors, than a Jacobian of that shape has."""
    for name, count in (("k", k), ("vectors", vectors)):
        if count is not None and count > min(shape):
            raise InputError(
                f"{name} must be at most {min(shape)}, as many as J, {shape[0]} × {shape[1]}, has; got {count}"
            )


def check_method(method: str) -> None:
    """Raises InputError for an unknown method."""
    if not doors.one_of(method, METHODS):
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {doors.shown(method)}")
