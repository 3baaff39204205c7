"""The load-time check of the derivative: legitimate inputs pass, lower precision and wrong derivatives do not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from oracles import fuzz_cases
from torch import nn

import tightpass as tp
from tightpass.errors import VerificationError
from tightpass.jacobians.derivative import check_by_formulas
from tightpass.jacobians.perturbing import rounding
from tightpass.jacobians.twice.block import twice
from tightpass.models.blocks import check_by_differences
from tightpass.models.differences import direction


def norm_then(act, d=12):
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 3 * d), act, nn.Linear(3 * d, d)).double()


def as_block(f, x):
    made = SimpleNamespace(name="f", x=x, function=lambda: f)
    made.in_precision = lambda dtype: made
    return made


def at(mean, spread=1.0):
    return mean + spread * torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class InFloat32(nn.Module):
    def forward(self, z):
        return torch.softmax(z.float(), -1).double()


class Slanted(torch.autograd.Function):
    """tanh whose slope is off by a thousandth."""

    @staticmethod
    def forward(z):
        return torch.tanh(z)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(output)

    @staticmethod
    def jvp(ctx, t):
        return 1.001 * (1 - ctx.saved_tensors[0] ** 2) * t


class Off(nn.Module):
    def forward(self, z):
        return Slanted.apply(z)


INPUTS = [at(0.0), at(1e4), at(1e6), at(1e8), at(0.0, 1e-8), at(3.0, 0.0), at(0.0, 0.0) + torch.eye(4, 12)]


@pytest.mark.parametrize("x", INPUTS)
@pytest.mark.parametrize("act", [nn.GELU(), nn.Tanh(), nn.Softmax(-1)])
def test_legitimate_inputs_pass(x, act):
    check_by_differences(as_block(norm_then(act), x))


@pytest.mark.parametrize("x", [at(0.0), at(1e4), at(1e6)])
@pytest.mark.parametrize("act", [InFloat32(), Off()])
def test_lower_precision_and_wrong_derivatives_are_refused(x, act):
    with pytest.raises(VerificationError, match="differs from finite differences"):
        check_by_differences(as_block(norm_then(act), x))


# ---- where finite differences see nothing, the formulas decide


def hostile(seed):
    """A block of the fuzz."""
    case = fuzz_cases.seeded(seed)
    model = tp.load_model(fuzz_cases.model(case), dtype=case.dtype)
    return tp.block(
        model, case.kind, case.layer, case.head, token_ids=fuzz_cases.token_ids(case), norm=case.norm,
        residual=case.residual,
    )  # fmt: skip


def altered(block, change):
    """The block whose function, in its own precision, is changed."""

    def in_precision(dtype):
        held = block.in_precision(dtype)
        return SimpleNamespace(x=held.x, function=lambda: change(block, held.function(), dtype))

    return SimpleNamespace(name=block.name, x=block.x, in_precision=in_precision)


def steeper(block, f, dtype):
    """The same value at x, and a slope off by a thousandth."""
    x = block.x.to(dtype)
    return lambda at: f(x + 1.001 * (at - x))


def lower(block, f, dtype):
    """One precision less inside."""
    less = torch.float32 if dtype == torch.float64 else torch.bfloat16
    inner = block.in_precision(less).function()
    return lambda at: inner(at.to(less)).to(dtype)


HOSTILE = {
    "attention, weights of 1e-8, inputs of mean 1e6": 147,
    "a head, weights of 1e-8, inputs of mean 1e4": 117,
    "units behind a LayerNorm of two entries": 352,
    "units, biases of 1e6": 388,
    "a head, scores of 1e9, tokens all alike": 865,
    "float32, a model of zero weights": 165,
    "float32, units, biases of 1e6": 790,
    "float32, attention, weights of 1e-4": 140,
}


@pytest.mark.parametrize("seed", HOSTILE.values(), ids=HOSTILE)
def test_hostile_blocks_pass(seed):
    block = hostile(seed)
    with pytest.raises(VerificationError, match="differs from finite differences"):
        check_by_differences(block)


@pytest.mark.parametrize("change", [steeper, lower])
@pytest.mark.parametrize("seed", HOSTILE.values(), ids=HOSTILE)
def test_mistakes_in_hostile_blocks_are_refused(seed, change):
    if (seed, change) == (865, steeper):
        pytest.skip(
            "one rounding of a softmax weight moves this slope by 1e4 times its size: a thousandth can't be told"
        )
    block = hostile(seed)
    exact = twice(block)
    check_by_formulas(altered(block, lambda block, f, dtype: f), exact)
    with pytest.raises(VerificationError, match=r"differs from its formulas by .* rounding explains"):
        check_by_formulas(altered(block, change), exact)


def test_a_slope_that_no_rounding_moves_is_wrong():
    """Scores of one token alone: they round by more than J is large, and cancel. What float32 and float64 agree on is not
    rounded, however large rounding may be."""

    def doubled(block, f, dtype):
        x = block.x.to(dtype)
        return lambda at: f(x + 2 * (at - x))

    block = hostile(430)
    with pytest.raises(VerificationError, match="differs from its formulas"):
        check_by_formulas(altered(block, doubled), twice(block))


def test_a_derivative_that_is_not_finite_is_said_to_be():
    block = hostile(790)
    with pytest.raises(
        VerificationError, match="is not finite: float32's range ends inside; load the model in float64"
    ):
        check_by_formulas(altered(block, lambda block, f, dtype: lambda at: f(at) * torch.inf), twice(block))


@pytest.mark.parametrize(("roundings", "refused"), [(8, False), (32, True)])
def test_a_slope_is_refused_once_more_roundings_than_any_right_one_had_are_between(roundings, refused):
    """Right ones were off by up to one rounding, mistakes by 1e4: sixteen lie between."""
    block = hostile(388)
    v = direction(block.x)

    def pushed():
        return torch.func.jvp(block.in_precision(torch.float64).function(), (block.x,), (v,))[1].detach()

    size = float(pushed().norm())
    off = roundings * (rounding(pushed) / size + torch.finfo(torch.float64).eps)

    def steeper(block, f, dtype):
        x = block.x.to(dtype)
        return lambda at: f(x + (1 + off) * (at - x))

    if not refused:
        check_by_formulas(altered(block, steeper), twice(block))
        return
    with pytest.raises(VerificationError, match=r"differs from its formulas"):
        check_by_formulas(altered(block, steeper), twice(block))
