"""Leading singular triplets of arrays and operators, with residuals; what is refused, and what is admitted."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg as sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import fuzz_cases, fuzzing
from oracles.fuzz_cases import Case
from svd_matrices import with_spectrum

import tightpass as tp
from tightpass.errors import InputError
from tightpass.spectra.leading import krylov
from tightpass.spectra.leading.sketch import rough_svds


def assert_triplets(A, found, k, tol):
    """Orthonormal vectors, values as LAPACK's, and residuals that are what they are said to be."""
    wide = np.asarray(A, dtype=np.float64)
    U, S, Vh = (np.asarray(part, dtype=np.float64) for part in (found.U, found.S, found.Vh))
    assert (U.shape, S.shape, Vh.shape) == ((A.shape[0], k), (k,), (k, A.shape[1]))
    exact = np.linalg.svd(wide, compute_uv=False)
    eps = float(np.finfo(np.asarray(A).dtype).eps)
    slack = 50 * eps * np.sqrt(max(A.shape))
    assert np.abs(U.T @ U - np.eye(k)).max() <= slack
    assert np.abs(Vh @ Vh.T - np.eye(k)).max() <= slack
    measured = np.hypot(np.linalg.norm(wide @ Vh.T - U * S, axis=0), np.linalg.norm(wide.T @ U - Vh.T * S, axis=0))
    assert np.abs(measured - np.asarray(found.residuals)).max() <= slack * exact[0]
    assert np.abs(S - exact[:k]).max() <= tol * exact[0] + slack * exact[0]


SPECTRA = {
    "geometric": lambda n: np.geomspace(1, 1e-6, n),
    "slow": lambda n: np.linspace(1, 0.5, n),
    "clustered": lambda n: np.r_[np.ones(min(20, n)), np.full(max(n - 20, 0), 0.5)],
    "few": lambda n: np.r_[np.geomspace(1, 0.1, min(7, n)), np.zeros(max(n - 7, 0))],
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(300, 300, 9), (301, 120, 30), (90, 400, 5), (60, 60, 60), (7, 3, 1), (1, 5, 1)]
)
def test_leading_triplets(m, n, k, spectrum, dtype):
    size = min(m, n)
    A = with_spectrum(SPECTRA[spectrum](size), rows=max(m, n)).astype(dtype)
    A = np.ascontiguousarray(A if m >= n else A.T)
    tol = 1e-9 if dtype == np.float64 else 1e-5
    found = tp.svds(A, k, tol=tol)
    assert found.converged, found
    assert_triplets(A, found, k, tol)


def test_many_equal_values_are_all_found():
    """More copies than a block is wide: products alone cannot see the others, fresh directions can."""
    A = np.diag(np.r_[np.ones(40), np.full(200, 0.05)])
    found = tp.svds(A, 40)
    assert np.allclose(found.S, 1, atol=1e-8)
    assert found.complete == "certain: the energy that is left is below σ_k²"
    assert tp.svds(np.diag(np.r_[np.ones(40), np.full(200, 0.1)]), 40).complete.startswith("probed")


def test_a_value_that_the_start_cannot_see_is_found(monkeypatch):
    """The start has no part along the leading vectors: they are found by the look for skipped ones."""
    A = np.diag(np.linspace(5, 1, 120))
    plain = np.random.default_rng

    class Blind:
        def __init__(self, seed):
            self.rng = plain(seed)

        def standard_normal(self, shape):
            X = self.rng.standard_normal(shape)
            X[:2] = 0
            return X

    monkeypatch.setattr(krylov.np.random, "default_rng", lambda seed: Blind(seed) if seed == 0 else plain(seed))
    monkeypatch.setattr(krylov, "check_operator", lambda op, seed: None)
    monkeypatch.setattr(krylov, "scaled", lambda op, seed: (op, 1.0))
    assert np.allclose(tp.svds(A, 4, tol=1e-10).S, np.linspace(5, 1, 120)[:4], atol=1e-8)


def test_restarts_in_a_small_basis(monkeypatch):
    monkeypatch.setattr(krylov, "BASIS_BYTES", 1)
    A = with_spectrum(1.0 / np.arange(1, 301) ** 0.5)
    found = tp.svds(A, 10, tol=1e-8)
    assert found.converged
    assert_triplets(A, found, 10, 1e-8)


