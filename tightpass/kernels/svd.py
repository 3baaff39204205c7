"""The stages of the two-stage singular value decomposition, one by one and in one call."""

from __future__ import annotations

from typing import Any

import numpy as np

from tightpass.arrays import placement
from tightpass.errors import InputError
from tightpass.kernels.call import Call, as_kind_of, as_numpy, shape_of
from tightpass.kernels.reference import svd as reference

Array = Any

WIDTHS = range(16, 129, 16)
"""Widths of a band."""
MOST_PROBES = 6
"""At most as many columns are turned by a reduction beside its matrix."""
PROBES = 4
"""As many probes go through `two_stage`."""
SAFE = 2.0**20
"""Entries up to this size, and down to its inverse, are reduced as they are; other matrices are scaled first."""
ABSOLUTE, RELATIVE, SLACK = 0.0625, 0.125, 0.125
"""Brackets of values are bisected down to the larger of eps·ABSOLUTE·(max |d| + max |e|) and eps·RELATIVE·σ; counts have to
confirm a value within eps·(σ + SLACK·σ₁)."""


def band_reduction(
    a: Array, band: Array, left: Array, right: Array, width: int, threads: int | None = None, stream: int | None = None
) -> Array:
    """Q₁ᵀ·A·P₁ = upper band, into `band`, which holds zeros before; returns it. Destroys `a`.

    a            (m, n) with m ≥ n ≥ 1, contiguous rows
    band         (rows ≥ n, 3·width): entry (i, j) at column width + j − i
    left, right  (≥ m, p) and (≥ n, p): become Q₁ᵀ·left and P₁ᵀ·right, p ≤ MOST_PROBES
    width        one of WIDTHS
    """
    call = Call("band_reduction", "a", a)
    m, n = _tall("a", a)
    _check_width(width)
    call.add_output(a, (m, n), "a")
    _add_band(call, band, left, right, width, n, (m, n))
    call.check_apart()
    if not call.run(threads, stream):
        reference.band_reduction(a, band, left, right, width)
    return band


def bulge_chase(
    band: Array, left: Array, right: Array, n: int, width: int, threads: int | None = None, stream: int | None = None
) -> Array:
    """Q₂ᵀ·B·P₂ = upper bidiagonal, in place of the band of `band_reduction`; returns it.

    band, left, right   (n + 2·width, ·) each, zeros after row n; the diagonal is left in column `width` of the
                        band, the superdiagonal in the next
    """
    call = Call("bulge_chase", "band", band)
    _check_width(width)
    if n < 1:
        raise InputError(f"n: expected at least 1, got {n}")
    rows = n + 2 * width
    _add_band(call, band, left, right, width, rows, (rows, rows))
    if not placement("band", band).contiguous:
        raise InputError(f"band: expected a contiguous array, got strides {placement('band', band).strides}")
    call.check_apart()
    call.given |= {"n": n}
    if not call.run(threads, stream):
        reference.bulge_chase(band, left, right, n, width)
    return band


def two_stage(
    a: Array, probes: Array, width: int, in_place: bool = False, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]] | None:
    """All singular values in one native call; None where there is none for this device.

    a        (m, n) with m ≥ n ≥ 1, any strides; destroyed with `in_place`, which needs contiguous rows
    probes   (PROBES, n): Zᵀ

    Returns, of A divided by a power of two: d (n,) and e (n − 1,) in float64, the values (n,) in A's precision, and
    what probes and counts tell (`ReductionCheck` in csrc/ops.h).
    """
    call = Call("two_stage", "a", a)
    m, n = _tall("a", a)
    _check_width(width)
    if in_place:
        call.add_output(a, (m, n), "a")
    else:
        call.add("a", a, (m, n))
    call.add("probes", probes, (PROBES, n), rows=True)
    call.check_apart()
    compiled = call.kernel() if call.device == "cpu" else None
    if compiled is None:
        return None
    d, e, values = np.empty(n), np.empty(n - 1), np.empty(n, dtype=call.dtype)
    for name, made in (("d", d), ("e", e), ("values", values)):  # fresh: nothing to check
        call.given[name] = made.__array_interface__["data"][0], made.shape, (1,)
    call.given |= {"width": width, "in_place": in_place}
    return d, e, values, compiled(call.given, call.threads(threads))


