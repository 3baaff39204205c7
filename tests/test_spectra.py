"""Exact singular values on hostile matrices, and verification with planted faults."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

import tightpass as tp
from tightpass.errors import VerificationError
from tightpass.jacobian.operator import Panel
from tightpass.jacobian.written import Written
from tightpass.spectra import exact, verify


def with_spectrum(sigma, rows=None, seed=0):
    """A matrix with known singular values."""
    rng = np.random.default_rng(seed)
    n = len(sigma)
    U = np.linalg.qr(rng.standard_normal((rows or n, n)))[0]
    V = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (U * sigma) @ V.T


def kahan(n, theta=1.2):
    return np.diag(np.sin(theta) ** np.arange(n)) @ (np.eye(n) - np.cos(theta) * np.triu(np.ones((n, n)), 1))


MATRICES = {
    "zero": np.zeros((7, 7)),
    "one": np.array([[3.0]]),
    "identity": np.eye(13),
    "ones": np.ones((31, 31)),
    "hilbert": scipy.linalg.hilbert(17),
    "kahan": kahan(40),
    "tall": with_spectrum(np.geomspace(1, 1e-9, 11), rows=29),
    "wide": with_spectrum(np.geomspace(1, 1e-9, 11), rows=29).T,
    "step": with_spectrum(np.r_[np.ones(20), np.full(17, 1e-13)]),
    "clustered": with_spectrum(np.r_[1.0, np.full(30, 1e-3)]),
    "huge": with_spectrum(np.geomspace(1e150, 1e140, 19)),
    "tiny": with_spectrum(np.geomspace(1e-140, 1e-150, 19)),
}


def source_of(A, diagonal=0):
    """A matrix as a source: dense, or repeated as `diagonal` blocks of growing scale."""
    blocks = torch.from_numpy(np.stack([A * (i + 1) for i in range(max(diagonal, 1))]))
    rows = tuple(range(len(blocks)))
    structure = tp.BlockDiagonal() if diagonal else tp.Dense()
    shape = (A.shape[0] * len(rows), A.shape[1] * len(rows))
    return Written(structure, shape, *A.shape, [Panel(rows, rows, blocks)])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("diagonal", [0, 5])
@pytest.mark.parametrize("name", MATRICES)
def test_values_within_rounding_of_a_second_lapack_driver(name, diagonal, dtype):
    if dtype == np.float32 and name in ("huge", "tiny"):
        pytest.skip("out of float32's range")
    A = MATRICES[name].astype(dtype)
    found = exact.singular_values(source_of(A, diagonal))
    wide = np.concatenate(
        [np.linalg.svd(A.astype(np.float64) * (i + 1), compute_uv=False) for i in range(max(diagonal, 1))]
    )
    reference = np.sort(wide)[::-1]
    error, checks = exact.cross_check(found)
    assert found.values.dtype == dtype
    assert np.abs(found.values - reference).max() <= verify.tolerance(reference[0], len(reference), dtype)
    assert np.abs(found.values - reference).max() <= error.bound or reference[0] == 0
    assert len(checks) == 2


@pytest.mark.parametrize("diagonal", [0, 4])
def test_leading_vectors(diagonal):
    A = with_spectrum(np.geomspace(1, 1e-6, 23))
    source = source_of(A, diagonal)
    found = exact.singular_values(source)
    for k in (1, 2, 9, 500):
        r = exact.leading(source, found, k)
        k = min(k, len(found.values))
        assert r.U.shape == (source.shape[0], k)
        assert r.Vh.shape == (k, source.shape[1])
        assert np.allclose(r.S, found.values[:k], atol=1e-14)
        assert np.all(r.residuals <= 1e-13)
        J = exact.assemble(source)
        assert np.abs(J @ r.Vh.T - r.U * r.S).max() <= 1e-13
        assert np.abs(r.U.T @ r.U - np.eye(k)).max() <= 1e-12


def planted(values, fault):
    wrong = values.copy()
    n = len(wrong)
    if fault == "tail zeroed":
        wrong[-n // 20 :] = 0
    elif fault == "two averaged":
        wrong[n // 3 : n // 3 + 2] = wrong[n // 3 : n // 3 + 2].mean()
        wrong[: n // 3 + 1 : n // 3] += [0, 0]
    elif fault == "nan":
        wrong[5] = np.nan
    elif fault == "negative":
        wrong[-1] = -wrong[-1]
    elif fault == "unsorted":
        wrong[[2, 3]] = wrong[[3, 2]]
    elif fault == "one missing":
        wrong = wrong[:-1]
    elif fault == "scaled":
        wrong *= 1.001
    elif fault == "tail lifted":
        wrong[-3:] = wrong[-4]
    return wrong


FAULTS = ("tail zeroed", "two averaged", "nan", "negative", "unsorted", "one missing", "scaled", "tail lifted")


@pytest.mark.parametrize("size", [60, 1100])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(size, fault):
    """1100 is above the size up to which every value is compared: there the probes must see it."""
    if size > verify.SMALL and fault == "two averaged":
        pytest.skip("a shift of one gap inside the bulk is below what probes of a large matrix claim to see")
    A = with_spectrum(np.geomspace(1, 1e-3, size), seed=size)
    values = exact.gesdd(A)
    energy = verify.squared_norm(A)
    verify.check_values(values, energy, A.shape)
    verify.check_dense(A, values)
    wrong = planted(values, fault)
    with pytest.raises(VerificationError):  # noqa: PT012 - either of the two checks may see it
        verify.check_values(wrong, energy, A.shape)
        verify.check_dense(A, wrong)


def test_a_failing_driver_is_followed_by_the_second(monkeypatch):
    A = with_spectrum(np.geomspace(1, 1e-3, 30))
    calls = []

    def failing(_):
        calls.append("first")
        raise np.linalg.LinAlgError("did not converge")

    def wrong(A):
        calls.append("wrong")
        return 1.01 * exact.gesdd(A)

    monkeypatch.setattr(exact, "DRIVERS", (failing, exact.gesvd))
    assert np.allclose(exact.verified_values(A), np.geomspace(1, 1e-3, 30))
    assert calls == ["first"]
    monkeypatch.setattr(exact, "DRIVERS", (failing, wrong))
    with pytest.raises(VerificationError, match="failing: did not converge; wrong: Σσ²"):
        exact.verified_values(A)


def test_inertia_counts_are_exact_on_known_spectra():
    sigma = np.r_[np.linspace(2, 1, 40), np.linspace(0.1, 0.01, 33)]
    A = with_spectrum(sigma)
    for tau in (1.5001, 0.5, 0.05001):
        assert verify._eigenvalues_above(A.T @ A, tau**2) == int(np.sum(sigma > tau))
