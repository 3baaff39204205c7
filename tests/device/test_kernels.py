"""The kernels of a GPU through the package's own checks, against the plain reference."""

from __future__ import annotations

import cupy
import numpy as np
import pytest

from tightpass.errors import InputError
from tightpass.kernels import svd
from tightpass.kernels.attention import attention_blocks
from tightpass.kernels.reference import attention as plain_attention
from tightpass.kernels.reference import rows as plain_rows
from tightpass.kernels.reference import svd as plain_svd
from tightpass.kernels.rows import gather_rows

PRECISIONS = ["float32", "float64"]
RNG = np.random.default_rng(0)


def drawn(*shape, dtype):
    return RNG.standard_normal(shape).astype(dtype)


def on_gpu(value):
    return tuple(map(on_gpu, value)) if isinstance(value, tuple) else cupy.asarray(value)


def attention_arguments(T, H, d_out, d_in, norm, dtype):
    names = {
        "a": drawn(T, H, T, dtype=dtype),
        "vo": drawn(d_out, H, T, dtype=dtype),
        "vt": drawn(d_out, H, T, dtype=dtype),
        "rest": drawn(d_out, H, T, dtype=dtype),
        "p": drawn(H, d_out, d_in, dtype=dtype),
        "k": drawn(T, H, d_in, dtype=dtype),
        "q": drawn(T, d_out, d_in, dtype=dtype),
    }
    if norm:
        x, r = drawn(T, d_in, dtype=dtype), np.abs(drawn(T, dtype=dtype))
        names["norm"] = (
            np.einsum("hoj,sj->ohs", names["p"], x),
            np.einsum("thj,sj->ths", names["k"], x),
            np.einsum("toj,tj->to", names["q"], x),
            x,
            r,
        )
    return names


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("T", "H", "d_out", "d_in"), [(1, 1, 1, 1), (5, 3, 7, 21), (9, 2, 3, 131)])
def test_attention_blocks(T, H, d_out, d_in, norm, dtype):
    given = attention_arguments(T, H, d_out, d_in, norm, dtype)
    columns, diagonal = list(range(1, T + 1)), list(range(T))
    expected = np.zeros((T, T, d_out, d_in), dtype)
    plain_attention.attention_blocks(
        **(given | {"norm": given.get("norm")}), out=expected, columns=columns, diagonal=diagonal, first=None
    )
    there = {name: on_gpu(value) for name, value in given.items()}
    out = attention_blocks(**there, out=cupy.zeros_like(on_gpu(expected)), columns=columns, diagonal=diagonal)
    assert np.abs(out.get() - expected).max() <= 100 * H * d_in * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("stream", [None, "another"])
def test_gathered_rows(dtype, stream, log):
    weight, slope, x, r = (
        drawn(9, 33, dtype=dtype),
        drawn(4, dtype=dtype),
        drawn(3, 33, dtype=dtype),
        drawn(3, dtype=dtype),
    )
    index, token, expected = [8, 0, 3, 3], [2, 0, 1, 1], np.zeros((4, 33), dtype)
    plain_rows.gather_rows(weight, np.array(index), slope, expected, np.array(token), (x, r))
    out = on_gpu(np.zeros((4, 33), dtype))
    log.clear()
    number = None if stream is None else 4711
    gather_rows(on_gpu(weight), index, on_gpu(slope), out, token, on_gpu((x, r)), stream=number)
    assert np.abs(out.get() - expected).max() <= 1000 * np.finfo(dtype).eps
    assert log["sync"] == (0 if stream is None else 2)  # the indices have to be there before, and to stay until after


def test_indices_are_made_on_the_operands_device(second, monkeypatch):
    made = []
    real = cupy.asarray
    with second:
        weight, out = on_gpu(drawn(5, 3, dtype="float32")), on_gpu(np.zeros((2, 3), "float32"))
    monkeypatch.setattr(cupy, "asarray", lambda *a, **k: made.append(real(*a, **k)) or made[-1])
    gather_rows(weight, [1, 2], None, out)
    assert {array.device.id for array in made} <= {1}
    assert np.array_equal(out.get(), weight.get()[1:3])


def test_arrays_of_two_devices_are_refused(second):
    weight = on_gpu(drawn(5, 3, dtype="float32"))
    with second:
        out = on_gpu(np.zeros((2, 3), "float32"))
    with pytest.raises(InputError, match="out: expected it on cuda:0"):
        gather_rows(weight, [1, 2], None, out)


@pytest.mark.parametrize("n", [1, 2, 8, 130])
def test_bisection_and_counts(n):
    d, e = drawn(n, dtype="float64"), drawn(n - 1, dtype="float64")
    true = np.linalg.svd(np.diag(d) + np.diag(e, 1), compute_uv=False)
    values = svd.bisection(on_gpu(d), on_gpu(e), absolute=0, relative=1e-15)
    assert np.abs(values.get() - true).max() <= 1e-14 * true[0]
    taus = np.array([0.0, true[-1] / 2, true[0] / 2, 2 * true[0]])
    counts = svd.sturm_counts(on_gpu(d), on_gpu(e), on_gpu(taus))
    assert np.array_equal(counts.get(), plain_svd.sturm_counts(d, e, taus))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (17, 17), (70, 33), (200, 40), (130, 130)])
def test_both_stages(m, n, dtype):
    A, b = drawn(m, n, dtype=dtype), 16
    rows = n + 2 * b
    band, left, right = (np.zeros(shape, dtype) for shape in ((rows, 3 * b), (max(m, rows), 2), (rows, 2)))
    left[:m], right[:n] = drawn(m, 2, dtype=dtype), drawn(n, 2, dtype=dtype)
    band_there, left_there, right_there = on_gpu((band, left, right))
    svd.band_reduction(on_gpu(A), band_there, left_there, right_there, b)
    svd.bulge_chase(band_there, left_there[:rows, :], right_there, n, b)
    found = band_there.get()
    B = np.diag(found[:n, b].astype("f8")) + np.diag(found[: n - 1, b + 1].astype("f8"), 1)
    true = np.linalg.svd(A.astype("f8"), compute_uv=False)
    unit = np.finfo(dtype).eps * np.sqrt(m) * true[0]
    assert np.abs(np.linalg.svd(B, compute_uv=False) - true).max() <= 8 * unit
    assert np.allclose(np.linalg.norm(right_there.get()), np.linalg.norm(right), rtol=1e-4)
