"""The floor of functions of users, and of blocks with pieces whose formulas are not known: computations perturbed."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from oracles import fuzzing
from oracles.fuzz_cases import Case
from torch import nn

import tightpass as tp
from tightpass.jacobians.perturbed import moved
from tightpass.jacobians.perturbing import Perturbing, rounding

EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23}


def x_of(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


CANCELLING = {
    "tanh at 1": Case("function", "causal", "float64", 1, 2, 789225, "graded", 3.0),
    "all zero": Case("function", "perceptron", "float32", 1, 1, 523008, "normal", 1e4),
    "by products": Case("function", "mixing", "float64", 7, 1, 283094, "graded", 3.0, method="topk"),
    "zero but for rounding": Case("function", "causal", "float32", 5, 1, 163476, "sparse", 1e4, structure="BlockLowerTriangular"),
    "signs": Case("function", "causal", "float32", 2, 6, 740375, "signs", 3.0, mean=10.0, structure="BlockLowerTriangular"),
    "wide": Case("function", "mixing", "float64", 1, 7, 172434, "normal", 1.0, mean=10.0),
    "integers": Case("function", "causal", "float32", 4, 4, 733889, "integers", 3.0, mean=1e6, structure="BlockLowerTriangular"),
    "graded": Case("function", "perceptron", "float64", 2, 4, 881091, "graded", 0.3, mean=1e6, structure="BlockDiagonal"),
    "gelu's tail": Case("function", "gelu", "float64", 2, 3, 1, "normal", 30.0),
    "softmax of one": Case("function", "softmax", "float64", 2, 3, 5, "normal", 10.0),
    "underflow of exp": Case("function", "bell", "float32", 2, 2, 3, "normal", 30.0),
    "underflow of softmax": Case("function", "softmax", "float32", 2, 3, 5, "normal", 1e4),
    "underflow of a gate": Case("function", "gated", "float32", 2, 3, 5, "normal", 1e4),
    "norm of a constant": Case("function", "normed", "float32", 2, 3, 7, "normal", 1.0, mean=1e4),
    "norm of a norm": Case("function", "two norms", "float64", 2, 3, 7, "normal", 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", CANCELLING)
def test_functions_that_cancel(name):
    """16·eps·‖J‖_F, which stood here, was up to 10⁹ times too small, and 0 where torch's derivative is 0."""
    outcome = fuzzing.examine(CANCELLING[name])
    assert (outcome.faults, outcome.refusal) == ([], None)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (20, 15)])
def test_a_plain_function_moves_by_a_few_roundings(dtype, shape):
    A = x_of(shape[1], shape[1], dtype=dtype, seed=1)
    J = tp.jacobian(lambda x: torch.tanh(x) @ A, x_of(*shape, dtype=dtype))
    assert 0.1 <= moved(J.differentiated) / (EPS[dtype] * torch.linalg.matrix_norm(J.dense())) <= 40


def test_what_is_exact_does_not_move():
    for f in (torch.relu, lambda x: x.flip(0), lambda x: x.roll(1, 0), lambda x: x[1:].clone()):
        J = tp.jacobian(f, x_of(4, 3))
        assert moved(J.differentiated) == 0
        assert tp.spectrum(J).floor.parts[0].bound == 0


def test_operations_in_place():
    def f(x: torch.Tensor) -> torch.Tensor:
        y = x * 3
        y.add_(x.exp())
        y[0].mul_(0.1)
        return y

    x, J = x_of(3, 4), tp.jacobian(f, x_of(3, 4))
    plain = torch.diag((torch.where(torch.arange(3)[:, None] == 0, 0.1, 1.0) * (3 + x.exp())).flatten())
    assert torch.allclose(J.dense(), plain)
    assert 0.1 <= moved(J.differentiated) / (EPS[torch.float64] * torch.linalg.matrix_norm(plain)) <= 10


