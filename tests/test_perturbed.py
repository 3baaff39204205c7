"""The floor of functions of users, and of blocks with pieces whose formulas are not known: computations perturbed."""

from __future__ import annotations

import fuzzing
import numpy as np
import pytest
import torch
from fuzz_cases import Case
from torch import nn

import tightpass as tp
from tightpass.jacobian.perturbed import Perturbing, moved, rounding

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
    assert not outcome.is_weak


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
