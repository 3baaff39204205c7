"""The measured effect of rounding, against the true one: float32 against float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tightpass.models.stochastic import rounding


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


X, A = drawn(6, 8), drawn(8, 8, seed=1)
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
