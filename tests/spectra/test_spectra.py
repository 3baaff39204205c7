"""Exact singular values on hostile matrices, and verification with planted faults."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from svd_matrices import hostile, reference

import tightpass as tp
from tightpass.arrays import squared_norm
from tightpass.errors import VerificationError
from tightpass.jacobians.written import Written
from tightpass.kernels import native
from tightpass.kernels.svd import PROBES
from tightpass.spectra import batched, dense, exact, lapack, twostage, verify
from tightpass.structure import Panel


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
def test_values_within_rounding_of_rotations_in_more_precision(name, diagonal, dtype):
    if dtype == np.float32 and name in ("huge", "tiny"):
        pytest.skip("out of float32's range")
    A = MATRICES[name].astype(dtype)
    source = source_of(A, diagonal)
    found = exact.singular_values(source)
    true = np.sort(np.concatenate([reference(block) for block in next(source.panels()).blocks.numpy()]))[::-1]
    error, checks = exact.cross_check(found)
    apart = np.abs(found.values - true).max()
    assert found.values.dtype == dtype
    assert apart <= verify.tolerance(float(true[0]), len(true), dtype)
    assert apart <= error.bound <= 2.1 * apart + 2 * np.finfo(dtype).eps * true[0]
    assert error.confidence == "certain"
    assert len(checks) >= 2


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
    values = lapack.gesdd(A)
    energy = squared_norm(A)
    verify.check_values(values, energy, A.shape)
    verify.check_dense(A, values)
    wrong = planted(values, fault)
    with pytest.raises(VerificationError):  # noqa: PT012 - either of the two checks may see it
        verify.check_values(wrong, energy, A.shape)
        verify.check_dense(A, wrong)


LARGE = verify.SMALL + 76


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "sigma",
    [
        np.zeros(LARGE),
        np.r_[np.linspace(2, 1, LARGE - 300), np.zeros(300)],
        np.r_[1.0, np.zeros(LARGE - 1)],
        np.ones(LARGE),
        np.r_[np.geomspace(1, 1e-3, 600), np.geomspace(1e-7, 1e-10, 300), np.full(200, 1e-17)],
        np.linspace(1.5, 0.5, LARGE),
    ],
    ids=["zero", "rank-deficient", "one", "identity", "two cliffs", "soft edge"],
)
def test_probes_pass_on_valid_large_matrices(sigma, dtype):
    for A in (np.diag(sigma).astype(dtype), with_spectrum(sigma).astype(dtype)):
        found = exact.singular_values(source_of(A))
        error, _ = exact.cross_check(found)
        assert np.abs(found.values - np.sort(sigma)[::-1]).max() <= max(error.bound, 4 * np.finfo(dtype).eps)


def test_ones_stay_within_the_assumed_error():
    """The worst matrix known for LAPACK: 4.5 eps·√N·σ₁."""
    A = np.ones((LARGE, LARGE))
    found = exact.singular_values(source_of(A))
    error, _ = exact.cross_check(found)
    assert np.abs(found.values - np.r_[LARGE, np.zeros(LARGE - 1)]).max() <= error.bound


def two_cliffs():
    return np.r_[np.geomspace(1, 1e-3, 600), np.geomspace(1e-7, 1e-10, 300), np.full(200, 1e-17)]


def test_a_lost_group_below_the_sight_of_energy_is_counted():
    """Its energy is below rounding, and the smallest values are right: only a count can see it."""
    sigma = two_cliffs()
    A = with_spectrum(sigma)
    wrong = lapack.gesdd(A)
    wrong[600:900] = wrong[900:].max()
    verify.check_values(wrong, squared_norm(A), A.shape)
    verify.check_bottom(A, wrong)
    with pytest.raises(VerificationError, match="by inertia"):
        verify.check_counts(A, wrong)


def test_a_wrong_smallest_value_is_found_at_the_bottom():
    """No threshold lies below the last values: only inverse iteration can see them."""
    A = with_spectrum(np.r_[np.linspace(2, 1, LARGE - 1), 1e-9])
    right = lapack.gesdd(A)
    for value in (0.0, 1e-6):
        wrong = right.copy()
        wrong[-1] = value
        verify.check_values(wrong, squared_norm(A), A.shape)
        with pytest.raises(VerificationError, match="smallest singular value"):
            verify.check_bottom(A, wrong)
    verify.check_bottom(A, right)


def test_counts_by_the_gram_matrix_beyond_the_augmented_size(monkeypatch):
    monkeypatch.setattr(verify, "AUGMENTED", 0)
    A = with_spectrum(np.geomspace(1, 1e-3, 60))
    values = lapack.gesdd(A)
    assert verify.check_counts(A, values) >= 2
    for dtype in (np.float32, np.float64):
        assert verify.check_counts(A.astype(dtype), lapack.gesdd(A.astype(dtype))) >= 2
    wrong = values.copy()
    wrong[25:] *= 0.5
    with pytest.raises(VerificationError, match="by inertia"):
        verify.check_counts(A, wrong)


def block_diagonal(blocks):
    """A source of these (T, m, n) blocks."""
    count, m, n = blocks.shape
    rows = tuple(range(count))
    return Written(tp.BlockDiagonal(), (m * count, n * count), m, n, [Panel(rows, rows, torch.from_numpy(blocks))])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("d", "T"), [(33, 12), (512, 12), (300, 7), (300, 5)])
def test_every_block_is_within_the_bound(d, T, dtype):
    """Blocks of integers, among which one of equal entries is decomposed worst; its values are known."""
    rng = np.random.default_rng(0)
    for odd in (4, T - 4):
        blocks = rng.integers(-40, 41, (T, d, d)).astype(dtype)
        entry = int(46 / np.sqrt(d))
        blocks[odd] = entry
        found = exact.singular_values(block_diagonal(blocks))
        error, checks = exact.cross_check(found)
        own = found.values[found.blocks == odd]
        assert np.abs(own - np.r_[d * entry, np.zeros(d - 1)]).max() <= error.bound
        certain = d <= 256 or T <= 6 or native.extension is None  # LAPACK's answers are always held against it
        assert error.confidence == ("certain" if certain else "99.9 %")
        assert error.chance == (0.0 if certain else pytest.approx(9e-4))
        assert f"({T} of {T} blocks)" in error.method
        assert len(checks) >= 2
        if dtype == np.float32:
            assert error.bound <= 4 * np.finfo(dtype).eps * found.values[0]


def hadamard_factors(T=8, d=512, n=25):
    """C (n, d) and B (n, d) of each token, exactly: √d-fold orthonormal rows of signs, those of B times whole weights."""
    H = scipy.linalg.hadamard(d).astype(np.float64)
    weights = np.random.default_rng(1).integers(1, 1000, (T, n)).astype(np.float64)
    return [(H[3 : 3 + n], w[:, None] * H[100 : 100 + n]) for w in weights], np.sort(weights, axis=1)[:, ::-1] * d


@pytest.mark.parametrize("d", [128, 512])
def test_blocks_by_their_factors_are_within_the_bound(d):
    factors, sigma = hadamard_factors(d=d, n=25)
    blocks = np.stack([C.T @ B for C, B in factors])
    found = exact.singular_values(block_diagonal(blocks), factors=lambda t: factors[t])
    error, _ = exact.cross_check(found)
    for t, known in enumerate(sigma):
        own = found.values[found.blocks == t]
        assert np.abs(own[:25] - known).max() <= error.bound
        assert not own[25:].any()
    assert "factors" in error.method or error.confidence == "certain"
    assert error.chance <= 9e-4 * (1 + 1e-9)


def test_factors_of_another_block_are_left_aside():
    """The right energy, and even the right values: only probes see that they are not this block's."""
    (C, B), *_ = hadamard_factors(T=1)[0]
    A = C.T @ B
    right = batched._probed(A, (C, B), 1e-4)
    assert right.route == "factors"
    turned = batched._probed(A, (C, B[:, ::-1].copy()), 1e-4)
    assert turned.route != "factors"
    assert np.abs(turned.values - right.values).max() <= turned.error.bound + right.error.bound


