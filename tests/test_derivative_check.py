"""The load-time check of the derivative: legitimate inputs pass, lower precision and wrong derivatives do not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tightpass.errors import VerificationError
from tightpass.models.blocks import check_by_differences


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
