"""All singular values by every route, against a reference in more precision; and verification with planted faults."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from svd_matrices import hostile, jacobi, orthogonal, reference, with_spectrum

import tightpass as tp
from tightpass.errors import InputError, VerificationError
from tightpass.kernels import native, svd
from tightpass.kernels.reference import svd as reference_svd
from tightpass.spectra import dense, twostage

DTYPES = (np.float64, np.float32)
NAMES = sorted(hostile(5, np.float64))
compiled = pytest.mark.skipif(native.extension is None, reason="no compiled kernels")


def unit(A, sigma):
    """eps·σ₁·√N, in which errors are counted."""
    return float(np.finfo(A.dtype).eps) * float(sigma[0]) * np.sqrt(max(A.shape))


def assert_accurate(A, values, sigma):
    """At most twice gesdd's error or one unit, and never above four."""
    lapack = scipy.linalg.svd(A, compute_uv=False)  # in A's own precision, where NumPy's is float64's
    error, other = (float(np.abs(found - sigma).max()) for found in (values, lapack))
    least = float(np.finfo(A.dtype).smallest_subnormal)
    assert error <= max(2 * other, unit(A, sigma), least)
    assert error <= max(4 * unit(A, sigma), least)


def by_stages(A, width, threads=2):
    """Band, bulges and bisection one after the other, whatever the size; and the bidiagonal matrix."""
    A = np.array(A if A.shape[0] >= A.shape[1] else A.T, order="C")
    m, n = A.shape
    rows = n + 2 * width
    band = np.zeros((rows, 3 * width), A.dtype)
    left, right = np.zeros((max(m, rows), 2), A.dtype), np.zeros((rows, 2), A.dtype)
    svd.band_reduction(A, band, left, right, width, threads)
    svd.bulge_chase(band, left[:rows], right, n, width, threads)
    d, e = band[:n, width].astype(float), band[: n - 1, width + 1].astype(float)
    return svd.bisection(d, e, absolute=0.0, relative=1e-16, threads=threads), d, e


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_hostile_matrices_in_one_stage(name, dtype):
    A = hostile(45, dtype)[name]
    assert_accurate(A, tp.svdvals(A), reference(A))


@pytest.mark.parametrize("name", NAMES)
def test_hostile_matrices_in_two_stages(name):
    """461 columns of float32 are beyond what one stage takes; float64 LAPACK is the reference."""
    A = hostile(461, np.float32)[name]
    assert_accurate(A, tp.svdvals(A), reference(A))


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("name", [name for name in NAMES if "near" not in name])
def test_hostile_matrices_by_stages_in_float64(name, width):
    """The scaling that guards the range is done before the stages, so matrices near its ends are left out."""
    A = hostile(53, np.float64)[name]
    values, _, _ = by_stages(A, width)
    sigma = reference(A)
    assert float(np.abs(values - sigma).max()) <= 4 * unit(A, sigma)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 61, 97])
def test_every_small_size_both_ways(n, dtype):
    A = np.random.default_rng(n).standard_normal((n, n)).astype(dtype)
    sigma = reference(A)
    assert_accurate(A, tp.svdvals(A), sigma)
    for width in (16, 32):
        assert float(np.abs(by_stages(A, width)[0] - sigma).max()) <= max(4 * unit(A, sigma), 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (70, 33), (33, 70), (5000, 7), (7, 5000), (1300, 401), (401, 1300)])