def test_complex_numbers_inside():
    filtered = x_of(5)
    J = tp.jacobian(lambda x: torch.fft.ifft(torch.fft.fft(x) * filtered).real, x_of(2, 5))
    assert 0.1 <= moved(J.differentiated) / (EPS[torch.float64] * torch.linalg.matrix_norm(J.dense())) <= 20


def test_the_same_each_time_and_nothing_stays_perturbed():
    f, x = lambda x: torch.sin(x) * x.exp(), x_of(3, 4)
    J = tp.jacobian(f, x)
    y = f(x)
    assert moved(J.differentiated) == moved(J.differentiated) > 0
    assert torch.equal(f(x), y)
    with Perturbing(0):
        assert not torch.equal(f(x), y)


def test_random_numbers_of_the_caller_are_left_alone():
    J = tp.jacobian(torch.tanh, x_of(3, 4))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    moved(J.differentiated)
    assert torch.equal(torch.rand(3), expected)


def test_units_within_rounding_of_zero_are_in_the_floor():
    """x·(1, −1 + eps) rounds either way: the perturbed computations see both sides of relu."""
    near = lambda x: torch.relu((x[:, :1] * 0.1 + x[:, :1] * 0.2 - x[:, :1] * 0.3) * 1e10) + x[:, :1]  # noqa: E731
    J = tp.jacobian(near, torch.ones(2, 1, dtype=torch.float64))
    assert moved(J.differentiated) > 1e-8


def test_many_rows_by_combinations_of_them():
    A = x_of(40, 40, seed=3)
    J = tp.jacobian(lambda x: torch.tanh(x @ A), x_of(20, 40))
    size = moved(J.differentiated) / (EPS[torch.float64] * torch.linalg.matrix_norm(J.dense()))
    assert 0.3 <= size <= 30
    true = torch.block_diag(*((1 - torch.tanh(row @ A) ** 2)[:, None] * A.T for row in x_of(20, 40)))
    assert np.linalg.norm(J.dense() - true, 2) <= 2 * moved(J.differentiated)


# ---- what checks may blame on rounding: float32 against float64

X, A = x_of(6, 8, dtype=torch.float32), x_of(8, 8, dtype=torch.float32, seed=1)
FUNCTIONS = {
    "plain": lambda x: x @ A.to(x),
    "a large part in common": lambda x: (x @ A.to(x) + 1e4) - 1e4,
    "terms that cancel": lambda x: torch.cat([x, x], -1) @ torch.cat([A, -(A + 1e-4)]).to(x),
    "LayerNorm of a large mean": lambda x: nn.functional.layer_norm(x + 1e3, (8,)),
    "softmax of large scores": lambda x: (10 * x @ A.to(x)).softmax(-1),
    "in place": lambda x: (x @ A.to(x)).add_(1e4).sub_(1e4),
}


def slope(f):
    return lambda x: torch.func.jvp(f, (x,), (torch.flip(x, (0,)),))[1]


def gradient(f):
    return lambda x: torch.func.vjp(f, x)[1](torch.flip(x @ A.to(x), (0,)))[0]


