"""Which route is taken, and the routes that are not the ordinary one: Gram, batched, timed choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tightpass as tp
from tightpass.errors import InputError, VerificationError
from tightpass.jacobians.written import Written
from tightpass.kernels import native
from tightpass.kernels.products import adjoint_product, product
from tightpass.spectra import batched, exact
from tightpass.spectra.choose import choose, dense_bytes, gram_bytes
from tightpass.spectra.gram import gram_values
from tightpass.structure import Panel


def in_groups(A, rows):
    return [(A[i : i + rows], slice(0, A.shape[1])) for i in range(0, len(A), rows)]


@pytest.mark.parametrize("shape", [(40, 13), (13, 40), (1, 1), (200, 64)])
def test_gram_values_of_float32_data(shape):
    A = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = gram_values(in_groups(A, 7), shape[1])
    exact_values = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    assert found.values.dtype == np.float32
    assert np.abs(found.values - exact_values).max() <= 2 * np.finfo(np.float32).eps * exact_values[0]
    assert np.abs(found.values - exact_values).max() <= found.error.bound
    assert found.unknown == 0


def test_gram_values_say_what_squares_have_lost():
    sigma = np.r_[np.geomspace(1, 1e-6, 20), np.full(5, 1e-12)]
    A = np.diag(sigma).astype(np.float32)
    found = gram_values(in_groups(A, 6), 25)
    assert found.unknown == 5
    assert "5 values below 1e-08 σ₁ are left to an exact route" in found.error.method
    assert np.abs(found.values - sigma).max() <= found.error.bound


def test_gram_values_are_refused_for_float64():
    with pytest.raises(InputError, match="float32 data, got float64"):
        gram_values([(np.eye(3), slice(0, 3))], 3)


def test_a_gram_matrix_that_is_not_finite_is_told_before_lapack(capfd):
    A = np.eye(9, dtype=np.float32)
    A[3, 3] = np.nan
    with pytest.raises(VerificationError, match="not finite"):
        gram_values(in_groups(A, 4), 9)
    assert capfd.readouterr().err == ""


def test_a_wrong_gram_matrix_is_seen(monkeypatch):
    from tightpass.spectra import gram

    monkeypatch.setattr(gram, "eigvalsh", lambda G, **_: np.linalg.eigvalsh(G) * 1.001)
    with pytest.raises(VerificationError, match="eigenvalues add up to"):
        gram_values(in_groups(np.eye(9, dtype=np.float32), 4), 9)


def tall_source(tokens_out=6, tokens_in=1, d=8):
    """A dense source, much taller than wide: its Gram matrix is the smaller one."""
    blocks = torch.randn(tokens_out, tokens_in, 40 * d, d, generator=torch.Generator().manual_seed(0))
    pairs = [(t, s) for t in range(tokens_out) for s in range(tokens_in)]
    panel = Panel(tuple(t for t, _ in pairs), tuple(s for _, s in pairs), blocks.flatten(0, 1))
    return Written(tp.Dense(), (tokens_out * 40 * d, tokens_in * d), 40 * d, d, [panel])


def test_short_memory_takes_the_gram_route():
    source = tall_source(tokens_in=2)
    whole = exact.singular_values(source)
    memory = dense_bytes(source.shape, np.float32) - 1
    assert gram_bytes(source.shape) <= memory
    short = exact.singular_values(source, memory=memory)
    assert short.route.startswith("float64 Gram matrix: the matrix takes")
    assert np.abs(short.values - whole.values).max() <= 4 * np.finfo(np.float32).eps * whole.values[0]
    assert exact.cross_check(short)[0].bound > 0


def test_the_chooser_gives_its_reasons():
    square = choose(tp.Dense(), (4096, 4096), (64, 64), np.float32)
    assert square.name == ("two-stage" if native.extension is not None else "lapack")
    assert square.reason
    assert choose(tp.BlockDiagonal(), (4096, 4096), (64, 64), np.float64).batched
    # of float64 data the Gram matrix would lose half of the digits, of a square matrix it saves nothing
    assert choose(tp.Dense(), (40960, 64), (640, 64), np.float64, memory=10**6).name == square.name
    assert choose(tp.Dense(), (4096, 4096), (64, 64), np.float32, memory=10**6).name == square.name
    assert choose(tp.Dense(), (40960, 64), (640, 64), np.float32, memory=10**6).name == "gram"


def test_plan_and_result_name_the_route(tmp_path):
    question = {"block": "attn", "tokens": 3, "layers": "0"}
    route = tp.plan(**question).route
    assert route.startswith("one dense SVD, ")
    run = tp.run(out=str(tmp_path / "a"), **question)
    assert route.split(": ", 1)[1] in run["L00.attn"].method
    leading = tp.plan(method="topk", k=5, **question)
    assert leading.route.startswith("block Golub–Kahan–Lanczos, 5 of 384 values")
    light = tp.run(out=str(tmp_path / "b"), method="topk", k=5, **question)
    assert light["L00.attn"].rank.flag == "not converged"
    assert np.allclose(light["L00.attn"].values, run["L00.attn"].values[:5], atol=1e-7)
    assert not (tmp_path / "b" / "shards").exists()
    assert tp.verify(tmp_path / "b")[0].startswith("L00.attn: 5 leading values")
    assert tp.open(tmp_path / "b")["L00.attn"].size == 384
    again = tp.run(out=str(tmp_path / "b"), method="topk", k=5, **question)
    assert np.array_equal(again["L00.attn"].values, light["L00.attn"].values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batched_values_are_those_of_each_block(dtype):
    blocks = torch.randn(9, 33, 21, dtype=dtype, generator=torch.Generator().manual_seed(1))
    blocks[4] = 0
    blocks[5, :, 7] = blocks[5, :, 3]
    eps = torch.finfo(dtype).eps
    for block, values in zip(blocks, batched.block_values(blocks), strict=True):
        sigma = np.linalg.svd(block.double().numpy(), compute_uv=False)
        assert np.abs(values - sigma).max() <= 4 * eps * np.sqrt(33) * sigma[0]


def test_the_gpu_batch_by_gram_matrices_is_right_on_the_processor():
    blocks = torch.randn(5, 20, 31, generator=torch.Generator().manual_seed(2))
    sigma = torch.linalg.svdvals(blocks.double())
    assert float((batched._gram(blocks) - sigma).abs().max()) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize(
    ("m", "n", "width"),
    [(1, 1, 1), (7, 5, 16), (300, 2, 3), (33, 700, 17), (513, 129, 64), (2500, 40, 33), (64, 64, 200)],
)
def test_products_with_few_columns(m, n, width, kind, dtype):
    generator = torch.Generator().manual_seed(3)
    room = torch.randn(m, n + 5, dtype=dtype, generator=generator)
    A, X, Y = room[:, :n], torch.randn(n, width, dtype=dtype), torch.randn(m, width, dtype=dtype)
    given = (A, X, Y) if kind == "torch" else (A.numpy(), X.numpy(), Y.numpy())
    eps = torch.finfo(dtype).eps
    for threads in (1, 2, 3):
        for found, left, right in (
            (product(given[0], given[1], threads), A, X),
            (adjoint_product(given[0], given[2], threads), A.T, Y),
        ):
            wide = left.double() @ right.double()
            size = left.double().abs() @ right.double().abs()
            assert type(found) is type(given[0])
            assert bool((torch.as_tensor(found).double() - wide).abs().le(16 * eps * size).all())


def test_products_refuse_what_does_not_fit():
    A = np.ones((4, 6))
    with pytest.raises(InputError, match="x: expected 6 rows"):
        product(A, np.ones((5, 2)))
    with pytest.raises(InputError, match="y: expected 4 rows"):
        adjoint_product(A, np.ones((6, 2)))
    with pytest.raises(InputError, match="last axis must be contiguous"):
        product(np.ones((6, 4)).T, np.ones((6, 2)))
    with pytest.raises(InputError, match="float32"):
        product(A, np.ones((6, 16), np.float32))