def test_rectangles_strides_and_libraries(shape, dtype):
    rng = np.random.default_rng(1)
    A = rng.standard_normal(shape).astype(dtype)
    sigma = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    room = np.zeros((2 * shape[0], 3 * shape[1]), dtype)
    room[::2, ::3] = A
    before = A.copy()
    for kind in (A, np.asfortranarray(A), room[::2, ::3], A[::-1, ::-1][::-1, ::-1], torch.from_numpy(A)):
        values = tp.svdvals(kind)
        assert isinstance(values, type(kind)) or isinstance(kind, np.ndarray)
        assert np.abs(np.asarray(values) - sigma).max() <= 2 * unit(A, sigma)
    assert np.array_equal(A, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_overwriting_saves_a_copy_and_changes_nothing_else(dtype):
    A = np.random.default_rng(2).standard_normal((700, 500)).astype(dtype)
    kept = A.copy()
    assert np.array_equal(tp.svdvals(A, overwrite=True), tp.svdvals(kept))
    assert not np.array_equal(A, kept)


@compiled
def test_without_threaded_panels_the_number_of_threads_changes_no_bit():
    A = np.random.default_rng(3).standard_normal((600, 450))
    first = twostage.two_stage(A, threads=1)[0]
    for threads in (2, 3, 5):
        assert np.array_equal(twostage.two_stage(A, threads=threads)[0], first)


@pytest.mark.parametrize("decades", [8, 40, 140])
def test_small_values_of_graded_bidiagonals_have_all_their_digits(decades):
    """Bisection on the bidiagonal matrix itself keeps the relative accuracy that its entries determine (Demmel & Kahan)."""
    rng = np.random.default_rng(4)
    n = 40
    d = np.geomspace(1, 10.0**-decades, n) * rng.uniform(0.5, 2, n)
    e = d[1:] * rng.uniform(0.1, 1, n - 1)
    values = svd.bisection(d, e, absolute=0.0, relative=1e-15)
    scale = 10.0 ** (decades / 2)  # long double's range is wide enough; rows and columns need no scaling
    sigma = jacobi((np.diag(d) + np.diag(e, 1)).astype(np.longdouble) * scale) / scale
    assert float(np.abs(values / sigma - 1).max()) <= 200 * np.finfo(float).eps


@pytest.mark.parametrize("n", [1, 2, 40, 700])
def test_counts_agree_with_values(n):
    rng = np.random.default_rng(5)
    d, e = rng.standard_normal(n), rng.standard_normal(n - 1)
    values = svd.bisection(d, e, absolute=0.0, relative=1e-14)
    taus = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [values[0] * 1.1]])
    expected = [int((values < tau).sum()) for tau in taus]
    assert svd.sturm_counts(d, e, taus).tolist() == expected


WAYS = [svd.sturm_counts, reference_svd.sturm_counts]


@pytest.mark.parametrize("count", WAYS, ids=["compiled", "reference"])
@pytest.mark.parametrize("scale", [1.0, 1e-144, 1e144])
def test_a_shift_on_a_value_of_a_diagonal_matrix_counts_what_is_strictly_below(count, scale):
    d = np.array([786432.0, 600000.0, 3.0, 2.0, 1.0]) * scale
    taus = np.array([600000.0, 600001.0, 3.0, 1.0, 786433.0]) * scale
    assert count(d, np.zeros(4), taus).tolist() == [3, 4, 2, 0, 5]


@pytest.mark.parametrize("count", WAYS, ids=["compiled", "reference"])
def test_a_pivot_of_nothing_over_nothing(count):
    """[[3, 4, 0], [0, 0, 2], [0, 0, 5]] has √29, 5 and 0; at τ = 5 its second pivot is 0 − 0."""
    d, e = np.array([3.0, 0.0, 5.0]), np.array([4.0, 2.0])
    at = count(d, e, np.array([4.999, 5.0, 5.001, 5.38, 5.39]))
    assert at.tolist()[2:] == [2, 2, 3]
    assert at[0] == 1
    assert at[1] in (1, 2)


whole = st.integers(-9, 9) | st.integers(-(10**6), 10**6)