def bisection(
    d: Array, e: Array, absolute: float, relative: float, threads: int | None = None, stream: int | None = None
) -> Array:
    """Singular values, descending, of the upper bidiagonal matrix of diagonal d (n,) and superdiagonal e (n − 1,).

    float64. Each is bracketed to max(absolute, relative·σ) by Sturm counts; 0 where the bracket reaches zero. Entries
    must lie within 1e±150, so that squares stay in range.
    """
    call = _bidiagonal("bisection", d, e)
    for name, value in (("absolute", absolute), ("relative", relative)):
        if not 0 <= value < float("inf"):
            raise InputError(f"{name}: expected a number ≥ 0, got {value}")
    values = as_kind_of(np.empty(d.shape[0]), d)
    call.add_output(values, tuple(d.shape), "values")
    call.given |= {"absolute": float(absolute), "relative": float(relative)}
    if not call.run(threads, stream):
        return as_kind_of(reference.bisection(as_numpy(d), as_numpy(e), absolute, relative), d)
    return values


def sturm_counts(d: Array, e: Array, taus: Array, threads: int | None = None, stream: int | None = None) -> Array:
    """#{σ < τ} of the bidiagonal matrix for each τ ≥ 0 of taus (k,), as int64."""
    call = _bidiagonal("sturm_counts", d, e)
    call.add("taus", taus, (len(taus),))
    counts = as_kind_of(np.zeros(len(taus), dtype=np.int64), d)
    call.given["counts"] = placement("counts", counts).handed_over
    if not call.run(threads, stream):
        return as_kind_of(reference.sturm_counts(as_numpy(d), as_numpy(e), as_numpy(taus)), d)
    return counts


def _tall(name: str, array: Array) -> tuple[int, int]:
    m, n = shape_of(name, array, 2, "a matrix")
    if not m >= n >= 1:
        raise InputError(f"{name}: expected (m, n) with m ≥ n ≥ 1, got shape {(m, n)}")
    return m, n


def _check_width(width: int) -> None:
    if width not in WIDTHS:
        raise InputError(f"width: expected a multiple of {WIDTHS.step} up to {WIDTHS[-1]}, got {width}")


def _add_band(
    call: Call, band: Array, left: Array, right: Array, width: int, rows: int, probed: tuple[int, int]
) -> None:
    """The band and the probes; each may have more rows than it needs."""
    given = {"band": band, "left": left, "right": right}
    found = {name: shape_of(name, array, 2, "a matrix") for name, array in given.items()}
    probes = found["left"][1]
    if probes > MOST_PROBES:
        raise InputError(f"left: expected at most {MOST_PROBES} columns, got {probes}")
    wanted = {"band": (rows, 3 * width), "left": (probed[0], probes), "right": (probed[1], probes)}
    for name, array in given.items():
        if found[name][0] < wanted[name][0]:
            raise InputError(f"{name}: expected at least {wanted[name][0]} rows, got shape {found[name]}")
        call.add_output(array, (found[name][0], wanted[name][1]), name)
    call.given |= {"width": width}


def _bidiagonal(operation: str, d: Array, e: Array) -> Call:
    call = Call(operation, "d", d)
    if call.dtype != "float64":
        raise InputError(f"d: expected float64, got {call.dtype}")
    if len(placement("d", d).shape) != 1 or d.shape[0] < 1:
        raise InputError(f"d: expected at least one value in a row, got shape {tuple(d.shape)}")
    call.add("d", d, tuple(d.shape))
    call.add("e", e, (d.shape[0] - 1,))
    return call
