"""The spectrum of Jᵀ is J's, by definition: the same values, known as well, and their vectors exchanged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import tightpass as tp

IDS = [5, 17, 2, 30]


def blocks(kind):
    return tp.jacobian(tp.block(tp.load_model("demo"), kind, layer=1, token_ids=IDS))


def rectangular(kind):
    W = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return tp.jacobian(lambda x: torch.tanh(x.cumsum(0)[:3] @ W.T), torch.linspace(-1, 1, 28).double().view(4, 7))


MADE = {"mlp": blocks, "attn": blocks, "function": rectangular}


@pytest.mark.parametrize("method", ["exact", "topk"])
@pytest.mark.parametrize("kind", MADE)
def test_the_spectrum_of_the_transpose(kind, method):
    J = MADE[kind](kind)
    options = {"method": method, "vectors": 3} | ({"k": 5} if method == "topk" else {})
    S, St = tp.spectrum(J, **options), tp.spectrum(J.T, **options)
    assert np.array_equal(St.values, S.values)
    assert (St.floor, St.rank, St.total, St.method, St.checks) == (S.floor, S.rank, S.total, S.method, S.checks)
    assert replace(St.evidence, explanation=S.evidence.explanation) == S.evidence
    assert St.name == f"{S.name}.T"
    assert St.tokens == J.tokens_out
    assert np.array_equal(St.U, S.Vh.T)
    assert np.array_equal(St.Vh, S.U.T)
    A = J.dense().numpy().T
    assert np.abs(A @ St.Vh.T - St.U * St.values[:3]).max() <= 1e-7 * St.values[0]
    assert np.linalg.svd(A, compute_uv=False)[: len(St.values)] == pytest.approx(St.values, rel=1e-9, abs=1e-12)


def test_what_tokens_pass_to_is_what_they_receive_the_other_way():
    J = blocks("attn")
    energies = J.dense().square().reshape(4, 128, 4, 128).sum((1, 3)).T  # of Jᵀ
    shares = dict(tp.spectrum(J.T).evidence.explanation.distances)
    for distance in range(-3, 1):
        assert shares[distance] == pytest.approx(float(energies.diagonal(-distance).sum() / energies.sum()), rel=1e-9)
    assert set(shares) == {-3, -2, -1, 0}


def test_the_transpose_of_the_transpose_is_the_operator_itself():
    J = blocks("mlp")
    assert tp.spectrum(J.T.T).name == "L01.mlp"
    assert repr(tp.spectrum(J.T)).startswith("Spectrum(L01.mlp.T: rank ")
    own, other = tp.spectrum(J).by_token(), tp.spectrum(J.T).by_token()
    assert own.equals(other)