@settings(max_examples=60, deadline=None)
@given(st.lists(whole, min_size=1, max_size=8), st.data(), st.sampled_from([0, -470, 470]))
def test_counts_of_small_integer_matrices(d, data, power):
    """Against 40 digits, at shifts on the values themselves; near the ends of the range as well. Where a shift is a value,
    rounding decides; in a diagonal matrix nothing is rounded."""
    e = data.draw(st.lists(whole, min_size=len(d) - 1, max_size=len(d) - 1) | st.just([0] * (len(d) - 1)))
    with mpmath.workdps(40):
        B = mpmath.matrix(len(d), len(d))
        for i, x in enumerate(d):
            B[i, i] = x
            if i + 1 < len(d):
                B[i, i + 1] = e[i]
        exact = [abs(x) for x in d] if not any(e) else list(mpmath.svd_r(B, compute_uv=False))
        taus = [float(t) for s in exact for t in (s, s + 1, s / 2, s * 1.1) if t > 1e-9] or [1.0]
        least = [sum(s < t * (1 - 1e-13 * any(e)) - 1e-25 for s in exact) for t in taus]
        most = [sum(s < t * (1 + 1e-13 * any(e)) for s in exact) for t in taus]
    for count in WAYS:
        found = count(*(np.ldexp(np.array(x, dtype=float), power) for x in (d, e, taus)))
        assert np.all(least <= found), (taus, found, least)
        assert np.all(found <= most), (taus, found, most)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), st.sampled_from(DTYPES), st.booleans())
def test_values_of_integer_diagonals_are_the_integers(d, dtype, overwrite):
    A = np.diag(np.array(d, dtype=dtype))
    eps = float(np.finfo(dtype).eps)
    assert np.abs(tp.svdvals(A, overwrite) - np.sort(d)[::-1]).max() <= eps * max(d)


def test_a_diagonal_matrix_is_decomposed_where_it_lies():
    """The shift above the third value, by which it is checked, is the second value exactly."""
    d = np.array([524288, 458752.0625, 458752, 3, 2, 1], np.float32)
    values = tp.svdvals(np.diag(d), overwrite=True)
    assert np.abs(values - d).max() <= float(np.finfo(np.float32).eps) * 524288


def test_counts_of_the_reduced_matrix_agree_with_its_values():
    A = with_spectrum(np.geomspace(1, 1e-6, 60))
    values, B = twostage.two_stage(A)
    taus = np.array([0.5, 1e-3, 2e-6])
    below = svd.sturm_counts(B.d, B.e, taus / B.scale)
    assert below.tolist() == [int((values < tau).sum()) for tau in taus]


# ---- verification


def reduced(n=90, dtype=np.float64):
    A = with_spectrum(np.geomspace(1, 1e-5, n)).astype(dtype)
    return A, *twostage.two_stage(A)


FAULTS = {
    "last 1 % zeroed": lambda v: np.r_[v[:-1], np.zeros(1)],
    "two replaced by their mean": lambda v: np.r_[v[:40], [v[40:42].mean()] * 2, v[42:]],
    "NaN": lambda v: np.r_[v[:9], np.nan, v[10:]],
    "one twice": lambda v: np.r_[v[:30], v[29], v[31:]],
    "tail lifted": lambda v: np.r_[v[:-3], [v[-4]] * 3],
    "one missing": lambda v: v[:-1],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_counts_catch_planted_faults_in_values(fault, dtype):
    _, values, B = reduced(dtype=dtype)
    twostage.check_by_counts(B, values)
    with pytest.raises(VerificationError):
        twostage.check_by_counts(B, FAULTS[fault](values).astype(dtype))


BROKEN = {
    "rows scaled by 1.001": lambda A: A.__setitem__(slice(20, 30), A[20:30] * A.dtype.type(1.001)),
    "rows exchanged with zeros": lambda A: A.__setitem__(slice(0, 5), 0),
    "NaN": lambda A: A.__setitem__((3, 4), np.nan),
    "one entry": lambda A: A.__setitem__((17, 5), A[17, 5] + A.dtype.type(1e-2)),
}


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("n", [90, 480])
def test_probes_catch_a_matrix_that_changed_under_way(n, fault, dtype, monkeypatch):
    """A kernel that reduces another matrix than the one it was given: probes were taken of the true one."""
    A = with_spectrum(np.geomspace(1, 1e-3, n)).astype(dtype)
    wrong = A.copy()
    BROKEN[fault](wrong)
    true, honest = twostage.two_stage(A)[1], svd.two_stage

    def faulty(a, *rest):
        d, e, values, told = honest(wrong, *rest)
        # as if A·Z and the energy had been measured before the fault
        Z = twostage.probes(n, A.dtype.name)
        return (
            d,
            e,
            values,
            told
            | {
                "energy": true.energy,
                "misfit": float(
                    np.hypot(told["misfit"], np.linalg.norm((wrong - A).astype(float) @ Z.T) / told["scale"])
                ),
            },
        )

    monkeypatch.setattr(svd, "two_stage", faulty)
    with pytest.raises(VerificationError):
        twostage.two_stage(A)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1500, 1), (1, 1500), (1500, 2)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_long_thin_matrices(shape, scale, dtype):
    A = np.full(shape, scale, dtype)
    values = tp.svdvals(A)
    assert values[0] == pytest.approx(scale * np.sqrt(A.size), rel=8 * float(np.finfo(dtype).eps))
    assert dense.verified(A).route == "two-stage" or native.extension is None


