"""The stages of the two-stage SVD.

`band_reduction` is written over the array API, and is what runs on a GPU: all of it is products of the array library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from tightpass.arrays import beside, on_host

Values = NDArray[np.float64]
ROWS = 2048
"""Rows of the trailing matrix that are updated at once, so that the product takes little memory of its own."""

# As in csrc/formulas.h, which says why.
LEAST_REST = {4: 2.0**-110, 8: 2.0**-960}  # by bytes of an entry
OVER_ZERO = -(2.0**60)
LEAST_TAU = 2.0**-511
ABOVE = 1 + 2.0**-40
SPREAD, DOWN = 8.0, 2.0**-10


def band_reduction(a: Any, band: Any, left: Any, right: Any, width: int) -> None:
    """As `tightpass.kernels.svd.band_reduction`: X = TᵀVᵀA, then one update of rank 2·width a step for both reflectors."""
    b = width
    if 3 * a.shape[0] > 5 * a.shape[1]:
        a = _triangle(a, left)
    n = a.shape[1]
    for k in range(0, n, b):
        V, T, R = householder(a[k:, k : k + b])
        _put(band, R, k, k, b)
        _reflect(left[k:, :], V, T)
        if k + b >= n:
            return
        X = T.T @ (V.T @ a[k:, k + b :])
        W, S, L = householder((a[k : k + b, k + b :] - V[:b, :] @ X).T)
        _put(band, L.T, k, k + b, b)
        _reflect(right[k + b :, :], W, S)
        _update(a[k + b :, k + b :], V[b:, :], X, W, S)


def _triangle(a: Any, left: Any) -> Any:
    """R of QR; the left probes are turned with it."""
    xp = array_namespace(a)
    Q, R = xp.linalg.qr(a)
    m, n = a.shape
    left[:n, :] = Q.T @ left[:m, :]
    left[n:, :] = 0
    return R


def _update(C: Any, V: Any, X: Any, W: Any, S: Any) -> None:
    """C ← (C − V·X)·(I − W·S·Wᵀ), some rows at a time."""
    xp = array_namespace(C)
    XW, right = X @ W, xp.concat([X, W.T], axis=0)
    for start in range(0, C.shape[0], ROWS):
        rows = slice(start, min(start + ROWS, C.shape[0]))
        Y = (C[rows, :] @ W - V[rows, :] @ XW) @ S
        C[rows, :] -= xp.concat([V[rows, :], Y], axis=1) @ right


def _reflect(probes: Any, V: Any, T: Any) -> None:
    """probes ← (I − V·T·Vᵀ)ᵀ·probes in the rows of V."""
    probes[: V.shape[0], :] -= V @ (T.T @ (V.T @ probes[: V.shape[0], :]))


def _put(band: Any, block: Any, row: int, column: int, width: int) -> None:
    """A small triangular block into the band."""
    host = on_host(block)
    for i in range(host.shape[0]):
        js = np.flatnonzero(host[i])
        js = js[(js + column >= row + i) & (js + column <= row + i + width)]
        if len(js):
            first, last = int(js[0]), int(js[-1]) + 1
            at = width + column - row - i
            band[row + i, at + first : at + last] = block[i, first:last]


def householder(panel: Any) -> tuple[Any, Any, Any]:
    """V (m, k), T (k, k), R (k, b) with panel = (I − V·T·Vᵀ)[:, :k]·R, k = min(m, b).

    From the library's QR, by the modified LU of its Q (Ballard, Demmel, Grigori, Jacquelin, Knight &
    Nguyen 2015): Q − S = V·U with signs S, T = −U·S·V₁⁻ᵀ.
    """
    xp = array_namespace(panel)
    Q, R = xp.linalg.qr(panel)
    k = Q.shape[1]
    top = on_host(Q[:k, :]).astype(np.float64)
    signs = np.empty(k)
    for j in range(k):
        signs[j] = -1.0 if top[j, j] >= 0 else 1.0
        top[j, j] -= signs[j]
        top[j + 1 :, j] /= top[j, j]
        top[j + 1 :, j + 1 :] -= np.outer(top[j + 1 :, j], top[j, j + 1 :])
    lower, upper = np.tril(top, -1) + np.eye(k), np.triu(top)
    T = -np.linalg.solve(lower, (upper * signs).T).T
    V = xp.concat([beside(lower, Q), Q[k:, :] @ beside(np.linalg.inv(upper), Q)], axis=0)
    return V, beside(T, Q), beside(signs[:, None], Q) * R


def bulge_chase(band: Any, left: Any, right: Any, n: int, width: int) -> None:
    """As `tightpass.kernels.svd.bulge_chase`, one sweep after the other, in NumPy."""
    b = width
    host, y, z = (np.ascontiguousarray(on_host(array)).copy() for array in (band, left, right))
    size = host.itemsize
    A = np.lib.stride_tricks.as_strided(
        host.reshape(-1)[b:], (len(host), 1), ((3 * b - 1) * size, size)
    )  # A[i, j] is entry (i, j): rows overlap outside of the band

    def window(i: int, j: int, rows: int, columns: int) -> Any:
        start = i * (3 * b - 1) + b + j
        return np.lib.stride_tricks.as_strided(host.reshape(-1)[start:], (rows, columns), A.strides)

    for i in range(n - 1):
        v, tau = _clear(window(i, i + 1, 1, b)[0])
        for c in range(i + 1, n, b):
            above = 0 if c == i + 1 else b - 1
            rows = window(c - above, c, above + b, b)
            rows -= tau * np.outer(rows @ v, v)
            z[c : c + b] -= tau * np.outer(v, v @ z[c : c + b])
            block = window(c, c, b, 2 * b)
            u, tau = _clear(block[:, 0].copy())
            block -= tau * np.outer(u, u @ block)
            block[1:, 0] = 0
            y[c : c + b] -= tau * np.outer(u, u @ y[c : c + b])
            v, tau = _clear(window(c, c + b, 1, b)[0])
    for array, result in ((band, host), (left, y), (right, z)):
        array[:] = beside(result, array)


def _clear(x: Any) -> tuple[Any, float]:
    """v and tau of the reflector that turns x into (beta, 0, ..), which is written to x."""
    alpha, rest = x[0], np.vdot(x[1:], x[1:])
    v = np.zeros_like(x)
    v[0] = 1
    if not rest > LEAST_REST[x.itemsize]:
        x[1:] = 0
        return v, 0.0
    beta = -np.copysign(np.sqrt(alpha * alpha + rest), alpha)
    v[1:] = x[1:] / (alpha - beta)
    x[0], x[1:] = beta, 0
    return v, (beta - alpha) / beta


def sturm_counts(d: Values, e: Values, taus: Values) -> NDArray[np.int64]:
    """As `tightpass.kernels.svd.sturm_counts`: negative pivots of BᵀB − τ²I (Fernando 1998). What becomes of a pivot of
    zero is said in csrc/formulas.h."""
    d2, e2 = d**2, np.append(e**2, 0.0)
    shifts = np.where(taus > LEAST_TAU, taus, LEAST_TAU) ** 2
    s, counts = -shifts, np.zeros(len(taus), dtype=np.int64)
    with np.errstate(all="ignore"):
        for i in range(len(d)):
            pivot = s + d2[i]
            counts += pivot < 0
            quotient = np.where(pivot == s, 1.0, np.where(pivot == 0, OVER_ZERO, s / pivot))
            s = quotient * e2[i] - shifts
    return np.where(taus > 0, counts, 0)


def bisection(d: Values, e: Values, absolute: float, relative: float) -> Values:
    """As `tightpass.kernels.svd.bisection`, all values at once."""
    n = len(d)
    off = np.append(np.abs(e), 0.0)
    bound = float(np.max(np.abs(d) + np.maximum(off, np.append(0.0, off[:-1])))) * ABOVE
    low, high, index = np.zeros(n), np.full(n, bound), np.arange(n)
    while bound > 0:
        with np.errstate(over="ignore"):
            spread = np.where(high > SPREAD * low, np.sqrt(low) * np.sqrt(high), low + (high - low) / 2)
        first = high * DOWN
        middle = np.where(low > 0, spread, np.where(first > absolute / 2, first, high / 2))
        open_ = (high - low > np.maximum(absolute, relative * high)) & (middle > low) & (middle < high)
        if not np.any(open_):
            break
        above = sturm_counts(d, e, middle) > index
        high, low = np.where(open_ & above, middle, high), np.where(open_ & ~above, middle, low)
    ascending = np.where(low > 0, low + (high - low) / 2, 0.0)
    return np.maximum.accumulate(ascending)[::-1].copy()
