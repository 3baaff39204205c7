"""A rough answer for a few products: a randomized range finder (Halko, Martinsson & Tropp 2011), residuals measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tightpass import doors
from tightpass.arrays import on_host
from tightpass.spectra.lapack import triplets
from tightpass.spectra.leading.krylov import Leading, check_rank, residuals
from tightpass.spectra.leading.operand import check_operator, operand

POWERS = 10**6
"""More power iterations than this nobody waits for."""


def rough_svds(A: Any, k: int, power: int = 2, oversampling: int = 10, seed: int = 0) -> Leading:
    """About the k leading triplets, by a random subspace and `power` iterations; never more than its residuals say.

    On a spectrum that falls slowly the residuals are large; `krylov.svds` is for those. Raises InputError as it does.
    """
    op = operand(A)
    check_rank(op, k)
    k, seed = int(k), doors.seed(seed)
    power, oversampling = doors.whole("power", power, 0, POWERS), doors.whole("oversampling", oversampling)
    check_operator(op, seed)
    width = min(k + oversampling, *op.shape)
    X = op.new(np.random.default_rng(seed).standard_normal((op.shape[1], width)))
    xp = array_namespace(X)
    for _ in range(power):
        Y, _ = xp.linalg.qr(op.matmat(X))
        X, _ = xp.linalg.qr(op.rmatmat(Y))
    Q, _ = xp.linalg.qr(op.matmat(X))
    V, R = xp.linalg.qr(op.rmatmat(Q))  # QᵀA = Rᵀ·Vᵀ
    P, S, Wh = triplets(on_host(R).T.astype(np.float64))
    U, S, V = Q @ op.new(P[:, :k]), op.new(S[:k]), V @ op.new(Wh[:k].T.copy())
    measured = residuals(op, U, S, V)
    columns = (2 * power + 2) * width + 2 * k
    words = f"randomized range finder, {power} power iterations, {width} columns"
    return Leading(
        op.back(U), op.back(S), op.back(V.T), op.back(measured), False, "not checked", columns, words
    )  # fmt: skip