def test_not_converged_is_said_with_the_residuals_so_far():
    A = with_spectrum(np.linspace(1, 0.9, 400))
    found = tp.svds(A, 20, tol=1e-10, limit=150)
    assert not found.converged
    assert "not converged" in repr(found)
    assert_triplets(A, found, 20, 1.0)
    assert found.residuals.max() > 1e-10


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_rough_answer_tells_its_residuals(spectrum):
    A = with_spectrum(SPECTRA[spectrum](200))
    found = rough_svds(A, 10)
    assert_triplets(A, found, 10, 1.0)
    assert not found.converged


def test_kinds_of_operand_agree():
    A = with_spectrum(np.geomspace(1, 1e-3, 150), rows=210)
    wanted = tp.svds(A, 6).S
    for B in (np.asfortranarray(A), A[::-1][::-1], torch.from_numpy(A), sparse.aslinearoperator(A)):
        found = tp.svds(B, 6)
        assert isinstance(found.S, torch.Tensor if isinstance(B, torch.Tensor) else np.ndarray)
        assert np.allclose(np.asarray(found.S), wanted, atol=1e-9)
    assert np.allclose(tp.svds(A.T, 6).S, wanted, atol=1e-9)


def test_a_jacobian_is_never_formed():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    J = tp.jacobian(lambda x: torch.tanh(x @ W).cumsum(0), torch.randn(6, 24, generator=generator, dtype=torch.float64))
    dense = J.dense().numpy()
    J.panels = None  # any attempt to write it out fails
    found = tp.svds(J, 5)
    assert np.allclose(found.S, np.linalg.svd(dense, compute_uv=False)[:5], atol=1e-8)


class Operator(sparse.LinearOperator):
    """A matrix whose products go through `change`."""

    def __init__(self, A, forward=lambda X: X, back=lambda Y: Y):
        super().__init__(A.dtype, A.shape)
        self.A, self.forward, self.back = A, forward, back

    def _matmat(self, X):
        return self.forward(self.A @ X)

    def _rmatmat(self, Y):
        return self.back(self.A.T @ Y)

    def _adjoint(self):
        return Operator(self.A.T.copy(), self.back, self.forward)


@pytest.mark.parametrize(
    ("forward", "back", "message"),
    [
        (lambda X: X, lambda Y: 1.001 * Y, "not the adjoint"),
        (lambda X: X, lambda Y: Y[::-1], "not the adjoint"),
        (lambda X: X + np.random.default_rng().standard_normal(X.shape) * 1e-3, lambda Y: Y, "different answers"),
        (lambda X: X + 1e-3, lambda Y: Y, "not linear"),
        (np.tanh, lambda Y: Y, "not linear"),
        (lambda X: X * np.nan, lambda Y: Y, "not finite"),
        (lambda X: X[:-1], lambda Y: Y, "expected an answer of shape"),
    ],
)
def test_operators_that_are_no_matrix_are_refused(forward, back, message):
    A = np.random.default_rng(0).standard_normal((50, 40))
    for find in (tp.svds, rough_svds):
        with pytest.raises(InputError, match=message):
            find(Operator(A, forward, back), 3)


@pytest.mark.parametrize(
    ("A", "options", "message"),
    [
        (np.eye(5), {"k": 0}, "whole number from 1 to 5"),
        (np.eye(5), {"k": 6}, "whole number from 1 to 5"),
        (np.eye(5), {"k": 2.0}, "whole number from 1 to 5"),
        (np.eye(5), {"k": True}, "whole number from 1 to 5"),
        (np.eye(5), {"k": 1, "tol": 0.0}, "between 0 and 1"),
        (np.eye(5), {"k": 1, "tol": 2}, "between 0 and 1"),
        (np.eye(5), {"k": 1, "tol": "a"}, "between 0 and 1"),
        (np.eye(5), {"k": 1, "seed": -1}, "seed: expected"),
        (np.ma.masked_array(np.eye(3)), {"k": 1}, "masked, sparse or meta"),
        (torch.eye(3).to_sparse(), {"k": 1}, "masked, sparse or meta"),
        (np.eye(5), {"k": 1, "block": 0}, "at least 1"),
        (np.eye(5), {"k": 1, "limit": 0}, "at least 1"),
        (np.full((3, 3), np.nan), {"k": 1}, "not finite"),
        (np.eye(3, dtype=complex), {"k": 1}, "real and imaginary"),
        (np.eye(3, dtype=int), {"k": 1}, "convert it first"),
        (np.zeros((0, 3)), {"k": 1}, "at least one row"),
        ("A", {"k": 1}, "expected a matrix, a Jacobian or an operator"),
        (sparse.aslinearoperator(np.eye(3, dtype=complex)), {"k": 1}, "float32 or float64"),
    ],
)
def test_bad_input_to_svds(A, options, message):
    with pytest.raises(InputError, match=message):
        tp.svds(A, **options)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**31))