@compiled
@pytest.mark.parametrize("n", [1, 40, 480])
def test_no_ordinary_matrix_needs_a_second_route(n):
    rng = np.random.default_rng(7)
    for A in (
        np.zeros((n, n)),
        -np.zeros((n, n)),
        np.ones((n, n)),
        rng.standard_normal((n, n)),
        np.eye(n),
        *hostile(n, np.float32).values(),
    ):
        assert dense.verified(A).route == "two-stage"


@compiled
def test_a_failed_route_is_replaced_and_two_failures_are_told(monkeypatch):
    A = np.random.default_rng(6).standard_normal((50, 50))
    right = tp.svdvals(A)

    def broken(*_, **__):
        raise VerificationError("two-stage: planted")

    monkeypatch.setattr(dense, "two_stage", broken)
    assert dense.verified(A).route == "gesdd"
    assert np.allclose(tp.svdvals(A), right, atol=1e-13)
    for name in ("gesdd", "gesvd"):
        monkeypatch.setattr(dense, name, lambda A, name=name: np.linalg.svd(A, compute_uv=False) * 1.001)
    with pytest.raises(VerificationError, match=r"planted.*Σσ².*Σσ²"):
        tp.svdvals(A)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array([[1.0, np.nan]]), "finite entries"),
        (np.array([[1.0], [np.inf]]), "finite entries"),
        (torch.tensor([[-np.inf]], dtype=torch.float64), "finite entries"),
        (np.zeros((0, 3)), "at least one row and one column"),
        (np.zeros((3, 0)), "at least one row and one column"),
        (np.ones((2, 2), complex), "real and imaginary parts"),
        (np.ones((2, 2), int), "convert it first"),
        (torch.ones(2, 2, dtype=torch.float16), "convert it first"),
        (np.ones(3), "expected a matrix"),
        (np.ones((2, 2, 2)), "expected a matrix"),
        ([[1.0]], "expected a NumPy, torch or CuPy array, got list"),
        (None, "got NoneType"),
    ],
)
def test_bad_input_to_svdvals(given, message):
    for overwrite in (False, True):
        with pytest.raises(InputError, match=message):
            tp.svdvals(given, overwrite)


def test_values_beyond_the_range_are_no_answer():
    A = np.full((64, 64), 3e38, np.float32)
    with pytest.raises(VerificationError, match="float64"):
        tp.svdvals(A)
    assert tp.svdvals(A.astype(np.float64))[0] == pytest.approx(64 * 3e38, rel=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 4), (60, 60), (30, 461)])
@pytest.mark.parametrize("top", [1, 1000, 10**6])
def test_denormal_entries(shape, top, dtype):
    """Whole multiples of the smallest number there is: each value to the nearest multiple."""
    whole = np.random.default_rng(0).integers(-top, top + 1, shape).astype(np.float64)
    least = float(np.finfo(dtype).smallest_subnormal)
    sigma = np.linalg.svd(whole, compute_uv=False)
    for overwrite in (False, True):
        values = tp.svdvals((whole * least).astype(dtype), overwrite).astype(np.float64) / least
        assert np.abs(values - sigma).max() <= 0.5 + 4e-6 * sigma[0]