@pytest.mark.parametrize("of", [lambda f: f, slope, gradient], ids=["value", "jvp", "vjp"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_measured_rounding_is_that_of_the_precision(name, of):
    f = of(FUNCTIONS[name])
    measured = rounding(lambda: f(X), torch.float32)
    true = float((f(X).double() - f(X.double())).norm())
    assert 0.3 * true <= measured <= 100 * true + 1e-6 * float(f(X).norm())
    assert rounding(lambda: f(X), torch.float32) == measured


def test_a_lower_precision_is_not_taken_for_rounding():
    wide = X.double()
    f = lambda x: torch.tanh(x.float()).double() @ A.double()  # noqa: E731
    true = float((f(wide) - torch.tanh(wide) @ A.double()).norm())
    assert rounding(lambda: f(wide), torch.float64) < 1e-6 * true


def test_a_mask_stays_a_mask():
    lowest = torch.finfo(torch.float32).min
    mask = torch.triu(torch.full((6, 6), lowest), 1)
    weights = (X @ X.T + mask).softmax(-1)
    assert float(weights.triu(1).sum()) == 0
    assert rounding(lambda: (X @ X.T + mask).softmax(-1), torch.float32) < 1e-4


# ---- what one rounding of arguments and results does not show


def floor_of(f, x) -> float:
    return tp.spectrum(tp.jacobian(f, x)).floor.total


def of_gelu_tanh(z: float) -> float:
    """Its slope, in 60 digits."""
    with mpmath.workdps(60):
        c, z = mpmath.mpf(math.sqrt(2 / math.pi)), mpmath.mpf(z)
        inner = c * (z + mpmath.mpf(0.044715) * z**3)
        slope = c * (1 + 3 * mpmath.mpf(0.044715) * z**2)
        return float((1 + mpmath.tanh(inner)) / 2 + z * slope * mpmath.sech(inner) ** 2 / 2)


@pytest.mark.parametrize(("z", "dtype"), [(-7.2, torch.float64), (-5.15, torch.float32), (-3.0, torch.float32)])
def test_gelu_by_tanh_in_its_tail(z, dtype):
    x = torch.tensor([[z]], dtype=dtype)
    S = tp.spectrum(tp.jacobian(lambda x: nn.functional.gelu(x, approximate="tanh"), x))
    assert abs(S.values[0] - abs(of_gelu_tanh(float(x)))) <= S.floor.total


def test_gelu_by_erf_in_its_tail():
    x = torch.tensor([[-8.3]], dtype=torch.float64)
    with mpmath.workdps(60):
        z = mpmath.mpf(-8.3)
        true = float(abs(mpmath.ncdf(z) + z * mpmath.npdf(z)))
    S = tp.spectrum(tp.jacobian(nn.functional.gelu, x))
    assert abs(S.values[0] - true) <= S.floor.total
    assert S.floor.total >= 1e-17


CONSTANTS = {
    "subtracted": (lambda x: (1e4 * (x - 0.1)) ** 2, [[0.1, 0.1]]),
    "a base": (lambda x: torch.pow(1.1, x), [[300.0, 400.0]]),
    "multiplied": (lambda x: torch.sin(x * 1000.1), [[700.0, 800.0]]),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_that_float32_does_not_hold(name):
    """J of the same function in float64, where they are held far better, at the same x."""
    f, entries = CONSTANTS[name]
    x = torch.tensor(entries, dtype=torch.float32)
    S = tp.spectrum(tp.jacobian(f, x))
    true = torch.linalg.svdvals(tp.jacobian(f, x.double()).dense()).numpy()
    assert np.abs(S.values - true).max() <= S.floor.total


@pytest.mark.parametrize("scale", [1e-25, 1e-22, 1.0])
def test_norms_of_tiny_vectors(scale):
    x = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float32) * scale
    functions = (lambda x: x.norm(dim=-1, keepdim=True), lambda x: x / (scale + x.norm(dim=-1, keepdim=True)))
    for f in functions[: 1 if scale == 1e-25 else 2]:  # the other is refused there: its derivative leaves the range
        S = tp.spectrum(tp.jacobian(f, x))
        true = torch.linalg.svdvals(tp.jacobian(f, x.double()).dense()).numpy()
        assert np.abs(S.values - true).max() <= S.floor.total


def test_casts_round():
    A = x_of(5, 5, seed=4)
    f = lambda x: torch.tanh(x) @ A + 1e-4 * (x.float().double()) ** 2  # noqa: E731
    g = lambda x: torch.tanh(x) @ A + 1e-4 * x**2  # noqa: E731
    J, right = tp.jacobian(f, x_of(4, 5)), tp.jacobian(g, x_of(4, 5))
    assert torch.linalg.matrix_norm(J.dense() - right.dense(), 2) <= floor_of(f, x_of(4, 5))
    B = torch.full((40, 40), 1.00000005, dtype=torch.float64)
    x = x_of(3, 40, dtype=torch.float32)
    S = tp.spectrum(tp.jacobian(lambda x: (x.double() @ B).float(), x))
    assert abs(float(S.values[0]) - 40 * 1.00000005) <= S.floor.total


positions = torch.arange(4, dtype=torch.float64)
EXACT_MASKS = {
    "amax": lambda x: x.amax(-1, keepdim=True),
    "max": lambda x: x.max().reshape(1, 1) * 1.0,
    "softmax by hand": lambda x: (x - x.amax(-1, keepdim=True)).exp() / (x - x.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True),
    "norm of the largest": lambda x: x / x.norm(p=float("inf"), dim=-1, keepdim=True),
    "causal": lambda x: (positions[:, None] >= positions[None]).to(x) @ x,
    "by sums": lambda x: torch.where(torch.ones(4, 4).to(x).cumsum(0) >= torch.ones(4, 4).to(x).cumsum(1), 1.0, 0.0).to(x) @ x,
    "window": lambda x: ((positions[:, None] - positions[None]).abs() <= 1).to(x) @ x,
    "best two": lambda x: x * (x >= x.topk(2, -1).values[:, -1:]),
    "not a number": lambda x: torch.nan_to_num(torch.sin(x)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("name", EXACT_MASKS)
def test_comparisons_and_small_whole_numbers_are_exact(name, dtype):
    S = tp.spectrum(tp.jacobian(EXACT_MASKS[name], x_of(4, 5, dtype=dtype)))
    assert S.floor.total <= 100 * EPS[dtype] * float(S.values[0])
    assert S.rank.flag == "certified"


def test_what_is_whole_by_rounding_is_perturbed():
    """tanh is 1 in float64; 1 − tanh² is 0 for whole numbers, and not of these."""
    S = tp.spectrum(tp.jacobian(torch.tanh, torch.tensor([[25.0]], dtype=torch.float64)))
    assert S.floor.total >= 1e-16


def test_a_leak_that_the_probe_lets_pass_is_in_the_floor():
    x = torch.ones(64, 1, dtype=torch.float64)
    leaks = lambda x: x * 1.5 + 4 * 2.2e-16 / 8 / 1.5 * x.sum(0)  # noqa: E731
    S = tp.spectrum(tp.jacobian(leaks, x, structure=tp.BlockDiagonal()))
    true = torch.linalg.svdvals(1.5 * torch.eye(64, dtype=torch.float64) + 4 * 2.2e-16 / 8 / 1.5)
    assert np.abs(S.values - true.numpy()).max() <= S.floor.total


class Steep(torch.autograd.Function):
    """sin, whose two derivatives are wrong alike."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.sin(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 1.01 * grad * torch.cos(ctx.saved_tensors[0])

    @staticmethod
    def jvp(ctx, tangent):
        return 1.01 * tangent * torch.cos(ctx.saved_tensors[0])


def test_what_differences_say_of_a_derivative_is_among_the_checks():
    checks = tp.spectrum(tp.jacobian(torch.sin, x_of(3, 4))).checks
    assert any("finite differences along one direction confirm the derivative to 1e-" in check for check in checks)
    checks = tp.spectrum(tp.jacobian(Steep.apply, x_of(3, 4))).checks
    assert any("do not confirm the derivative (apart by 1e-02 of it)" in check for check in checks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_floor_takes_twice_what_perturbation_moves(dtype):
    """As docs/trust.md says: of random functions the true error reached 0.79 of that once."""
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(3), dtype=dtype)
    J = tp.jacobian(lambda x: torch.tanh(x @ x.T @ x), x)
    assert tp.spectrum(J).floor.parts[0].bound >= 2 * moved(J.differentiated) > 0
