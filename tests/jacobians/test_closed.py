"""Closed forms against automatic differentiation of the same blocks, in float64 and on hostile inputs."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import fuzz_cases, fuzzing, small_models
from oracles.small_models import HF_MODELS
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import tightpass as tp
from tightpass.errors import VerificationError
from tightpass.evidence.arithmetic import Difference, lanczos_norm
from tightpass.jacobians.forms import closed
from tightpass.jacobians.forms.attention import ClosedAttention
from tightpass.jacobians.forms.closed import closed_form
from tightpass.jacobians.forms.heads import Heads
from tightpass.jacobians.forms.mlp import Branch, ClosedMLP, slope_of
from tightpass.jacobians.forms.norm import ClosedNorm, norm_at
from tightpass.jacobians.forms.turning import turning
from tightpass.jacobians.twice.block import twice
from tightpass.models.formulas import Rotation
from tightpass.spectra import batched
from tightpass.spectra.batched import factored_values
from tightpass.structure import BlockLowerTriangular, Dense

IDS = [5, 17, 2, 88, 41, 7, 60]


def blocks(name, kind, **options):
    model = tp.load_model(HF_MODELS[name])
    head = {"head": 1} if kind == "head" else {}
    return tp.block(model, kind, layer=1, token_ids=IDS, **head, **options)


def autodiff(block):
    """The same Jacobian by autodiff: a plain function has no closed form."""
    return tp.jacobian(block.function(), block.x)


VARIANTS = [{}, {"norm": False}, {"residual": True}]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kind", ["mlp", "attn", "head"])
@pytest.mark.parametrize("name", HF_MODELS)
def test_closed_forms_are_taken_and_equal_autodiff(name, kind, variant):
    block = blocks(name, kind, **variant)
    J, other = tp.jacobian(block), autodiff(block)
    assert isinstance(J.form, ClosedMLP if kind == "mlp" else ClosedAttention)
    assert J.route.startswith("closed form")
    assert other.route == "automatic differentiation"
    dense = other.dense()
    scale = float(torch.linalg.matrix_norm(dense, 2))
    assert float((J.dense() - dense).abs().max()) <= 1e-13 * scale
    X = torch.randn(J.shape[1], 5, dtype=J.dtype, generator=torch.Generator().manual_seed(0))
    assert float((J @ X - dense @ X).norm()) <= 1e-13 * scale * float(X.norm())
    assert float((J.T @ X - dense.T @ X).norm()) <= 1e-13 * scale * float(X.norm())
    assert J.energy() == pytest.approx(float(dense.square().sum()), rel=1e-11)


def test_many_tokens_take_the_small_matrices():
    """With more tokens than d_head the query's term goes through d_head × d_head matrices, and rows are split."""
    torch.manual_seed(0)
    T, d, H, dh = 70, 12, 3, 4
    form, function, x = synthetic_attention(T, d, H, dh, causal=True)
    J = tp.jacobian(function, x, BlockLowerTriangular()).dense()
    written = form.write(range(T), torch.zeros(T, T, d, d, dtype=x.dtype)).permute(0, 2, 1, 3).reshape(J.shape)
    assert float((written - J).abs().max()) <= 1e-13 * float(J.abs().max())
    V = torch.randn(3, T, d, dtype=x.dtype)
    expected = (J @ V.reshape(3, -1).T).T.reshape(V.shape)
    assert float((form.push(V) - expected).abs().max()) <= 1e-13 * float(expected.abs().max())
    expected = (J.T @ V.reshape(3, -1).T).T.reshape(V.shape)
    assert float((form.pull(V) - expected).abs().max()) <= 1e-13 * float(expected.abs().max())
    assert form.energy() == pytest.approx(float(J.square().sum()), rel=1e-12)