def test_denormal_entries_by_lapack(monkeypatch):
    monkeypatch.setattr(native, "extension", None)
    test_denormal_entries((60, 60), 1000, np.float32)
    test_denormal_entries((7, 4), 1, np.float64)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_memory_maps_and_numpy_matrices(dtype, overwrite, tmp_path):
    A = np.random.default_rng(0).standard_normal((41, 19)).astype(dtype)
    sigma = reference(A)
    np.save(tmp_path / "a.npy", A)
    for mode in ("r", "c"):
        mapped = np.load(tmp_path / "a.npy", mmap_mode=mode)
        values = tp.svdvals(mapped, overwrite)
        assert type(values) is np.ndarray
        assert np.abs(values - sigma).max() <= 2 * unit(A, sigma)
        assert np.abs(tp.svds(np.load(tmp_path / "a.npy", mmap_mode=mode), 2).S - sigma[:2]).max() <= 1e-5 * sigma[0]
    for matrix in (np.asmatrix(A.copy()), np.asmatrix(A.T.copy())):
        assert np.abs(tp.svds(matrix, 2).S - sigma[:2]).max() <= 1e-5 * sigma[0]
        values = tp.svdvals(matrix, overwrite)
        assert values.shape == (19,)
        assert np.abs(values - sigma).max() <= 2 * unit(A, sigma)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("n", [5, 450])
def test_entries_that_are_not_finite_never_reach_lapack(n, wrong, capfd, monkeypatch):
    A = np.ones((n, n))
    A[n // 2, 1] = wrong
    for extension in (native.extension, None):
        monkeypatch.setattr(native, "extension", extension)
        with pytest.raises(InputError, match="finite entries"):
            tp.svdvals(A)
    for work in (tp.svds, tp.rough_svds):
        with pytest.raises(InputError, match="finite"):
            work(A, 2)
    assert capfd.readouterr() == ("", "")


# ---- properties


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from(DTYPES))
def test_transposition_and_orthogonal_factors_change_nothing(shape, dtype):
    m, n, seed = shape
    rng = np.random.default_rng(seed)
    A = (rng.standard_normal((m, n)) * 10.0 ** rng.uniform(-3, 3, n)).astype(dtype)
    values = tp.svdvals(A)
    turned = (orthogonal(rng, m, m) @ A.astype(np.float64) @ orthogonal(rng, n, n)).astype(dtype)
    allowed = 8 * np.finfo(dtype).eps * np.sqrt(max(m, n)) * values[0]
    assert np.abs(tp.svdvals(A.T) - values).max() <= allowed
    assert np.abs(tp.svdvals(turned) - values).max() <= allowed


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(-90, 90), st.sampled_from(DTYPES))
def test_powers_of_two_scale_every_bit(shape, power, dtype):
    """Up to the rounding where the reduction scales and where it does not: within two units."""
    m, n, seed = shape
    A = np.random.default_rng(seed).standard_normal((m, n)).astype(dtype)
    values = tp.svdvals(A)
    scaled = tp.svdvals(np.ldexp(A, power)) / dtype(2.0) ** power
    assert np.abs(scaled - values).max() <= 2 * np.finfo(dtype).eps * np.sqrt(max(m, n)) * values[0]


