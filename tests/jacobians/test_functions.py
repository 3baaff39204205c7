"""Functions that were handed in: what cannot be followed is named, and nothing else is blamed for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

import tightpass as tp
from tightpass.errors import InputError

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Counter:
    calls = 0

    def __call__(self, x):
        self.calls += 1
        return x * self.calls


class Doubled(torch.autograd.Function):
    """x² of which only reverse mode is known."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class Wrong(Doubled):
    """Its jvp is right, its backward is not."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] * g

    @staticmethod
    def jvp(ctx, t):
        return 2 * ctx.saved_tensors[0] * t


class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


def without_gradient(x):
    with torch.no_grad():
        return x * 3


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (Counter(), "different values at the same x"),
        (lambda x: x + torch.randn(x.shape, dtype=x.dtype), "different values at the same x"),
        (nn.Dropout(0.5).train(), "different values at the same x"),
        (lambda x: x.add_(1), "different values|cannot be differentiated"),
        (lambda x: x.detach() * 2, "derivative is zero though it moves"),
        (without_gradient, "derivative is zero though it moves"),
        (lambda x: (x.float() ** 2).double(), "lower precision inside"),
        (lambda x: torch.softmax(x, -1, dtype=torch.float32).double(), "lower precision inside"),
        (Wrong.apply, "backward pass is wrong"),
        (lambda x: torch.sqrt(x - x), "not finite"),
        (lambda x: x.norm(dim=-1, keepdim=True) * 0 / 0, "not finite"),
        (Old.apply, "needs forward"),
        (Doubled.apply, "needs a jvp"),
        (lambda x: (x, x), "return one .* got tuple"),
        (lambda x: None, "return one .* got NoneType"),
        (lambda x: [x], "return one .* got list"),
        (lambda x: x.numpy(), "cannot be differentiated|return one"),
        (lambda x: x.sum(), "must return a .tokens, d. tensor"),
        (lambda x: x.float(), "must return a .tokens, d. tensor"),
        (lambda x: x[:0], "must return a .tokens, d. tensor"),
        (lambda x: x @ x, "cannot be differentiated"),
        (lambda x: {}[0], "cannot be differentiated at x: KeyError"),
    ],
)
def test_what_cannot_be_followed_is_named(fn, message):
    with pytest.raises(InputError, match=message):
        tp.spectrum(tp.jacobian(fn, X.clone()))


W = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def by_frozen_spread(x):
    with torch.no_grad():
        spread = x.std(-1, keepdim=True)
    return x / spread


PARTS_LOST = {
    "no_grad": by_frozen_spread,
    "detach": lambda x: x / x.norm(dim=-1, keepdim=True).detach(),
    "detach, of a sum": lambda x: x @ W + (x**2).detach(),
    "detach, of a token": lambda x: torch.cat([x[:1].detach() * 2, x[1:] * 3]),
    "straight through": lambda x: x + (x.round() - x).detach(),
    "data": lambda x: x * x.data,
    "item": lambda x: x * float(x.detach().sum()),
    "inference_mode": lambda x: x + torch.inference_mode()(lambda z: z**2)(x),
}


@pytest.mark.parametrize("fn", PARTS_LOST.values(), ids=PARTS_LOST)
def test_a_part_without_derivative_is_said(fn):
    with pytest.raises(InputError, match="a part of its derivative is lost: detach"):
        tp.jacobian(fn, X.clone())


def shifted_softmax(x):
    weights = torch.exp(x - x.max(-1, keepdim=True).values.detach())
    return weights / weights.sum(-1, keepdim=True)


MEAN = X.mean(-1, keepdim=True)


def without_the_first(z):
    return z - MEAN


@pytest.mark.parametrize(
    "fn",
    [shifted_softmax, without_the_first, lambda x: x[:, x.detach()[0].argsort()] * 2],
    ids=["max", "outside", "order"],
)
def test_what_is_held_fixed_and_does_not_matter_is_no_loss(fn):
    assert torch.allclose(tp.jacobian(fn, X).dense(), torch.func.jacrev(fn)(X).reshape(12, 12), rtol=0, atol=1e-14)


CONFIG = LlamaConfig(hidden_size=8, intermediate_size=14, num_attention_heads=2, num_hidden_layers=1)


def test_modules_of_llama_work_or_are_diagnosed():
    torch.manual_seed(0)
    x = torch.randn(3, 8, dtype=torch.float64)
    mlp = LlamaMLP(CONFIG).double()
    exact = torch.linalg.svdvals(torch.func.jacrev(mlp)(x).reshape(24, 24)).detach().numpy()
    assert np.allclose(tp.spectrum(tp.jacobian(mlp, x)).values, exact, rtol=0, atol=1e-13)
    norm = LlamaRMSNorm(8).double()
    with pytest.raises(InputError, match="lower precision inside"):
        tp.jacobian(norm, x)
    S = tp.spectrum(tp.jacobian(norm.float(), x.float(), tp.BlockDiagonal()))
    assert S.values.dtype == np.float32


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_a_float32_product_out_of_squares_range_is_no_fault(scale):
    """‖Jv‖² leaves float32, Jv does not."""
    x = torch.ones(2, 3)
    J = tp.jacobian(lambda x: x * scale, x, tp.BlockDiagonal())
    assert np.allclose(tp.spectrum(J).values, scale, rtol=1e-6)


@pytest.mark.parametrize(
    "x",
    [torch.ones(1, 4), torch.ones(4, 3).T, torch.ones(3, 4, requires_grad=True), torch.ones(6, 4)[::2]],
    ids=["one token", "transposed", "requires_grad", "strided"],
)
def test_points_of_every_layout(x):
    J = tp.jacobian(torch.tanh, x)
    assert J.dense().shape == (x.numel(), x.numel())


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (torch.relu, "12 entries of relu"),
        (torch.abs, "12 entries of abs"),
        (lambda x: x.clamp(0, 1), "12 entries of clamp"),
        (torch.tanh, "were not checked"),
    ],
)
def test_a_derivative_that_jumps_at_x_is_said(fn, said):
    checks = tp.spectrum(tp.jacobian(fn, torch.zeros(3, 4, dtype=torch.float64))).checks
    assert any("one-sided derivatives" in check and said in check for check in checks)


def test_a_transposed_jacobian_is_an_operand():
    W = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    J = tp.jacobian(lambda x: x @ W.T, torch.ones(2, 7, dtype=torch.float64))
    found = tp.svds(J.T, 3)
    assert np.allclose(found.S, np.linalg.svd(J.dense().numpy(), compute_uv=False)[:3])
    assert found.U.shape == (14, 3)
    v = np.ones(10)
    assert np.allclose(J.T.matvec(v), J.dense().numpy().T @ v)


@pytest.mark.parametrize(
    "given", [{"method": "topk", "k": "a"}, {"method": "topk", "k": 1.5}, {"vectors": "x"}, {"vectors": 1.5}]
)
def test_counts_are_whole_numbers(given):
    with pytest.raises(tp.InputError, match="whole number"):
        tp.spectrum(tp.jacobian(lambda x: 2 * x, torch.ones(2, 3, dtype=torch.float64)), **given)


@pytest.mark.parametrize("structure", ["Dense", 3, tp.Dense])
def test_a_structure_is_one_of_three(structure):
    with pytest.raises(tp.InputError, match="structure must be"):
        tp.jacobian(lambda x: 2 * x, torch.ones(2, 3, dtype=torch.float64), structure=structure)