def test_any_shape_and_any_number(m, n, k, seed):
    A = np.random.default_rng(seed).standard_normal((m, n))
    k = min(k, m, n)
    found = tp.svds(A, k, seed=seed % 1000)
    assert found.converged
    assert_triplets(A, found, k, 1e-8)


def test_topk_spectrum():
    model = tp.load_model("demo", dtype="float64")
    J = tp.jacobian(tp.block(model, "attn", layer=2, tokens=9))
    whole = tp.spectrum(J, vectors=3)
    leading = tp.spectrum(J, method="topk", k=20, vectors=3)
    assert leading.size == whole.size
    assert leading.partial
    assert leading.rank.flag == "not converged"
    assert leading.rank.lo <= whole.rank.lo
    assert whole.rank.hi <= leading.rank.hi
    assert np.abs(leading.values - whole.values[:20]).max() <= leading.floor.total + whole.floor.total
    assert np.abs(np.abs(np.sum(leading.U * whole.U, axis=0)) - 1).max() <= 1e-6
    assert leading.measures.stable_rank == pytest.approx(whole.measures.stable_rank, rel=1e-9)
    assert leading.measures.effective_rank is None


@pytest.mark.parametrize("k", [3, None])
def test_topk_of_everything_is_everything(k):
    J = tp.jacobian(
        lambda x: x @ torch.diag(torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64)),
        torch.ones(1, 3, dtype=torch.float64),
    )
    s = tp.spectrum(J, method="topk", k=k)
    assert not s.partial
    assert s.rank.interval == (2, 2)
    assert s.rank.flag == "certified"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3}, "k is how many values method topk finds"),
        ({"method": "topk", "k": 0}, "k must be at least 1"),
        ({"method": "topk", "k": 2, "vectors": 3}, "vectors must be at most k = 2"),
        ({"method": "topk", "k": 7}, "k must be at most 6, as many as J, 6 × 6, has; got 7"),
        ({"vectors": 7}, "vectors must be at most 6"),
        ({"method": "leading"}, "method must be one of auto, exact, topk"),
    ],
)
def test_bad_options_of_a_spectrum(options, message):
    J = tp.jacobian(torch.tanh, torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(InputError, match=message):
        tp.spectrum(J, **options)


@pytest.mark.parametrize(
    ("copies", "k", "turned"), [(40, 50, False), (40, 50, True), (100, 110, False), (24, 30, True)]
)
def test_copies_beyond_a_block_over_a_rest_that_falls_slowly(copies, k, turned):
    sigma = np.sort(np.r_[np.ones(copies), np.linspace(0.9, 0.1, 600 - copies)])[::-1]
    A = with_spectrum(sigma) if turned else np.diag(sigma)
    for seed in (0, 7):
        found = tp.svds(A, k, seed=seed)
        assert found.converged
        assert np.abs(found.S - sigma[:k]).max() <= 1e-7


@pytest.mark.parametrize("seed", range(12))
def test_certain_is_said_only_where_it_is(seed):
    sigma = np.r_[1, np.full(5, 2e-4), np.zeros(194)]
    A = (1.7 * with_spectrum(sigma, seed=seed)).astype(np.float32)
    found = tp.svds(A, 2, seed=seed)
    left = float((1.7 * sigma[2:]) @ (1.7 * sigma[2:]))
    assert not found.complete.startswith("certain") or left < float(found.S[-1]) ** 2


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.float64, 1e-200), (np.float64, 1e160), (np.float32, 1e-25), (np.float32, 1e25)]
)
def test_scales_at_the_ends_of_the_range(dtype, scale):
    sigma = np.geomspace(1, 1e-6, 300)
    A = (with_spectrum(sigma) * scale).astype(dtype)
    found = tp.svds(A, 5)
    assert found.converged
    tol = 1e-8 if dtype == np.float64 else 1e-5
    assert np.abs(found.S.astype(float) / scale - sigma[:5]).max() <= tol
    assert found.residuals.max() > 0