# ---- the same over the array API, which is what a GPU runs


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "width"), [(1, 1, 16), (20, 16, 16), (50, 50, 16), (90, 70, 32), (33, 33, 32)])
def test_the_reduction_over_the_array_api(m, n, width, dtype, kind):
    A = np.random.default_rng(8).standard_normal((m, n)).astype(dtype)
    Z = np.random.default_rng(9).standard_normal((4, n)).astype(dtype)
    d, e, _, told = twostage._by_library(kind(A.copy()), Z, width, False)
    sigma = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    found = np.linalg.svd(np.diag(d) + np.diag(e, 1), compute_uv=False)
    assert np.abs(found - sigma).max() <= 4 * unit(A, sigma)
    assert told["misfit"] <= 4 * np.finfo(dtype).eps * np.sqrt(m) * told["left_before"]
    assert told["energy"] == pytest.approx(float((A.astype(float) ** 2).sum()), rel=1e-5)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "width"), [(1, 16), (2, 16), (17, 16), (70, 16), (65, 32)])
def test_native_bulges_are_the_references(n, width, dtype):
    rng = np.random.default_rng(n)
    rows = n + 2 * width
    band = np.zeros((rows, 3 * width), dtype)
    for i in range(n):
        stop = min(width, n - 1 - i) + 1
        band[i, width : width + stop] = rng.standard_normal(stop)
    left, right = (np.zeros((rows, 3), dtype) for _ in range(2))
    left[:n], right[:n] = rng.standard_normal((n, 3)), rng.standard_normal((n, 3))
    before = left.copy(), right.copy()
    whole = np.zeros((n, n))
    for i in range(n):
        stop = min(width, n - 1 - i) + 1
        whole[i, i : i + stop] = band[i, width : width + stop]
    plain = [array.copy() for array in (band, left, right)]
    svd.bulge_chase(band, left, right, n, width)
    reference_svd.bulge_chase(*plain, n, width)
    eps = np.finfo(dtype).eps * np.sqrt(n)
    values = []
    for B, turned_left, turned_right in ((band, left, right), plain):
        dense = np.diag(B[:n, width]) + np.diag(B[: n - 1, width + 1], 1)
        values.append(np.linalg.svd(dense.astype(float), compute_uv=False))
        for turned, start in ((turned_left, before[0]), (turned_right, before[1])):
            assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(start), rel=16 * eps)
        image = dense @ turned_right[:n]
        wanted = whole @ before[1][:n]
        assert np.linalg.norm(image.T @ turned_left[:n] - wanted.T @ before[0][:n]) <= 64 * eps * np.linalg.norm(
            wanted
        ) * np.linalg.norm(before[0])
    assert np.abs(values[0] - values[1]).max() <= 8 * eps * values[0][0]
    if n < 20:  # in longer chases rounding errors grow, in either
        assert np.abs(band - plain[0]).max() <= 1e3 * eps * values[0][0]


@compiled
def test_constants_are_the_same_in_both_languages():
    ours = {
        "narrowest": svd.WIDTHS[0],
        "widest": svd.WIDTHS[-1],
        "most_probes": svd.MOST_PROBES,
        "probes": svd.PROBES,
        "safe": svd.SAFE,
        "absolute": svd.ABSOLUTE,
        "relative": svd.RELATIVE,
        "slack": svd.SLACK,
        "least_rest_float32": reference_svd.LEAST_REST[4],
        "least_rest_float64": reference_svd.LEAST_REST[8],
        "over_zero": reference_svd.OVER_ZERO,
        "least_tau": reference_svd.LEAST_TAU,
        "above": reference_svd.ABOVE,
        "spread": reference_svd.SPREAD,
        "down": reference_svd.DOWN,
    }
    assert native.extension.constants == ours
    assert svd.WIDTHS.step == svd.WIDTHS[0]


@compiled
@pytest.mark.parametrize("n", [1, 2, 30, 300])
def test_native_bisection_is_the_references(n):
    rng = np.random.default_rng(n)
    d, e = rng.standard_normal(n), rng.standard_normal(n - 1)
    d[n // 2] = 0.0
    values = svd.bisection(d, e, 0.0, 1e-14)
    assert np.allclose(values, reference_svd.bisection(d, e, 0.0, 1e-14), rtol=1e-12, atol=1e-150)
    taus = np.r_[0.0, rng.uniform(0, 4, 50)]
    assert np.array_equal(svd.sturm_counts(d, e, taus), reference_svd.sturm_counts(d, e, taus))