def synthetic_attention(T, d, H, dh, causal, groups=1, norm=None, rotation=None):
    """An attention written out by hand, with `groups` query heads to a key and a value; its form, map and x."""
    g = torch.Generator().manual_seed(T)

    def array(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x = array(T, d)
    Wq, Wk, Wv = array(H, dh, d), array(H // groups, dh, d), array(H // groups, dh, d)
    bq, bk, bv, Wo = array(H, 1, dh), array(H // groups, 1, dh), array(H // groups, 1, dh), array(d, H, dh)

    def heads(h):
        q, k, v = (h @ W.mT + b for W, b in ((Wq, bq), (Wk, bk), (Wv, bv)))
        if rotation is not None:
            q, k = turned(q, rotation), turned(k, rotation)
        return q, k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)

    def function(at):
        h = at if norm is None else norm(at)
        q, k, v = heads(h)
        scores = 0.3 * q @ k.mT
        if causal:
            scores = scores + torch.full((T, T), -torch.inf, dtype=x.dtype).triu(1)
        return torch.einsum("oHi,Hti->to", Wo, scores.softmax(-1) @ v)

    at = norm_at(norm, x)
    folded = [W if at is None else at.fold(W) for W in (Wq, Wk, Wv)]
    q, k, v = heads(x if norm is None else norm(x))
    repeated = [folded[0], *(W.repeat_interleave(groups, 0) for W in folded[1:])]
    turn = turning(None, rotation)
    return ClosedAttention(Heads(*repeated, Wo, q, k, v, 0.3, turn, turn), at, causal), function, x


def turned(x, rotation):
    """Rotary positions as Llama's code in transformers applies them, on the first entries of (heads, T, d_head)."""
    r = rotation.cos.shape[-1]
    rotated = apply_rotary_pos_emb(x[None, ..., :r], x[None, ..., :r], rotation.cos[None], rotation.sin[None])[0][0]
    return torch.cat([rotated, x[..., r:]], -1)


@pytest.mark.parametrize("norm", [None, "rms"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("T", "H", "dh", "r"), [(1, 1, 4, 4), (6, 4, 8, 8), (9, 2, 6, 4), (7, 2, 3, 2)])
def test_rotary_positions(T, H, dh, r, causal, norm):
    """By tokens (T < d_head) and by matrices (T ≥ d_head), whole and partial rotations, dense and packed."""
    torch.manual_seed(4)
    d = 10
    angles = torch.rand(T, r // 2, dtype=torch.float64).repeat(1, 2) * 6
    rotation = Rotation(angles.cos(), angles.sin())
    module = None if norm is None else RMSNorm(d).requires_grad_(False)
    form, function, x = synthetic_attention(T, d, H, dh, causal, 1 if H == 1 else 2, module, rotation)
    structure = BlockLowerTriangular() if causal else Dense()
    J = tp.jacobian(function, x, structure).dense()
    scale = float(J.abs().max())
    written = form.write(range(T), torch.zeros(T, T, d, d, dtype=x.dtype)).permute(0, 2, 1, 3).reshape(J.shape)
    assert float((written - J).abs().max()) <= 1e-12 * scale
    first, count = [], 0
    for t in range(T):
        first.append(count)
        count += len(structure.row(t, T))
    packed = form.write(range(T), torch.zeros(count, d, d, dtype=x.dtype), first)
    for t in range(T):
        for s in structure.row(t, T):
            assert (
                float((packed[first[t] + s] - J[t * d : (t + 1) * d, s * d : (s + 1) * d]).abs().max()) <= 1e-12 * scale
            )
    V = torch.randn(3, T, d, dtype=x.dtype)
    assert torch.allclose(form.push(V), (J @ V.reshape(3, -1).T).T.reshape(V.shape), rtol=1e-10, atol=1e-11 * scale)
    assert torch.allclose(form.pull(V), (J.T @ V.reshape(3, -1).T).T.reshape(V.shape), rtol=1e-10, atol=1e-11 * scale)
    assert form.energy() == pytest.approx(float(J.square().sum()), rel=1e-11)


class RMSNorm(nn.Module):
    """As transformers writes it."""

    def __init__(self, d):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(d, dtype=torch.float64) + 0.5), 1e-6

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.mark.parametrize("norm", [None, "layer", "rms", "torch-rms"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("T", "d", "H", "dh", "groups"), [(1, 7, 1, 3, 1), (5, 9, 4, 2, 2), (6, 8, 4, 3, 4)])
def test_grouped_queries_and_norms(T, d, H, dh, groups, causal, norm):
    torch.manual_seed(3)
    modules = {"layer": nn.LayerNorm(d).double(), "rms": RMSNorm(d), "torch-rms": nn.RMSNorm(d).double(), None: None}
    module = modules[norm] if norm is None else modules[norm].requires_grad_(False)
    form, function, x = synthetic_attention(T, d, H, dh, causal, groups, module)
    J = tp.jacobian(function, x, BlockLowerTriangular() if causal else Dense()).dense()
    written = form.write(range(T), torch.zeros(T, T, d, d, dtype=x.dtype)).permute(0, 2, 1, 3).reshape(J.shape)
    assert float((written - J).abs().max()) <= 1e-12 * float(J.abs().max())
    assert form.energy() == pytest.approx(float(J.square().sum()), rel=1e-11)
    rows = range(T // 2, T)
    part = form.write(rows, torch.zeros(len(rows), T, d, d, dtype=x.dtype))
    assert torch.allclose(part, form.write(range(T), torch.zeros(T, T, d, d, dtype=x.dtype))[T // 2 :], atol=1e-12)


ACTS = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "gelu-tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
}


@pytest.mark.parametrize("norm", ["layer", "rms", None])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_plain_and_gated_mlps(act, gated, norm):
    torch.manual_seed(1)
    T, d, units = 4, 9, 23
    x = torch.randn(T, d, dtype=torch.float64)
    module = {"layer": nn.LayerNorm(d).double(), "rms": RMSNorm(d), None: None}[norm]
    up, gate, down = (torch.randn(*s, dtype=torch.float64) for s in ((units, d), (units, d), (d, units)))

    def function(at):
        h = at if module is None else module(at)
        inner = ACTS[act](h @ gate.T) * (h @ up.T) if gated else ACTS[act](h @ up.T)
        return inner @ down.T

    at = norm_at(module, x)
    h = x if module is None else module(x).detach()
    fold = (lambda W: W) if at is None else at.fold
    if gated:
        branches = [
            Branch(fold(gate), slope_of(ACTS[act], h @ gate.T) * (h @ up.T)),
            Branch(fold(up), ACTS[act](h @ gate.T)),
        ]
    else:
        branches = [Branch(fold(up), slope_of(ACTS[act], h @ up.T))]
    with torch.no_grad():
        form = ClosedMLP(down, branches, at)
        J = tp.jacobian(function, x).dense().reshape(T, d, T, d)
        for t, block in enumerate(form.blocks(range(T))):
            assert float((block - J[t, :, t]).abs().max()) <= 1e-13 * float(J.abs().max())
        V = torch.randn(3, T, d, dtype=x.dtype)
        assert torch.allclose(form.push(V), torch.einsum("tosj,ksj->kto", J, V), rtol=1e-11, atol=1e-11)
        assert torch.allclose(form.pull(V), torch.einsum("tosj,kto->ksj", J, V), rtol=1e-11, atol=1e-11)
        assert form.energy() == pytest.approx(float(J.square().sum()), rel=1e-12)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_norm_on_the_right(norm):
    torch.manual_seed(2)
    d = 13
    module = nn.LayerNorm(d).double() if norm == "layer" else RMSNorm(d)
    nn.init.normal_(module.weight)
    x, M = torch.randn(2, d, dtype=torch.float64), torch.randn(5, d, dtype=torch.float64)
    at = norm_at(module, x)
    for t in range(2):
        expected = M @ torch.func.jacrev(module)(x[t])
        assert torch.allclose(ClosedNorm(at).row(t, M)[0], expected, rtol=1e-12, atol=1e-12)


def few_units(active, residual=False):
    """A ReLU MLP behind a LayerNorm with `active` units of 60 active at every token, width 31."""
    g = torch.Generator().manual_seed(active)
    T, d, units = 3, 31, 60
    x = torch.randn(T, d, generator=g, dtype=torch.float64)
    norm = norm_at(nn.LayerNorm(d).double(), x)
    slope = torch.zeros(T, units, dtype=torch.float64)
    for t in range(T):
        slope[t, torch.randperm(units, generator=g)[:active]] = 1
    up, down = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((units, d), (d, units)))
    return ClosedMLP(down, [Branch(norm.fold(up), slope)], norm, residual)


@pytest.mark.parametrize("active", [0, 1, 7, 30])
def test_factored_values_have_exact_zeros(active):
    with torch.no_grad():
        form = few_units(active)
        for t in range(3):
            C, B = (f.numpy() for f in form.factors(t))
            J = form.blocks(range(t, t + 1))[0].numpy()
            values = factored_values(C, B)
            expected = np.linalg.svd(J, compute_uv=False)
            assert np.all(values[active:] == 0)
            assert np.abs(values - expected).max() <= 1e-14 * 31 * max(expected[0], 1)
            assert np.all(values[: max(active - 1, 0)] > 1e-3)


def test_the_main_route_takes_factors_where_units_are_few():
    model = tp.load_model("demo")
    S = tp.spectrum(tp.jacobian(tp.block(model, "mlp", layer=2, tokens=6)))
    active = S.evidence.active
    assert max(active) < 128
    assert int((S.values == 0).sum()) == sum(128 - n for n in active)
    assert S.rank.flag == "certified"
    J = tp.jacobian(tp.block(model, "mlp", layer=2, tokens=6, residual=True))
    assert J.factors(0) is None
    assert not np.any(tp.spectrum(J).values == 0)


def test_a_wrong_closed_form_falls_back_with_one_warning(monkeypatch):
    block = blocks("opt", "mlp")
    right = closed._mlp

    def wrong(block):
        form = right(block)
        return ClosedMLP(form.down * (1 + 1e-6), form.branches, form.norm, form.residual)

    monkeypatch.setattr(closed, "_mlp", wrong)
    with pytest.warns(
        UserWarning, match=r"L01\.mlp: the closed form differs .* automatic differentiation is used"
    ) as seen:
        J = tp.jacobian(block)
    assert len(seen) == 1
    assert J.route == "automatic differentiation"
    monkeypatch.undo()
    assert torch.allclose(J.dense(), tp.jacobian(block).dense(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "attn"])
@pytest.mark.parametrize("off", [1e-7, 1e-2])
def test_formulas_that_are_wrong_do_not_vouch_for_themselves(monkeypatch, kind, off):
    """Of float64 blocks the products in more precision are of the same formulas: they would find the form nearer."""
    block = blocks("bert", kind)
    right = getattr(closed, {"mlp": "_mlp", "attn": "_attention"}[kind])
    monkeypatch.setattr(closed, right.__name__, lambda block: Scaled(right(block), 1 + off))
    monkeypatch.setattr(closed, "is_nearer", lambda form, block: True)
    with pytest.warns(UserWarning, match="automatic differentiation is used"):
        assert closed.tried(block) == (None, True)


class Scaled:
    """A form's products, off by a factor."""

    def __init__(self, form, factor):
        self.form, self.factor = form, factor

    def push(self, tangents):
        return self.factor * self.form.push(tangents)

    def pull(self, cotangents):
        return self.factor * self.form.pull(cotangents)


def test_products_in_parts(monkeypatch):
    """Few columns at once, and few of them over the tokens, change nothing."""
    block = blocks("opt", "attn")
    J = tp.jacobian(block)
    X = torch.randn(J.shape[1], 7, dtype=J.dtype, generator=torch.Generator().manual_seed(5))
    expected = [J @ X, J.T @ X]
    monkeypatch.setattr(sys.modules["tightpass.jacobians.forms.base"], "PRODUCT_BYTES", 3 * 7 * 21 * 8)
    monkeypatch.setattr(sys.modules["tightpass.jacobians.forms.attention"], "SCORE_BYTES", 2 * 7 * 7 * 8)
    for got, whole in zip((J @ X, J.T @ X), expected, strict=True):
        assert torch.allclose(got, whole, rtol=0, atol=1e-13 * float(whole.abs().max()))


@pytest.mark.parametrize(("form", "writer"), [("attn", "write"), ("mlp", "blocks")])
def test_wrong_blocks_are_an_error(monkeypatch, form, writer):
    """What is written is compared with products that do not form J."""
    J = tp.jacobian(blocks("bert", form))
    right = getattr(type(J.form), writer)
    monkeypatch.setattr(type(J.form), writer, lambda *given: right(*given).mul_(1 + 1e-6))
    with pytest.raises(VerificationError, match="written blocks times a random vector differ"):
        tp.spectrum(J)


def cancelling(kind, rest):
    """Units, or heads, in pairs that are alike and leave in opposite directions, but for a part: J is so much smaller than
    what it is the sum of."""
    model = small_models.opt() if kind == "mlp" else small_models.bert(hidden_size=16, num_attention_heads=4)
    with torch.no_grad():
        if kind == "mlp":
            first, second = model.decoder.layers[1].fc1, model.decoder.layers[1].fc2
            pairs = [(first.weight, 1), (first.bias, 1), (second.weight.T, -1 - rest)]
        else:
            own = model.encoder.layer[1].attention
            parts = [getattr(own.self, name) for name in ("query", "key", "value")]
            pairs = [(p.unflatten(0, (4, 4)), 1) for part in parts for p in (part.weight, part.bias)]
            pairs.append((own.output.dense.weight.T.unflatten(0, (4, 4)), -1 - rest))
        for parameter, factor in pairs:
            parameter[1::2] = factor * parameter[::2]
    return tp.block(tp.load_model(model), kind, layer=1, token_ids=[5, 17, 2, 88])


@pytest.mark.parametrize(("form", "writer", "rest"), [("attn", "write", 2.0**-36), ("mlp", "blocks", 2.0**-20)])
def test_wrong_blocks_are_an_error_where_much_cancels(monkeypatch, form, writer, rest):
    J = tp.jacobian(cancelling(form, rest))
    assert J.form.closed
    assert tp.spectrum(J).floor.total / float(J.dense().norm()) > 1e-17 / rest
    right = getattr(type(J.form), writer)
    monkeypatch.setattr(type(J.form), writer, lambda *given: right(*given).mul_(1.01))
    with pytest.raises(VerificationError, match=r"written blocks times a random vector differ .* kernels are wrong"):
        tp.spectrum(J)


@pytest.mark.parametrize("seed", [65, 402, 490, 745, 1435])
def test_blocks_that_are_all_rounding_are_no_mistake(seed):
    """LayerNorms of one or two entries behind numbers of 1e8: the floor says what is left of J."""
    outcome = fuzzing.examine(fuzz_cases.seeded(seed))
    assert outcome.refusal is None
    assert outcome.faults == []


@pytest.mark.parametrize("route", ["form", "automatic"])
def test_who_is_to_blame_for_wrong_blocks(monkeypatch, route):
    """Kernels only where they had a part in it."""
    J = tp.jacobian(blocks("bert", "mlp"))
    J.form = J.form if route == "form" else J._by_autodiff()
    right = J.panels
    J.panels = lambda: (replace(panel, blocks=panel.blocks * 1.001) for panel in right())
    words = "kernels are wrong on this machine" if route == "form" else "reverse and forward mode contradict each other"
    with pytest.raises(VerificationError, match=words):
        tp.spectrum(J)


def test_factors_that_cancel_are_left_aside():
    """With terms of CᵀB a million times larger than their sum, the core would lose six digits."""
    g = torch.Generator().manual_seed(0)
    C, B = (torch.randn(20, 60, generator=g, dtype=torch.float64).numpy() for _ in range(2))
    C[1], B[1] = C[0], -B[0]
    C[:2] *= 1e3
    A = C.T @ B
    for answer in (batched._referenced(A, (C, B)), batched._probed(A, (C, B), 1e-3)):
        assert answer.route != "factors"
        assert np.array_equal(answer.values, batched.one(A))


@pytest.mark.parametrize("broken", ["push", "pull"])
@pytest.mark.parametrize("factor", [1 + 1e-7, float("nan")])
def test_the_probe_sees_both_products(monkeypatch, broken, factor):
    block = blocks("bert", "attn")
    right = getattr(ClosedAttention, broken)
    monkeypatch.setattr(ClosedAttention, broken, lambda self, v: right(self, v) * factor)
    with pytest.warns(UserWarning, match="differs from automatic differentiation"):
        assert closed_form(block) is None


def test_an_unknown_module_has_no_closed_form():
    block = blocks("opt", "mlp")

    class Other(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    odd = replace(block, layers=(replace(block.layers[0], up=Other(block.layers[0].up)),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert closed_form(odd) is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_closed_forms_err_no_more_than_autodiff(dtype):
    """Against products in twice float64's precision the closed form is at most twice as far off as autodiff."""
    model = tp.load_model("demo", dtype=dtype)
    for kind in ("mlp", "attn"):
        block = tp.block(model, kind, layer=1, tokens=9)
        exact = twice(block)

        def error(J, exact=exact):
            panels = list(J.panels())
            return lanczos_norm(Difference(J, lambda: iter(panels), exact), 6)

        J = tp.jacobian(block)
        assert 0 < error(J) <= 2 * max(error(autodiff(block)), torch.finfo(block.x.dtype).eps)