@pytest.mark.parametrize("n", [24, 25, 26, 28, 31])
def test_a_last_block_that_is_narrower_completes_the_basis(n):
    """Room for one block and part of another: the rest was never looked at, and a start of one block went on for ever."""
    for seed in range(5):
        A = np.random.default_rng(seed).standard_normal((n, n))
        found = tp.svds(A, 1, seed=seed)
        assert found.converged
        assert found.products <= 6 * n
        assert found.S[0] == pytest.approx(np.linalg.norm(A, 2), rel=1e-12)


@pytest.mark.parametrize("missing", ["rmatvec", "matvec"])
def test_an_operator_without_one_of_its_products_is_named(missing):
    def fails(v):
        raise KeyError("not here")

    A = np.diag(np.arange(1.0, 8.0))
    products = {"matvec": lambda v: A @ v, "rmatvec": lambda v: A.T @ v}
    with pytest.raises(InputError, match="needs both matmat and rmatmat"):
        tp.svds(sparse.LinearOperator(A.shape, dtype=float, **products | {missing: fails}), 2)
    del products["rmatvec"]
    with pytest.raises(InputError, match="rmatmat fails"):
        tp.svds(sparse.LinearOperator(A.shape, dtype=float, **products), 2)


# ---- Jacobians whose products cancel inside


@pytest.mark.parametrize("seed", range(12))
def test_attention_behind_a_layer_norm_of_two_entries(seed):
    """The norm removes all but 1e-5 of what goes through it, and rounding is that of what went in."""
    assert_fine(Case("opt", "attn", "float64", 3, 2, seed, "normal", 1.0, layer=0, pre_norm=True, bias=0.2,
                     plain_norm=True, method="topk"))  # fmt: skip


@pytest.mark.parametrize("seed", [50, 153, 162])
def test_hostile_leading_values(seed):
    """A basis that is complete is not searched for more."""
    assert_fine(fuzz_cases.seeded(seed))


def assert_fine(case):
    outcome = fuzzing.examine(case)
    assert outcome.refusal is None
    assert outcome.faults == []


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"push": lambda right: lambda X: right(X) + 1e-3 * right(X * X)}, "not linear"),
        ({"pull": lambda right: lambda Y: 1.01 * right(Y)}, "not the adjoint"),
    ],
)
def test_wrong_products_are_refused_where_they_cancel(wrong, message, transposed):
    case = Case("opt", "attn", "float64", 3, 2, 0, "normal", 1.0, layer=0, pre_norm=True, bias=0.2, plain_norm=True)
    model = tp.load_model(fuzz_cases.model(case))
    J = tp.jacobian(tp.block(model, "attn", 0, token_ids=fuzz_cases.token_ids(case)))
    for name, change in wrong.items():
        setattr(J, name, change(getattr(J, name)))
    with pytest.raises(InputError, match="not linear|not the adjoint" if transposed else message):
        tp.svds(J.T if transposed else J, 2)


@pytest.mark.parametrize(("largest", "dtype"), [(1e308, np.float64), (3e38, np.float32)])
def test_a_value_beyond_the_range_is_refused(largest, dtype):
    with pytest.raises(InputError, match="beyond the range of float"):
        tp.svds(np.full((3, 3), largest, dtype=dtype), k=1)


@pytest.mark.parametrize(
    ("dtype", "scale"), [("float32", 1e37), ("float32", 1e-36), ("float64", 1e307), ("float64", 1e-300)]
)
@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_sums_inside_stay_in_range_where_entries_do(dtype, scale, shape):
    A = np.random.default_rng(0).standard_normal(shape)
    expected = np.linalg.svd(A, compute_uv=False)[:5]
    found = tp.svds((A * scale).astype(dtype), k=5)
    assert np.allclose(found.S / np.asarray(scale, dtype), expected, rtol=1e-5)
