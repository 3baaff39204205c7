"""Every kind of block against a dense oracle: jacrev through the model's own sdpa attention in float64."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.places import place_of

import tightpass as tp
from tightpass.errors import InputError, VerificationError
from tightpass.jacobians.operator import Jacobian

IDS = [5, 17, 2, 88, 41, 7, 60]
KINDS = ("mlp", "attn", "head", "layer", "model")


def oracle_function(hf_model, kind, layer, head, norm, residual, x_of):
    """The block written out by hand on a fresh copy of the model, through sdpa."""
    base = copy.deepcopy(hf_model).requires_grad_(False)
    base.set_attn_implementation("sdpa")
    place = place_of(base.config)
    layers = [place.pieces(layer) for layer in place.layers(base)]
    causal, pre_norm = place.causal(base.config), place.pre_norm(base.config)

    def mixed(parts, h):
        """The per-head outputs, by scaled_dot_product_attention itself."""
        heads = base.config.num_attention_heads
        q, k, v = (
            module(h).reshape(len(h), heads, -1).transpose(0, 1) for module in (parts.query, parts.key, parts.value)
        )
        out = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=causal)
        return out[0].transpose(0, 1)

    def attend(parts, h):
        return parts.projection(mixed(parts, h).reshape(len(h), -1))

    def feed(parts, h):
        return parts.down(parts.act(parts.up(h)))

    def whole(parts, x):
        if pre_norm:
            x = x + attend(parts, parts.first(x))
            return x + feed(parts, parts.second(x))
        x = parts.first(x + attend(parts, x))
        return parts.second(x + feed(parts, x))

    def function(x):
        if kind == "model":
            for parts in layers:
                x = whole(parts, x)
            final = place.final_norm(base)
            return final(x) if final is not None and norm else x
        parts = layers[layer]
        if kind == "layer":
            return whole(parts, x)
        pre = parts.second if kind == "mlp" else parts.first
        h = pre(x) if norm and pre_norm else x
        if kind == "mlp":
            y = feed(parts, h)
        elif kind == "attn":
            y = attend(parts, h)
        else:
            per_head = mixed(parts, h)
            keep = torch.zeros(per_head.shape[1], 1, dtype=x.dtype)
            keep[head] = 1
            y = (per_head * keep).reshape(len(x), -1) @ parts.projection.weight.T
        return x + y if residual else y

    return function


def options_of(kind):
    return {"layer": None if kind == "model" else 1, "head": 2 if kind == "head" else None}


CASES = [
    (kind, norm, residual)
    for kind in KINDS
    for norm, residual in ((True, False), (False, False), (True, True))
    if (kind != "layer" or norm) and (kind not in ("layer", "model") or not residual)
]


@pytest.mark.parametrize(("kind", "norm", "residual"), CASES)
def test_dense_equals_jacrev_through_sdpa(hf_model, kind, norm, residual):
    model = tp.load_model(hf_model)
    block = tp.block(model, kind, token_ids=IDS, norm=norm, residual=residual, **options_of(kind))
    f = oracle_function(hf_model, kind, 1, 2, norm, residual, block.x)
    expected = torch.func.jacrev(f)(block.x).reshape(block.x.numel(), -1)
    J = tp.jacobian(block)
    sigma1 = torch.linalg.matrix_norm(expected, 2)
    assert torch.linalg.matrix_norm(J.dense() - expected, 2) <= 1e-12 * sigma1
    values = torch.linalg.svdvals(expected).numpy()
    assert np.abs(tp.spectrum(J).values - values).max() <= 1e-12 * float(sigma1)


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_dense_matrix(hf_model, kind):
    J = tp.jacobian(tp.block(tp.load_model(hf_model), kind, token_ids=IDS, **options_of(kind)))
    A = J.dense()
    rng = torch.Generator().manual_seed(3)
    X = torch.randn(J.shape[1], 3, generator=rng, dtype=J.dtype)
    Y = torch.randn(J.shape[0], 2, generator=rng, dtype=J.dtype)
    scale = torch.linalg.matrix_norm(A, 2)
    assert torch.linalg.norm(J @ X - A @ X) <= 1e-13 * scale * X.norm()
    assert torch.linalg.norm(J.T @ Y - A.T @ Y) <= 1e-13 * scale * Y.norm()
    assert torch.equal(J @ X[:, 0], (J @ X[:, :1])[:, 0])
    as_numpy = J @ X.numpy()
    assert isinstance(as_numpy, np.ndarray)
    assert np.array_equal(as_numpy, (J @ X).numpy())
    S = J.to_scipy()
    assert np.allclose(S @ X.numpy(), as_numpy, rtol=0, atol=1e-12 * float(scale))
    assert np.allclose(S.H @ Y.numpy(), (A.T @ Y).numpy(), rtol=0, atol=1e-12 * float(scale))
    u, v = X[:, 0], Y[:, 0]
    assert abs(v @ (J @ u) - (J.T @ v) @ u) <= 1e-13 * v.norm() * (J @ u).norm()


@pytest.mark.parametrize("memory", [None, 10_000])
@pytest.mark.parametrize("kind", ["mlp", "attn"])
def test_chunks_do_not_change_the_answer(small_opt, kind, memory):
    block = tp.block(tp.load_model(small_opt), kind, layer=0, token_ids=IDS)
    J = tp.jacobian(block, memory=memory)
    assert (J._whole.columns == 1) == (memory is not None)
    assert torch.allclose(J.dense(), tp.jacobian(block).dense(), rtol=0, atol=1e-14)


def test_block_diagonal_panels_in_groups(small_opt, monkeypatch):
    block = tp.block(tp.load_model(small_opt), "mlp", layer=0, token_ids=IDS)
    expected = tp.jacobian(block).dense()
    monkeypatch.setattr(sys.modules["tightpass.jacobians.forms.base"], "PANEL_ELEMENTS", 3 * 21 * 21)
    J = tp.jacobian(block)
    assert [p.rows for p in J.panels()] == [(0, 1, 2), (3, 4, 5), (6,)]
    assert torch.allclose(J.dense(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("tokens", "d", "rows", "columns"), [(1, 1, 1, 1), (3, 4, 5, 2), (7, 2, 1, 9)])
def test_any_function_of_a_tokens_by_width_tensor(tokens, d, rows, columns):
    rng = torch.Generator().manual_seed(4)
    W = torch.randn(rows * columns, tokens * d, generator=rng, dtype=torch.float64)
    J = tp.jacobian(lambda x: (W @ x.reshape(-1)).reshape(rows, columns), torch.zeros(tokens, d, dtype=torch.float64))
    assert J.shape == W.shape
    assert torch.equal(J.dense(), W)
    S = tp.spectrum(J, vectors=1)
    assert np.allclose(S.values, torch.linalg.svdvals(W).numpy(), atol=1e-12)
    assert S.floor.parts[0].method.startswith("estimated")


def test_a_false_structure_is_found_out():
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    backwards = lambda x: x.flip(0).cumsum(0).flip(0)  # noqa: E731 - token t reads tokens t and later
    with pytest.raises(VerificationError, match="claimed BlockLowerTriangular"):
        tp.jacobian(backwards, x, tp.BlockLowerTriangular())
    leak = torch.zeros(9, 9, dtype=torch.float64).fill_diagonal_(1.0)
    leak[4, 6] = 1e-9  # a middle token reads a later one, faintly
    with pytest.raises(VerificationError, match="claimed BlockLowerTriangular"):
        tp.jacobian(lambda x: leak @ x, torch.ones(9, 3, dtype=torch.float64), tp.BlockLowerTriangular())
    with pytest.raises(VerificationError, match="claimed BlockDiagonal"):
        tp.jacobian(lambda x: x.cumsum(0), x, tp.BlockDiagonal())
    assert torch.equal(
        tp.jacobian(lambda x: x.cumsum(0), x, tp.BlockLowerTriangular()).dense(),
        torch.kron(torch.ones(4, 4).tril(), torch.eye(3)).double(),
    )
    tanh = tp.jacobian(torch.tanh, x, tp.BlockDiagonal())
    assert torch.allclose(tanh.dense(), torch.diag(1 - torch.tanh(x.reshape(-1)) ** 2))


@pytest.mark.parametrize(
    ("operand", "message"),
    [
        (torch.zeros(5, 2, dtype=torch.float64), r"expects shape \(147, k\), got \(5, 2\)"),
        (torch.zeros(147, 2), "expects torch.float64, got torch.float32"),
        (torch.zeros(147, 2, 2, dtype=torch.float64), "expects shape"),
    ],
)
def test_wrong_operands_are_named(small_opt, operand, message):
    J = tp.jacobian(tp.block(tp.load_model(small_opt), "mlp", layer=0, token_ids=IDS))
    with pytest.raises(InputError, match=message):
        J @ operand
    with pytest.raises(InputError, match="use matmat"):
        J.matvec(torch.zeros(147, 2, dtype=torch.float64))
    with pytest.raises(InputError, match=r"J @ x expects shape \(147,\), got \(5,\)"):
        J @ np.zeros(5)
    with pytest.raises(InputError, match="got list"):
        J @ [1.0]
    backwards = np.arange(147.0)[::-1]
    assert np.array_equal(J @ backwards, J @ backwards.copy())


OPERATIONS = {
    r"J @ x expects shape \(6,\), got \(5,\)": lambda J: J @ np.zeros(5),
    r"J @ X expects shape \(6, k\), got \(5, 2\)": lambda J: J @ np.zeros((5, 2)),
    r"J @ X expects shape \(6,\) or \(6, k\), got \(\)": lambda J: J @ np.array(1.0),
    r"J.T @ y expects shape \(4,\), got \(5,\)": lambda J: J.T @ np.zeros(5),
    r"J.T @ Y expects torch.float64, got torch.float32": lambda J: J.T @ torch.zeros(4, 2),
    r"J.T.matvec expects shape \(4,\), got \(6,\)": lambda J: J.T.matvec(np.zeros(6)),
    r"J.T.rmatmat expects shape \(6, k\), got \(4, 1\)": lambda J: J.T.rmatmat(np.zeros((4, 1))),
    r"rmatvec expects .* got list": lambda J: J.rmatvec([1.0]),
    r"matvec expects shape \(6,\), got \(6, 1\); use matmat": lambda J: J.matvec(np.zeros((6, 1))),
    r"matmat expects shape \(6, k\), got \(6,\); use matvec": lambda J: J.matmat(np.zeros(6)),
    r"J @ X expects .* got a masked one": lambda J: J @ np.ma.masked_array(np.zeros((6, 1)), True),
    r"J @ X expects .* sparse": lambda J: J @ torch.zeros(6, 1, dtype=torch.float64).to_sparse(),
    r"J @ x expects .* of complex128": lambda J: J @ np.zeros(6, complex),
}


@pytest.mark.parametrize("said", OPERATIONS)
def test_operations_are_called_what_the_caller_wrote(said):
    J = tp.jacobian(lambda x: x[:, :2] * 2, torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(InputError, match="^" + said):
        OPERATIONS[said](J)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_points_of_other_precisions_are_told_what_to_become(dtype):
    with pytest.raises(InputError, match=rf"{dtype}; float32 and float64 are taken: give x.double\(\)"):
        tp.jacobian(torch.tanh, torch.zeros(2, 3, dtype=dtype))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3),
        torch.zeros(2, 2, 2),
        torch.zeros(2, 2, dtype=torch.long),
        torch.zeros(2, 2).half(),
        torch.zeros(0, 2),
        np.zeros((2, 2)),
        None,
    ],
)
def test_wrong_points_are_named(x):
    with pytest.raises(InputError, match=r"floating \(tokens, d\) tensor|needs the point"):
        tp.jacobian(torch.tanh, x)


def test_autocast_is_refused():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="autocast"):
        tp.jacobian(torch.tanh, torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("holder", "setting", "value", "default"),
    [
        (torch.backends.cuda.matmul, "allow_tf32", True, False),
        (torch.backends.cuda.matmul, "fp32_precision", "tf32", "ieee"),
        (torch.backends.mkldnn.matmul, "fp32_precision", "bf16", "none"),
        (torch.backends, "fp32_precision", "tf32", "none"),
    ],
)
def test_lowered_precision_is_refused(holder, setting, value, default):
    """torch has two interfaces for one setting, and raises itself where they disagree."""
    setattr(holder, setting, value)
    try:
        with pytest.raises(InputError, match="TF32 or bfloat16"):
            tp.jacobian(torch.tanh, torch.zeros(1, 1))
    finally:
        setattr(holder, setting, default)
    tp.jacobian(torch.tanh, torch.zeros(1, 1))


@pytest.mark.parametrize("name", ["CUPY_TF32", "NVIDIA_TF32_OVERRIDE"])
def test_lowered_precision_by_environment_is_refused(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(InputError, match=name):
        tp.jacobian(torch.tanh, torch.zeros(1, 1))


@pytest.mark.parametrize("scale", [1e-170, 1e160])
def test_jacobians_out_of_range_are_refused(scale):
    J = tp.jacobian(lambda x: x * scale, torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(InputError, match="out of float64's range"):
        tp.spectrum(J)


def test_the_zero_jacobian_has_rank_zero():
    S = tp.spectrum(tp.jacobian(lambda x: x * 0, torch.zeros(2, 600, dtype=torch.float64)))
    assert S.rank.interval == (0, 0)
    assert S.cliff is None


def test_columns_are_carried_in_one_forward_pass():
    calls = []

    def counted(x):
        calls.append(None)
        return torch.tanh(x)

    J = Jacobian(counted, torch.zeros(3, 2, dtype=torch.float64))
    before = len(calls)
    J.T @ torch.eye(6, dtype=torch.float64)
    assert len(calls) == before


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_linear_maps_are_their_own_jacobian(tokens, d, seed):
    rng = torch.Generator().manual_seed(seed)
    W = torch.randn(d, d, generator=rng, dtype=torch.float64)
    J = tp.jacobian(lambda x: x @ W.T, torch.randn(tokens, d, generator=rng, dtype=torch.float64), tp.BlockDiagonal())
    assert torch.equal(J.dense(), torch.block_diag(*[W] * tokens))


@pytest.mark.parametrize(
    ("fn", "x", "message"),
    [
        (torch.tanh, torch.full((2, 3), float("nan")), "x must be finite"),
        (torch.tanh, torch.full((2, 3), float("inf")), "x must be finite"),
        (lambda x: x * float("nan"), torch.zeros(2, 3), "value at x is not finite"),
        (torch.log, torch.full((2, 3), -1.0), "value at x is not finite"),
        (3, torch.ones(2, 3), "expects a block or a function of a tensor, got int"),
        (lambda x: 3, torch.ones(2, 3), "cannot be differentiated"),
        (torch.tanh, np.ones((2, 3)), "tensor of torch, got a ndarray"),
        (torch.tanh, [1.0], "tensor of torch, got a list"),
    ],
)
def test_points_and_functions_without_a_jacobian(fn, x, message):
    with pytest.raises(InputError, match=message):
        tp.jacobian(fn, x)


def test_no_columns_give_no_columns():
    for J in (
        tp.jacobian(torch.tanh, torch.ones(2, 3)),
        tp.jacobian(tp.block(tp.load_model("demo"), "mlp", layer=0, tokens=2)),
    ):
        n = J.shape[1]
        empty = torch.ones(n, 0, dtype=J.dtype)
        assert (J @ empty).shape == (J.shape[0], 0)
        assert (J.T @ empty.numpy()).shape == (n, 0)


def test_a_jacobian_keeps_its_own_point():
    x = torch.ones(2, 3, dtype=torch.float64)
    J = tp.jacobian(lambda x: x**2, x)
    x.fill_(100.0)
    assert torch.equal(J.dense(), 2 * torch.eye(6, dtype=torch.float64))
    assert torch.equal(J @ torch.ones(6, dtype=torch.float64), torch.full((6,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_product_is_an_array_of_its_own(tokens, columns):
    """The identity hands its operand back; its product must not."""
    J = tp.jacobian(lambda x: x, torch.ones(tokens, 4, dtype=torch.float64))
    for product in (J.matmat, J.rmatmat):
        X = np.ones((4 * tokens, columns))
        Y = product(X)
        X[:] = 7
        assert np.array_equal(Y, np.ones_like(X))


def test_a_block_that_is_changed_afterwards_does_not_change_its_jacobian(small_opt):
    block = tp.block(tp.load_model(small_opt), "layer", layer=0, token_ids=IDS)
    J = tp.jacobian(block)
    before = J.dense()
    block.x.fill_(3.0)
    assert torch.equal(J.dense(), before)