def test_a_block_of_no_active_unit_is_zero():
    empty = np.zeros((0, 300))
    factors = [(empty, empty)] * 7
    found = exact.singular_values(block_diagonal(np.zeros((7, 300, 300))), factors=lambda t: factors[t])
    assert not found.values.any()
    assert exact.cross_check(found)[0].bound == 0


def test_the_chance_of_the_probes_is_that_of_a_chi_square():
    for chance in (9e-4, 9e-4 / 64, 0.05):
        assert twostage.quantile(chance) ** 2 == pytest.approx(scipy.stats.chi2.ppf(chance, PROBES), rel=1e-9)
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal(7), rng.standard_normal(5)
    E = np.outer(u, v) / np.linalg.norm(u) / np.linalg.norm(v)  # ‖E‖₂ = 1, the hardest to see
    seen = np.array([np.linalg.norm(E @ rng.standard_normal((5, PROBES))) for _ in range(20000)])
    assert np.mean(seen < twostage.quantile(0.05)) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [90, 480])
def test_what_orthogonality_loses_is_in_the_bound(n, dtype, monkeypatch):
    """A reduction whose Q grows by some roundings: B fits the probes, which are turned by the same Q, and not A."""
    A = np.diag(np.arange(n, 0, -1)).astype(dtype)
    grown, honest = 1 + 5 * float(np.finfo(dtype).eps) * np.sqrt(n), twostage.svd.two_stage

    def faulty(*given):
        d, e, values, told = honest(*given)
        return d * grown, e * grown, (values * grown).astype(dtype), told | {"left_after": told["left_after"] * grown}

    if native.extension is None:
        pytest.skip("no compiled kernels")
    monkeypatch.setattr(twostage.svd, "two_stage", faulty)
    values, B = twostage.two_stage(A)
    assert np.abs(values - np.arange(n, 0, -1)).max() <= twostage.svd_error(B, float(values[0])).bound


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["gaussian", "ones", "läuchli", "kahan"])
def test_the_loss_of_orthogonality_is_below_its_model(name, dtype):
    A = np.ascontiguousarray(hostile(45, dtype)[name])
    (m, n), width, step = A.shape, 16, 6
    rows = n + 2 * width
    left, right = np.zeros((m, 0)), np.zeros((n, 0))
    for start in range(0, max(m, n), step):
        band, Q, P = (np.zeros((max(m, rows), k), dtype)[: rows if k > step else None] for k in (3 * width, step, step))
        band, P = band[:rows].copy(), P[:rows].copy()
        for j in range(step):
            Q[min(start + j, len(Q) - 1), j] = P[min(start + j, len(P) - 1), j] = 1
        twostage.svd.band_reduction(A.copy(), band, Q, P, width)
        twostage.svd.bulge_chase(band, Q[:rows], P, n, width)
        left, right = np.hstack([left, Q[:m]]), np.hstack([right, P[:n]])
    both = [np.linalg.norm(X[:, :k].T @ X[:, :k] - np.eye(k), 2) for X, k in ((left, m), (right, n))]
    assert sum(both) / 2 <= twostage.loss(1.0, m, dtype)


