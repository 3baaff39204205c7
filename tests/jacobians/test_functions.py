"""Functions that were handed in: what cannot be followed is named, and nothing else is blamed for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
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


class Memoised:
    kept = None

    def __call__(self, x):
        if self.kept is None:
            self.kept = x * 2
        return self.kept


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


class Cached:
    """As a model that keeps keys and values of the call before."""

    seen = ()

    def __call__(self, x):
        self.seen = (*self.seen, x)
        return torch.stack(self.seen).sum(0) + x


HALF = torch.eye(4, dtype=torch.float16)
WEIGHT = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))


def without_gradient(x):
    with torch.no_grad():
        return x * 3


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (Counter(), "different values at the same x"),
        (lambda x: x + torch.randn(x.shape, dtype=x.dtype), "different values at the same x"),
        (nn.Dropout(0.5).train(), "different values at the same x"),
        (lambda x: x.add_(1), r"changes its argument in place; give lambda x: fn\(x.clone\(\)\)"),
        (lambda x: x.detach() * 2, "derivative is zero though it moves"),
        (torch.ones_like, "its result does not depend on x: no operation that has a derivative leads"),
        (lambda x: WEIGHT * 2, "its result does not depend on x"),
        (lambda x: nn.functional.one_hot(x.argmax(-1), 4).double(), "its result does not depend on x"),
        (nn.BatchNorm1d(4).double().train(), "it has a state, which it changes"),
        (Cached(), "different values at the same x"),
        (without_gradient, "derivative is zero though it moves"),
        (lambda x: (x.float() ** 2).double(), r"lower precision inside .* give tp.genuine\(fn\)"),
        (nn.Linear(4, 4), r"weights are of another precision than x: call .double\(\)"),
        (lambda x: torch.softmax(x, -1, dtype=torch.float32).double(), "lower precision inside"),
        (Wrong.apply, "backward pass is wrong"),
        (lambda x: torch.sqrt(x - x), "not finite"),
        (lambda x: x.norm(dim=-1, keepdim=True) * 0 / 0, "not finite"),
        (Old.apply, "needs forward"),
        (Doubled.apply, "needs a jvp"),
        (lambda x: (x, x), r"return one .* got tuple; .*lambda x: fn\(x\)\[0\]"),
        (lambda x: x[None], r"got shape \(1, 3, 4\), .*take the batch off: lambda x: fn\(x\)\[0\]"),
        (lambda x: x[:, :, None, None], r"lambda x: fn\(x\).reshape\(len\(x\), -1\)"),
        (lambda x: torch.einsum("btd,btd->btd", x, x), r"takes a batch, x\[None\], .*lambda x: fn\(x\[None\]\)\[0\]"),
        (lambda x: x.long(), "has no derivative: it returns torch.int64"),
        (lambda x: x.to_sparse(), r"plain tensor on cpu, .* got a sparse one .*to_dense\(\)"),
        (lambda x: x.to("meta"), "plain tensor on cpu, where x is, got a strided one on meta"),
        (lambda x: torch.from_numpy(np.tanh(x.detach().numpy())), "leaves torch"),
        (Memoised(), "what an earlier call made"),
        (lambda x: checkpoint(torch.tanh, x, use_reentrant=False), "checkpoint inside it"),
        (
            lambda x: torch.tanh(x.half()).double(),
            r"\(float16 within float64\); give tp.genuine\(fn\), which lifts such casts$",
        ),
        (
            lambda x: torch.tanh(x.half() @ HALF).double(),
            r"\(float16 within float64\); give a function that computes in float64$",
        ),
        (lambda x: x.type("torch.FloatTensor").exp().double(), r"\(float32 within float64\); give x in float32$"),
        (lambda x: None, "return one .* got NoneType"),
        (lambda x: [x], "return one .* got list"),
        (lambda x: x.numpy(), "leaves torch"),
        (lambda x: x.sum(), "must return a .tokens, d. tensor"),
        (lambda x: x.float(), "must return a .tokens, d. tensor .*give x in torch.float32"),
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


# ---- what is mended by itself, or by one call


def attention(x):
    return nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True)[0]


def written_out(x):
    scores = (x @ x.T / x.shape[-1] ** 0.5).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ x


def test_fused_attention_is_differentiable_by_itself():
    exact = torch.func.jacrev(written_out)(X).reshape(12, 12)
    J = tp.jacobian(attention, X, tp.BlockLowerTriangular())
    assert torch.allclose(J.dense(), exact, rtol=0, atol=1e-14)
    assert torch.allclose(J @ torch.eye(12, dtype=torch.float64), exact, rtol=0, atol=1e-14)


def test_fused_layers_of_torch_are_too():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).double().eval().requires_grad_(False)
    J = tp.jacobian(lambda x: layer(x[None])[0], X)
    rows = torch.autograd.functional.jacobian(lambda x: layer.train(False)(x[None])[0], X)
    assert torch.allclose(J @ torch.eye(12, dtype=torch.float64), rows.reshape(12, 12), rtol=0, atol=1e-13)
    assert torch.backends.mha.get_fastpath_enabled()


def single(x):
    """As norms of many models."""
    wide = x.to(torch.float32)
    weights = nn.functional.softmax(x, -1, dtype=torch.float32)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True))).to(x.dtype) * weights.type_as(x)


def double(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)) * x.softmax(-1)


def test_genuine_lifts_casts():
    exact = torch.func.jacrev(double)(X).reshape(12, 12)
    with pytest.raises(InputError, match="lower precision inside"):
        tp.jacobian(single, X)
    J = tp.jacobian(tp.genuine(single), X)
    assert torch.allclose(J.dense(), exact, rtol=0, atol=1e-14)
    assert torch.equal(tp.genuine(single)(X.float()), single(X.float()))
    with pytest.raises(InputError, match="genuine expects a function"):
        tp.genuine(3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cast", [torch.Tensor.half, torch.Tensor.bfloat16, lambda x: x.to(torch.bfloat16)])
def test_genuine_lifts_casts_to_half_precision(dtype, cast):
    x = X.to(dtype)

    def half(x):
        return torch.tanh(cast(x) * cast(WEIGHT.to(dtype))).to(dtype)

    with pytest.raises(InputError, match=r"lower precision inside .* give tp.genuine\(fn\), which lifts such casts$"):
        tp.jacobian(half, x)
    exact = torch.func.jacrev(torch.tanh)(x).reshape(12, 12)
    assert torch.allclose(tp.jacobian(tp.genuine(half), x).dense(), exact, rtol=0, atol=16 * torch.finfo(dtype).eps)


# ---- how surely its arithmetic is known


class Sine(torch.autograd.Function):
    """By NumPy, where torch sees nothing."""

    @staticmethod
    def forward(x):
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        return g * torch.cos(ctx.saved_tensors[0])

    @staticmethod
    def jvp(ctx, t):
        return t * torch.cos(ctx.saved_tensors[0])

    @staticmethod
    def vmap(info, in_dims, x):
        return Sine.apply(x), in_dims[0]


def in_one_precision(x):
    if x.dtype != torch.float64:
        raise TypeError("float64 alone")
    return Sine.apply(x)


@pytest.mark.parametrize(
    "fn", [lambda x: x.softmax(-1) * x, nn.Linear(4, 4), attention], ids=["softmax", "module", "attention"]
)
@pytest.mark.parametrize("method", [{}, {"method": "topk", "k": 5}], ids=["exact", "topk"])
def test_float32_is_measured_in_float64(fn, method):
    """The bound is no less than the error against float64, and no less than what perturbed operations move."""
    x = X.float()
    S = tp.spectrum(tp.jacobian(fn, x), **method)
    part = S.floor.parts[0]
    assert "and J as stored against J of the same function in float64" in part.method
    assert part.confidence == S.rank.confidence == "calibrated"
    wide = nn.Linear(4, 4).double() if isinstance(fn, nn.Module) else fn
    if isinstance(fn, nn.Module):
        wide.load_state_dict(fn.state_dict())
    exact = torch.func.jacrev(wide)(x.double()).detach().reshape(12, 12)
    J = tp.jacobian(fn, x)
    found = J @ torch.eye(12) if method else J.dense()  # products are by forward mode, blocks by reverse
    true = float(torch.linalg.matrix_norm(found.double() - exact, 2))
    assert true <= part.bound <= 20 * true + 20 * 2.0**-23 * float(torch.linalg.matrix_norm(exact))


def test_where_float64_is_not_to_be_had_it_is_estimated():
    W = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    part = tp.spectrum(tp.jacobian(lambda x: x @ W, X.float())).floor.parts[0]
    assert (part.method[:9], part.confidence) == ("estimated", "calibrated")


@pytest.mark.parametrize("method", [{}, {"method": "topk", "k": 5}], ids=["exact", "topk"])
def test_what_is_computed_out_of_sight_is_said(method):
    seen, alone = (tp.spectrum(tp.jacobian(fn, X), **method) for fn in (Sine.apply, in_one_precision))
    part = seen.floor.parts[0]
    assert part.method.endswith("times 2⁻²⁹ and 4, since some of it is computed outside of torch")
    assert part.confidence == "calibrated"
    part = alone.floor.parts[0]
    assert part.method.startswith("assumed: 16·eps·√N·‖J‖_F, since some of it is computed outside of torch")
    assert part.confidence == alone.rank.confidence == "assumed"
    assert part.bound >= 16 * 2.2e-16 * 12**0.5 * float(np.linalg.norm(seen.values))
    assert "calibrated" in tp.spectrum(tp.jacobian(torch.sin, X), **method).rank.words


# ---- structure


@pytest.mark.parametrize("structure", [tp.BlockDiagonal(), tp.BlockLowerTriangular(), tp.Dense()])
def test_a_claimed_structure_is_used_where_it_holds(structure):
    """Of a map of each token, of those before it, and of all: every claim that is at least as wide holds, and no other."""
    functions = {
        "BlockDiagonal": torch.tanh,
        "BlockLowerTriangular": lambda x: x.cumsum(0) ** 2,
        "Dense": lambda x: x @ x.T @ x,
    }
    width = {name: i for i, name in enumerate(functions)}
    for name, fn in functions.items():
        if width[name] > width[structure.name]:
            with pytest.raises(tp.VerificationError, match=rf"claimed {structure.name}, .* use structure=Dense"):
                tp.jacobian(fn, X, structure=structure)
        else:
            J = tp.jacobian(fn, X, structure=structure)
            assert torch.allclose(J.dense(), torch.func.jacrev(fn)(X).reshape(12, 12), rtol=0, atol=1e-13)
            assert sum(len(panel.rows) for panel in J.panels()) == structure.count(3, 3)
