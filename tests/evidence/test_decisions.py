"""Near-ties of routers and numbers next to where a clamp cuts them off: what they leave open, and that they are held where
derivatives are checked."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles.family_models import CASES, made
from transformers import AutoConfig, AutoModel

import tightpass as tp
from tightpass.models.decisions import Choice, Clamp, decided, holding
from tightpass.models.genuine import genuine

IDS = [5, 17, 2, 30, 11, 7]
D = 12


def block_of(model, kind="mlp", layer=1, dtype="float64"):
    return tp.block(tp.load_model(model, dtype=dtype), kind, layer=layer, token_ids=IDS)


def spectrum(model, *which, **more):
    return tp.spectrum(tp.jacobian(block_of(model, *which, **more)))


def torn(name, token, layer=1):
    """A copy of the model in which two experts of a layer are alike to one token, of which it takes one."""
    model = copy.deepcopy(made(name))
    mlp = block_of(model, layer=layer).layers[0]
    h = genuine(mlp.mlp_norm)(block_of(model, layer=layer).x[token])
    router = model.layers[layer].mlp.gate
    with torch.no_grad():
        logits = router.weight @ h
        last, next_ = logits.sort(descending=True).indices[1:3]
        router.weight[next_] += (logits[last] - logits[next_]) / h.square().sum() * h
    return model


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_token_between_two_experts_widens_the_rank_by_the_width(name, dtype):
    S = spectrum(torn(name, 3), dtype=dtype)
    assert S.evidence.undecided == (0, 0, 0, D, 0, 0)
    table = S.by_token()
    width = table.rank_high - table.rank_low
    assert width[3] >= D - 1
    assert width.drop(3).le(1).all()
    assert S.rank.hi - S.rank.lo >= D - 1


def test_a_token_that_is_not_between_experts_leaves_nothing_open():
    for name in ("mixtral", "qwen3_moe", "deepseek", "qwen3_next"):
        S = spectrum(made(name))
        assert S.evidence.kinks == 0
        assert S.rank.flag == "certified"


def test_the_ranks_of_both_choices_are_within():
    model = torn("mixtral", 3)
    mlp = model.layers[1].mlp
    h = genuine(block_of(model).layers[0].mlp_norm)(block_of(model).x[3])
    _, one, other = (mlp.gate.weight @ h).sort(descending=True).indices[:3]
    with torch.no_grad():  # of all experts that are not the other, outputs have three features
        mlp.experts.down_proj[torch.arange(4) != other, 3:] = 0
    S, ranks = spectrum(model), []
    for taken in (one, other):
        with torch.no_grad():
            mlp.gate.weight[taken] += 1e-9 * h
        values = torch.linalg.svdvals(tp.jacobian(block_of(model)).dense())
        ranks.append(int((values > S.rank.tau).sum()))
        with torch.no_grad():
            mlp.gate.weight[taken] -= 1e-9 * h
    assert ranks[1] == ranks[0] + 9
    assert S.rank.lo <= ranks[0] < ranks[1] <= S.rank.hi


def test_in_a_layer_before_the_last_all_tokens_behind_hang_on_it():
    model = copy.deepcopy(torn("mixtral", 3, layer=0))
    whole = tp.block(tp.load_model(model), "model", token_ids=IDS)
    assert tp.spectrum(tp.jacobian(whole)).evidence.undecided == (0, 0, 0, D, D, D)
    assert spectrum(model, "layer", 0).evidence.undecided == (0, 0, 0, D, 0, 0)


# ---- clamps


def test_a_unit_at_the_limit_widens_by_one():
    model = copy.deepcopy(made("gpt_oss"))
    block = block_of(model)
    clamp = next(decision for decision in block.decisions if isinstance(decision, Clamp))
    model.layers[1].mlp.experts.limit = float(clamp.values[clamp.values > 0][2])
    assert spectrum(made("gpt_oss")).evidence.kinks == 0
    for kind in ("mlp", "layer"):
        assert spectrum(model, kind).evidence.kinks == 1
    assert spectrum(model, "attn").evidence.kinks == 0


def test_an_experts_clamp_is_put_at_no_token():
    """Even where one takes all tokens: its rows are in the order of the places that tokens give it, not of the tokens."""
    kind, settings = CASES["gpt_oss"]
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **copy.deepcopy(settings) | {"num_local_experts": 2, "num_experts_per_tok": 2})
    model = AutoModel.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    clamps = [decision for decision in block_of(model).decisions if isinstance(decision, Clamp)]
    assert len(clamps[0].values.flatten(0, -2)) == len(IDS)
    model.layers[1].mlp.experts.limit = float(clamps[0].values[clamps[0].values > 0][1])
    S = spectrum(model)
    assert S.evidence.kinks == 1
    assert not any(S.evidence.undecided or ())


@pytest.mark.parametrize("name", ["olmo", "mpt"])
def test_a_query_at_the_limit_widens_by_one_at_its_token(name):
    model = copy.deepcopy(made(name))
    query = block_of(model, "attn", layer=0).decisions[0].values[0, 4].abs()
    limit = float(query[query < 1].max())
    if name == "olmo":
        model.config.clip_qkv = limit
    else:
        model.blocks[0].attn.clip_qkv = limit
    assert spectrum(made(name), "attn", 0).evidence.kinks == 0
    S = spectrum(model, "attn", 0)
    assert S.evidence.undecided == (0, 0, 0, 0, 1, 0)
    assert spectrum(model, "mlp", 0).evidence.kinks == 0


# ---- held


def route(x):
    values, indices = torch.topk(x.softmax(-1), 2, dim=-1)
    return torch.zeros_like(x).scatter(-1, indices, values)


def cut(x):
    y = 2 * x
    y.clamp_(min=-1, max=0.3)
    return y + x.clamp(max=0.1)


@pytest.mark.parametrize("function", [route, cut])
def test_decisions_that_are_held_are_the_function_at_x_and_smooth_elsewhere(function):
    x, away = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    held = decided(function, x)
    assert [type(d) for d in held] == ([Choice] if function is route else [Clamp, Clamp])
    smooth = holding(function, held)
    assert torch.equal(smooth(x), function(x))
    for differentiate in (torch.func.jacrev, torch.func.jacfwd):
        assert torch.equal(differentiate(smooth)(x), differentiate(function)(x))
    again = decided(function, away, held)
    assert not torch.equal(smooth(away), function(away))
    assert torch.equal(again[0].values, decided(function, away)[0].values)


def test_experts_are_held_where_a_derivative_is_checked():
    """Finite differences step over a tie that is nearer than their step."""
    block = block_of(torn("mixtral", 3))
    held = block.in_precision(torch.float64)
    v = torch.randn(block.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h = 1e-6
    jumps, smooth = ((f(block.x + h * v) - f(block.x - h * v)) / (2 * h) for f in (block, held))
    slope = torch.func.jvp(held.function(), (block.x,), (v,))[1]
    assert float((smooth - slope).norm()) <= 1e-7 * float(slope.norm())
    assert float((jumps - slope).norm()) > 10 * float(slope.norm())


def test_a_block_that_is_held_has_the_same_jacobian():
    for name in ("gpt_oss", "mixtral"):
        block = block_of(made(name))
        J, held = (tp.jacobian(b).dense() for b in (block, block.in_precision(torch.float64)))
        assert float((J - held).abs().max()) <= 1e-14 * float(J.abs().max())


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("held", [False, True])
def test_some_tokens_go_to_the_experts_that_they_go_to_among_all(name, held):
    """Though another expert is as near as rounding."""
    block = block_of(torn(name, 3) if name == "mixtral" else made(name))
    block = block.in_precision(torch.float64) if held else block
    x, away = block.x[2:4], 1e-9 * torch.randn(2, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    part = block.function(slice(2, 4))
    for at in (x, x + away, x - away):
        assert float((part(at) - block(block.x)[2:4]).abs().max()) <= 1e-7