def test_a_failing_route_is_followed_by_the_next(monkeypatch):
    A = with_spectrum(np.geomspace(1, 1e-3, 30))
    calls = []

    def failing(_):
        calls.append("first")
        raise np.linalg.LinAlgError("did not converge")

    def wrong(A):
        calls.append("wrong")
        return 1.01 * lapack.gesdd(A)

    bad, good = ("wrong", dense.by_lapack(wrong)), ("gesvd", dense.by_lapack(lapack.gesvd))
    monkeypatch.setattr(dense, "routes", lambda *_: [("failing", failing), good])
    assert np.allclose(dense.verified(A).values, np.geomspace(1, 1e-3, 30))
    assert calls == ["first"]
    monkeypatch.setattr(dense, "routes", lambda *_: [("failing", failing), bad])
    with pytest.raises(VerificationError, match="failing: did not converge; wrong: Σσ²"):
        dense.verified(A)


def test_inertia_counts_are_exact_on_known_spectra():
    sigma = np.r_[np.linspace(2, 1, 40), np.linspace(0.1, 0.01, 33)]
    A = with_spectrum(sigma)
    for tau in (1.5001, 0.5, 0.05001):
        assert verify._eigenvalues_above(A.T @ A, tau**2) == int(np.sum(sigma > tau))


@pytest.mark.parametrize("size", [40, 90])
@pytest.mark.parametrize("place", [0, 0.5, 0.99])
@pytest.mark.parametrize("faults", [0.3, 2.0, 10.0, 40.0, 1000.0])
def test_what_is_accepted_is_within_its_bound(size, place, faults, monkeypatch):
    """A value that is off by a few roundings, after all of the route's own checks: found, or covered by the bound."""
    A = np.random.default_rng(size).standard_normal((size, size))
    true = reference(A)
    off = faults * np.finfo(float).eps * float(true[0])

    def faulty(*arguments, **options):
        values, B = twostage.two_stage(*arguments, **options)
        moved = values.copy()
        moved[int(place * size)] += off
        return np.sort(moved)[::-1], B

    monkeypatch.setattr(dense, "two_stage", faulty)
    found = exact.singular_values(source_of(A))
    error, _ = exact.cross_check(found)
    assert np.abs(found.values - true).max() <= error.bound
    if faults == 1000.0:
        assert found.route.startswith("gesdd")  # the two-stage answer was refused


@pytest.mark.parametrize("size", [1100, 2000])
def test_float32_data_of_middling_size_is_decomposed_in_float64(size):
    A = np.random.default_rng(0).standard_normal((size, 40)).astype(np.float32)
    found = exact.singular_values(source_of(A))
    error, _ = exact.cross_check(found)
    true = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    assert found.values.dtype == np.float32
    assert np.abs(found.values - true).max() <= error.bound <= np.finfo(np.float32).eps * true[0]
    assert "in float64" in found.route
