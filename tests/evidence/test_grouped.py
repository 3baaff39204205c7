"""Queries that share keys and values: the rank of attention, from its heads alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

import tightpass as tp

PLAIN = {
    "vocab_size": 40,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def model_of(kind="llama", **changes):
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **(PLAIN | changes))
    model = AutoModel.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in key))
    return tp.load_model(model)


def spectrum_of(ids, kind="llama", layer=1, **changes):
    """A spectrum, and the numerical rank of the block's Jacobian by automatic differentiation."""
    block = tp.block(model_of(kind, **changes), "attn", layer, token_ids=ids)
    return tp.spectrum(tp.jacobian(block)), numerical_rank(block)


def numerical_rank(block):
    N = block.x.numel()
    values = torch.linalg.svdvals(torch.func.jacrev(block.function())(block.x).reshape(N, N))
    return int((values > 1e-12 * values[0]).sum())


FIVE, REPEATED = [5, 17, 2, 30, 11], [5, 17, 5, 17, 5, 30]


def test_five_tokens_of_two_groups():
    """G·T·d_head + (H − G)·(0 + 1 + 2 + 3 + 4) = 2·5·8 + 2·10."""
    S, true = spectrum_of(FIVE)
    assert (S.rank.interval, S.rank.flag) == ((100, 100), "certified")
    assert (S.evidence.bounds[0].rank, true) == (100, 100)
    assert "5 tokens × 2 heads of keys and values × 8" in S.evidence.bounds[0].reason


@pytest.mark.parametrize(
    ("ids", "kind", "layer", "changes", "bound"),
    [
        (FIVE, "llama", 1, {"num_key_value_heads": 1}, 1 * 40 + 3 * 10),
        (FIVE, "qwen3", 1, {}, 100),
        (FIVE, "gemma2", 1, {"attn_logit_softcapping": 1.5, "layer_types": ["full_attention"] * 2}, 100),
        (list(range(1, 13)), "llama", 1, {}, 2 * 12 * 8 + 2 * (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7 + 4 * 8)),
        (FIVE, "mistral", 1, {"sliding_window": 2}, min(100, 80 + 4 * 4)),
        (REPEATED, "llama", 0, {}, 2 * 6 * 8 + 2 * (0 + 1 + 1 + 1 + 1 + 2)),
    ],
)
def test_the_bound_holds_and_is_met(ids, kind, layer, changes, bound):
    S, true = spectrum_of(ids, kind, layer, **changes)
    assert S.evidence.bounds[0].rank == bound
    assert true <= bound
    if ids is not REPEATED and "sliding_window" not in changes:
        assert S.rank.interval[1] == true == bound


def test_a_token_passes_no_more_than_its_width():
    S, true = spectrum_of(FIVE, hidden_size=24)
    assert S.evidence.bounds[0].rank == sum(min(24, 16 + 2 * t) for t in range(5))
    assert true <= S.evidence.bounds[0].rank


def test_heads_of_their_own_say_nothing_new():
    S, _ = spectrum_of(FIVE, num_key_value_heads=4)
    assert S.evidence.bounds[0].rank == 5 * 4 * 8


@pytest.mark.parametrize("window", [2, 3, 8])
def test_windows_on_both_sides(window):
    """Spans of windows do not lie in each other: what counts is all that any token sees."""
    S, true = spectrum_of(
        list(range(1, 9)),
        "gemma3_text",
        num_key_value_heads=1,
        use_bidirectional_attention=True,
        sliding_window=window,
        layer_types=["sliding_attention"] * 2,
    )
    assert true <= S.evidence.bounds[0].rank
    assert S.rank.interval[1] >= true


def test_sinks_leave_one_dimension_more():
    """Rows of weights sum to less than 1, so that what all values have in common counts."""
    torch.manual_seed(1)
    config = AutoConfig.for_model("gpt_oss", **(PLAIN | {"num_local_experts": 2, "num_experts_per_tok": 1}))
    model = AutoModel.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in key))
    block = tp.block(tp.load_model(model), "attn", 1, token_ids=FIVE)
    S, true = tp.spectrum(tp.jacobian(block)), numerical_rank(block)
    assert S.evidence.bounds[0].rank == 2 * 5 * 8 + 2 * (1 + 2 + 3 + 4 + 5)
    assert S.rank.interval[1] == true == S.evidence.bounds[0].rank
