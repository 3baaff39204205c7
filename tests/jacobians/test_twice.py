"""Arithmetic in twice float64's precision, and what the floor measures with it, against mpmath."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from oracles import extended, fuzzing, small_models, truth
from oracles.fuzz_cases import Case
from torch import nn

import tightpass as tp
from tightpass.evidence import arithmetic
from tightpass.evidence.arithmetic import Difference, lanczos_norm, steps
from tightpass.jacobians.twice import functions, matrix
from tightpass.jacobians.twice import pair as pairs
from tightpass.jacobians.twice.block import twice
from tightpass.jacobians.twice.functions import exp
from tightpass.jacobians.twice.matrix import matmul, sliced
from tightpass.jacobians.twice.pair import NOISE, Pair, of, perturbed, reciprocal_root, renormalised
from tightpass.kernels import native
from tightpass.kernels import products as compiled
from tightpass.kernels.reference import products as reference

TIGHT = 1e-29
rng = np.random.default_rng(0)


def pair(*shape: int, size: float = 1.0) -> Pair:
    high = torch.from_numpy(rng.standard_normal(shape) * size)
    return renormalised(high, high * 2.0**-54 * torch.from_numpy(rng.uniform(-1, 1, shape)))


def exact(p: Pair) -> np.ndarray:
    with mpmath.workdps(60):
        return extended.exact(p.hi) + extended.exact(p.lo)


def apart(found: Pair, true: np.ndarray) -> float:
    """The largest relative difference."""
    with mpmath.workdps(60):
        return max(float(abs(a - b) / abs(b)) for a, b in zip(exact(found).flat, np.ravel(true), strict=True) if b)


def elementwise(f, z: Pair) -> np.ndarray:
    with mpmath.workdps(60):
        return np.vectorize(f, otypes=[object])(exact(z))


ARITHMETIC = {
    "sum": (lambda a, b: a + b, lambda a, b: a + b),
    "difference": (lambda a, b: a - b, lambda a, b: a - b),
    "product": (lambda a, b: a * b, lambda a, b: a * b),
    "quotient": (lambda a, b: a / b, lambda a, b: a / b),
    "with a number": (lambda a, b: (a * 3.0 + 0.1) / 7.0, lambda a, b: (a * 3 + mpf(0.1)) / 7),
}


@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_arithmetic_of_pairs(name, size):
    ours, true = ARITHMETIC[name]
    a, b = pair(5, 7), pair(5, 7, size=size)
    with mpmath.workdps(60):
        assert apart(ours(a, b), true(exact(a), exact(b))) < TIGHT


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64])
def test_sums_of_pairs(n):
    a = pair(3, n)
    with mpmath.workdps(60):
        assert apart(a.sum(-1), exact(a).sum(-1)) < 1e-28


def test_reciprocal_roots():
    a = pair(40).map(torch.abs)
    assert apart(reciprocal_root(a), elementwise(lambda v: 1 / mpmath.sqrt(v), a)) < TIGHT


FUNCTIONS = {
    "exp": (functions.exp, mpmath.exp),
    "logistic": (functions.logistic, lambda v: 1 / (1 + mpmath.exp(-v))),
    "tanh": (functions.tanh, mpmath.tanh),
    "normal cdf": (functions.normal_cdf, mpmath.ncdf),
    "gelu": (lambda z: functions.gelu(z)[0], lambda v: v * mpmath.ncdf(v)),
    "gelu's slope": (lambda z: functions.gelu(z)[1], lambda v: mpmath.ncdf(v) + v * mpmath.npdf(v)),
    "silu's slope": (
        lambda z: functions.silu(z)[1],
        lambda v: (1 + mpmath.exp(-v) + v * mpmath.exp(-v)) / (1 + mpmath.exp(-v)) ** 2,
    ),
    "squared ReLU": (lambda z: functions.relu_squared(z)[0], lambda v: max(v, 0) ** 2),
    "squared ReLU's slope": (lambda z: functions.relu_squared(z)[1], lambda v: 2 * max(v, 0)),
    "quick gelu": (lambda z: functions.quick_gelu(z)[0], lambda v: v / (1 + mpmath.exp(-v * mpmath.mpf(1.702)))),
    "quick gelu's slope": (
        lambda z: functions.quick_gelu(z)[1],
        lambda v: mpmath.diff(lambda w: w / (1 + mpmath.exp(-w * mpmath.mpf(1.702))), v),
    ),
    "tanh's slope": (lambda z: functions.of_tanh(z)[1], lambda v: 1 / mpmath.cosh(v) ** 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0, 4.0, 9.0])
def test_functions_of_pairs(name, size):
    ours, true = FUNCTIONS[name]
    z = pair(60, size=size)
    assert apart(ours(z), elementwise(true, z)) < 1e-28


def test_the_ends_of_the_exponential():
    found = functions.exp(of(torch.tensor([-1e300, -800.0, -700.0, 0.0, 800.0], dtype=torch.float64))).rounded()
    assert found.tolist() == [0.0, 0.0, pytest.approx(math.exp(-700), rel=1e-15, abs=0), 1.0, math.inf]


@pytest.mark.parametrize(
    "name", ["GELUActivation", "NewGELUActivation", "SiLUActivation", "Tanh", "ReLU", "GELUTanh", "SiLU"]
)
def test_activations_are_those_of_their_names(name):
    from transformers import activations

    module = (getattr(activations, name, None) or getattr(nn, name))()
    value, slope = functions.activation(module)(of(torch.linspace(-5, 5, 41, dtype=torch.float64)))
    z = torch.linspace(-5, 5, 41, dtype=torch.float64, requires_grad=True)
    module(z).sum().backward()
    assert torch.allclose(value.rounded(), module(z).detach(), rtol=1e-13, atol=1e-14)
    assert torch.allclose(slope.rounded(), z.grad, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (2, 70, 9), (4, 900, 3)])
def test_products_of_matrices_carry_eighty_bits(shape):
    m, k, n = shape
    A, B = pair(m, k), pair(k, n)
    A = A * torch.logspace(-9, 9, m, dtype=torch.float64)[:, None]
    found = matmul(A, sliced(B))
    with mpmath.workdps(60):
        error = np.abs(exact(found) - exact(A) @ exact(B)).astype(float)
    size = A.hi.abs().amax(1, keepdim=True) * B.hi.abs().amax(0, keepdim=True)
    assert (error <= 2.0**-76 * size.numpy()).all()


# ---- products of stored blocks


@pytest.mark.parametrize("which", ["native", "reference"])
@pytest.mark.parametrize(("count", "m", "n"), [(1, 1, 1), (3, 5, 7), (4, 17, 130), (2, 300, 33)])
@pytest.mark.parametrize("adjoint", [False, True])
def test_products_of_blocks_lose_nothing(which, count, m, n, adjoint):
    if which == "native" and native.extension is None:
        pytest.skip("no compiled kernels")
    product = compiled.block_product if which == "native" else reference.block_product
    blocks, rows, columns = rng.standard_normal((count, m, n)), rng.integers(0, 3, count), rng.integers(0, 2, count)
    v = rng.standard_normal((3, m) if adjoint else (2, n)) * 10.0 ** rng.integers(-8, 8, (1, m if adjoint else n))
    shape = (2, n) if adjoint else (3, m)
    high, low, true = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=object)
    with mpmath.workdps(60):
        for _ in range(2):  # sums go on from call to call
            product(blocks, rows, columns, v, high, low, adjoint)
            for block, t, s in zip(blocks, rows, columns, strict=True):
                wide = extended.exact(torch.from_numpy(block))
                if adjoint:
                    true[s] += wide.T @ extended.exact(torch.from_numpy(v[t]))
                else:
                    true[t] += wide @ extended.exact(torch.from_numpy(v[s]))
        off = np.abs(true - extended.exact(torch.from_numpy(high)) - extended.exact(torch.from_numpy(low)))
    assert off.astype(float).max() <= 1e-28 * np.abs(blocks).sum() * np.abs(v).max()


# ---- blocks


@pytest.mark.parametrize("kind", ["mlp", "attn", "head", "layer"])
@pytest.mark.parametrize("name", ["opt", "opt-post-norm", "bert"])
def test_the_measured_error_is_the_true_one(name, kind):
    """E by products with units, either way, against J to 40 digits."""
    known = truth.truth(name, kind, "float64", 3)
    J, found = tp.jacobian(known.block), twice(known.block)
    E = Difference(J, lambda: iter(known.written), found)
    assert np.linalg.norm(E.whole(), 2) == pytest.approx(known.error, rel=1e-6, abs=0)
    units = torch.eye(known.block.x.numel(), dtype=torch.float64).view(-1, *known.block.x.shape)
    pulled = np.stack([E.pull(u).numpy().ravel() for u in units])
    assert np.linalg.norm(pulled - E.whole(), 2) <= 1e-6 * known.error
    assert known.error / math.sqrt(2) <= lanczos_norm(E, steps(units.shape[0])) <= known.error * (1 + 1e-9)


def test_a_model_in_twice_the_precision():
    """All layers in a row, against automatic differentiation in float64."""
    block = tp.block(tp.load_model(small_models.opt()), "model", token_ids=[5, 17, 2])
    J = tp.jacobian(block).dense()
    units = of(torch.eye(block.x.numel(), dtype=torch.float64).view(-1, *block.x.shape))
    found = twice(block).push(units).rounded().flatten(1).T
    assert torch.linalg.matrix_norm(found - J, 2) <= 1e-12 * torch.linalg.matrix_norm(J, 2)


def test_unknown_pieces_have_no_formulas():
    model = small_models.bert(hidden_act="mish")
    block = tp.block(tp.load_model(model), "mlp", layer=0, token_ids=[5, 17, 2])
    assert twice(block) is None
    J = tp.jacobian(block)
    part = tp.spectrum(J).floor.parts[0]
    assert part.confidence == "calibrated"
    assert 1 <= part.bound / (np.finfo(float).eps * J.energy() ** 0.5) <= 30


# ---- rounding of the doubled precision itself


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_perturbed_arithmetic_is_off_by_a_little(size):
    a, b = pair(30, size=size), pair(30)
    with perturbed(0):
        off = (a * b + a) / b, exp(b), matmul(a[None], sliced(b[:, None]))
    true = (a * b + a) / b, exp(b), matmul(a[None], sliced(b[:, None]))
    for shaken, plain in zip(off, true, strict=True):
        moved = ((shaken - plain).rounded() / plain.rounded()).abs()
        assert moved.min() > 0
        assert NOISE / 3 < moved.mean() < 300 * NOISE
    again = (a * b + a) / b
    assert torch.equal(again.lo, true[0].lo)


@pytest.mark.parametrize("kind", ["layer", "model", "mlp", "attn"])
@pytest.mark.parametrize("post", [True, False])
def test_the_rounding_is_never_below_what_more_digits_show(kind, post, monkeypatch):
    """Products in fewer bits, 2⁻⁴⁸ and not 2⁻⁸⁰: what they are off by is known from those in more, and must be covered."""
    model = small_models.bert() if post else small_models.opt()
    layer = None if kind == "model" else 1
    block = tp.block(tp.load_model(model), kind, layer=layer, token_ids=[5, 17, 2])
    units = of(torch.eye(block.x.numel(), dtype=torch.float64).view(-1, *block.x.shape))
    true = twice(block).push(units)
    monkeypatch.setattr(matrix, "BITS", 48)
    monkeypatch.setattr(pairs, "NOISE", 2.0**-40)
    coarse = twice(block)
    error = torch.linalg.matrix_norm((coarse.push(units) - true).rounded().flatten(1), 2)
    assert 0 < error <= coarse.rounding / 4


CANCELLED = {
    "model": Case("bert", "model", "float32", 1, 2, 448281, "held_by_float32", 1e4, units=2, activation="gelu", causal=False,
                  norm=False, bias=1e6, pruned="rows"),
    "model of signs": Case("bert", "model", "float32", 3, 2, 953159, "signs", 1e4, heads=2, causal=False, norm=False, qk=30.0,
                           bias=1.0, mean=10.0, repeated=True, pruned="both", tied=True, plain_norm=True),
    "layer": Case("bert", "layer", "float64", 2, 2, 3, "normal", 1e4, units=2, layer=0, bias=1e6, plain_norm=True),
    "float32 overflows inside": Case("opt", "model", "float32", 1, 4, 188968, "graded", 1e8, units=8, layers=2, activation="silu",
                                     pre_norm=True, qk=3.0, bias=0.2, repeated=True, pruned="both", tied=True),
    "float32 overflows in BERT": Case("bert", "model", "float32", 3, 3, 511703, "held_by_float32", 3e9, units=8, layers=2,
                                      causal=False, bias=0.2, plain_norm=True),
    "scores that tie in their high half": Case("opt", "layer", "float32", 3, 3, 583096, "normal", 1e3, units=8, layer=0,
                                               activation="gelu", qk=30.0, bias=1e6, mean=1e8, plain_norm=True),
    "two layers": Case("bert", "model", "float64", 2, 2, 3, "normal", 1e8, units=2, layers=2, norm=False, bias=1e6),
}  # fmt: skip


@pytest.mark.parametrize("name", CANCELLED)
def test_all_digits_cancel(name):
    """A LayerNorm of two features takes 40 digits off, layer after layer: what is left is rounding, and the floor says so."""
    outcome = fuzzing.examine(CANCELLED[name])
    assert (outcome.faults, outcome.refusal) == ([], None)


def test_lanczos_finds_half_of_the_norm_at_the_least():
    """Of matrices that are hard for it: one large direction among many, and none that stands out."""
    n, worst = 256, np.inf
    for seed in range(40):
        random = np.random.default_rng(seed)
        for values in (np.r_[1.0, np.full(n - 1, 0.999)], np.linspace(1, 0, n), np.r_[1.0, np.zeros(n - 1)]):
            Q = np.linalg.qr(random.standard_normal((n, n)))[0]
            A = torch.from_numpy((Q * values) @ Q.T)

            class E:
                columns = (n, 1)
                push = staticmethod(lambda v, A=A: A @ v)
                pull = staticmethod(lambda u, A=A: A.T @ u)

            worst = min(worst, lanczos_norm(E, steps(n), seed))
    assert 1 / math.sqrt(2) <= worst <= 1


@pytest.mark.parametrize(("n", "count"), [(3, 3), (100, 9), (8192, 11), (600_000, 12)])
def test_so_many_steps_of_lanczos(n, count):
    assert abs(steps(n) - count) <= 1
    assert steps(n) == n or 1.648 * math.sqrt(n) * math.exp(-math.sqrt(0.5) * (2 * steps(n) - 1)) <= arithmetic.CHANCE


# ---- softmax that saturates


def saturating(scale: float, seed: int = 1, **changes):
    """A random OPT of width 8, all weights normal × 0.3, queries and keys times `scale`."""
    model = small_models.opt(
        hidden_size=8, word_embed_proj_dim=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=12, **changes
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            base = 1.0 if "orm.weight" in name else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3 + base)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(scale)
    return model


@pytest.mark.parametrize(
    ("scale", "seed", "kind"), [(30, 1, "attn"), (100, 3, "attn"), (60, 5, "head"), (30, 2, "layer")]
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_saturated_rows_cost_no_certainty(scale, seed, kind, dtype):
    head = 0 if kind == "head" else None
    model = tp.load_model(saturating(scale, seed), dtype=dtype)
    block = tp.block(model, kind, layer=0, head=head, token_ids=[5, 17, 2, 44, 41])
    true = extended.jacobian(block)
    with mpmath.workdps(40):
        values = np.array([float(v) for v in mpmath.svd_r(mpmath.matrix(true.tolist()), compute_uv=False)])
    S = tp.spectrum(tp.jacobian(block))
    E = extended.error(tp.jacobian(block).dense().numpy(), true)
    assert np.linalg.norm(E, 2) <= S.floor.total
    assert np.abs(S.values - values).max() <= S.floor.total
    assert S.rank.lo <= int(np.sum(values > S.rank.tau)) <= S.rank.hi


@pytest.mark.parametrize("scale", [30, 100])
def test_values_relative_to_the_largest_weight_do_not_cancel(scale):
    """With one weight all but 1, v_s − o_t taken directly is noise: the closed form errs by no more than a few roundings of
    what its blocks are made of, where automatic differentiation of the softmax errs by far more."""
    worst = 0.0
    for seed in range(6):
        block = tp.block(tp.load_model(saturating(scale, seed)), "attn", layer=0, token_ids=[5, 17, 2, 44, 41])
        J = tp.jacobian(block)
        assert J.form.closed
        E = extended.error(J.dense().numpy(), extended.jacobian(block))
        worst = max(worst, np.linalg.norm(E, 2) / torch.linalg.matrix_norm(J.dense(), 2).item())
    assert worst <= 1e-13


def test_saturated_rows_are_counted():
    block = tp.block(tp.load_model(saturating(30)), "attn", layer=0, token_ids=[5, 17, 2, 44, 41])
    a = tp.jacobian(block).form.a.amax(-1)
    expected = int(((a.float() == 1) & (a < 1)).sum())
    assert tp.spectrum(tp.jacobian(block)).evidence.saturated == expected


# ---- what float32 does not see


@pytest.mark.parametrize("kind", ["mlp", "attn"])
@pytest.mark.parametrize(("tokens", "width"), [(1, 2), (3, 4)])
@pytest.mark.parametrize("entries", ["signs", "integers", "held_by_float32"])
def test_weights_that_float32_holds(kind, tokens, width, entries):
    """Their float32 Jacobian may happen to be exact, and says nothing of the float64 one."""
    common = {"family": "opt", "dtype": "float64", "scale": 1.0, "units": 3, "layer": 0, "pre_norm": True}
    for seed in range(4):
        case = Case(kind=kind, tokens=tokens, width=width, entries=entries, seed=seed, **common)
        outcome = fuzzing.examine(case)
        assert outcome.faults == []
        assert outcome.refusal is None


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("size", [1e2, 1e6])
@pytest.mark.parametrize("tokens", [1, 3])
def test_large_biases(name, size, tokens):
    """What all keys, or all values, have in common does not count; what queries have does."""
    model = small_models.bert(hidden_size=2, num_attention_heads=1)
    with torch.no_grad():
        getattr(model.encoder.layer[0].attention.self, name).bias.fill_(size)
    block = tp.block(tp.load_model(model), "attn", layer=0, token_ids=[5, 17, 2][:tokens])
    true = extended.jacobian(block)
    J = tp.jacobian(block)
    for S in (tp.spectrum(J), tp.spectrum(J, method="topk", k=2)):
        with mpmath.workdps(40):
            values = np.array([float(v) for v in mpmath.svd_r(mpmath.matrix(true.tolist()), compute_uv=False)])
        assert np.abs(S.values - values[: len(S.values)]).max() <= S.floor.total
        assert S.rank.lo <= int(np.sum(values > S.rank.tau)) <= S.rank.hi


def test_values_with_a_large_part_in_common_are_linear():
    model = small_models.opt()
    with torch.no_grad():
        model.decoder.layers[1].self_attn.v_proj.bias.fill_(1e4)
    J = tp.jacobian(tp.block(tp.load_model(model, dtype="float32"), "attn", layer=1, token_ids=[5, 17, 2, 88]))
    assert tp.spectrum(J, method="topk", k=3).values[0] > 0
