"""Modules that are called more than once, wrapped, or of other sizes than the configuration says.

The references are dense Jacobians of the model's own layer or module, by torch's jacrev in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from oracles.small_models import bert, opt
from torch import nn

import tightpass as tp
from tightpass.models.capture import capture

IDS = [5, 17, 2, 88, 41, 7]


def jacobian_of(fn, x):
    N = x.numel()
    return torch.func.jacrev(fn)(x).reshape(-1, N)


def inputs(base, module, ids=IDS):
    """What a module received in each of its calls, by a hook of our own."""
    seen = []
    handle = module.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).clone()), with_kwargs=True
    )
    with torch.no_grad():
        base(input_ids=torch.tensor([ids]))
    handle.remove()
    return [x.reshape(-1, x.shape[-1]) for x in seen]


# ---- called more than once


def test_a_chunked_feed_forward_is_differentiated_whole():
    hf = bert(chunk_size_feed_forward=2)
    block = tp.block(tp.load_model(hf), "mlp", layer=1, token_ids=IDS)
    layer = hf.encoder.layer[1]
    x = torch.cat(inputs(hf, layer.intermediate.dense))
    assert x.shape == (6, 15)
    expected = jacobian_of(lambda at: layer.output.dense(layer.intermediate(at)), x)
    assert tp.jacobian(block).shape == (90, 90)
    assert torch.allclose(tp.jacobian(block).dense(), expected, rtol=0, atol=1e-12)
    assert hf.config.chunk_size_feed_forward == 2


@pytest.mark.parametrize("kind", ["mlp", "attn", "layer", "model"])
@pytest.mark.parametrize("order", [(0, 1, 0, 1), (0, 0, 0), (1, 0, 0)])
def test_shared_layers_are_each_differentiated_where_they_are_called(order, kind):
    """As if every place had a layer of its own."""
    shared, own = opt(), opt()
    shared.decoder.layers = nn.ModuleList([shared.decoder.layers[i] for i in order])
    own.decoder.layers = nn.ModuleList([copy.deepcopy(own.decoder.layers[i]) for i in order])
    models = [tp.load_model(hf) for hf in (shared, own)]
    for layer in [None] if kind == "model" else range(len(order)):
        one, other = (tp.block(model, kind, layer=layer, token_ids=IDS) for model in models)
        assert torch.equal(one.x, other.x)
        assert torch.equal(tp.jacobian(one).dense(), tp.jacobian(other).dense())
        pairs = zip(one.unit_calls(), other.unit_calls(), strict=True)
        assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in pairs)
    if kind != "model":
        x = inputs(shared, shared.decoder.layers[-1])
        assert not torch.allclose(x[0], x[-1])  # the test could tell


class Twice(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.in_features = inner, inner.in_features

    def forward(self, x):
        half = len(x) // 2
        return torch.cat([self.inner(x[:half]), self.inner(x[half:])])


def test_a_module_that_is_called_more_often_is_refused():
    hf = opt()
    layer = hf.decoder.layers[1]
    inner = layer.fc1
    layer.fc1 = Twice(inner)
    hf.decoder.layers[0].fc1 = inner
    with pytest.raises(tp.InputError, match=r"module of 0.up was called 3 times in one forward pass, expected 1"):
        tp.block(tp.load_model(hf.eval()), "mlp", layer=0, token_ids=IDS)


def test_a_module_in_two_places_of_a_layer_is_refused():
    hf = opt()
    hf.decoder.layers[2].final_layer_norm = hf.decoder.layers[2].self_attn_layer_norm
    with pytest.raises(
        tp.InputError, match=r"module of 2.attn_norm, 2.mlp_norm was called 2 times in one forward pass, expected 1"
    ):
        tp.block(tp.load_model(hf), "mlp", layer=2, token_ids=IDS)


def test_a_forward_pass_that_fails_is_told(small_opt):
    with pytest.raises(tp.InputError, match="fails at these 1 tokens: index out of range"):
        capture(tp.load_model(small_opt), torch.tensor([10**6]))


# ---- wrapped


class Adapter(nn.Module):
    """As peft's LoRA layers are: the layer itself, and a product of two thin matrices beside it."""

    def __init__(self, base_layer, scale=2.0, rank=4):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.base_layer, self.scale = base_layer, scale
        for name, shape in (("A", (rank, base_layer.in_features)), ("B", (base_layer.out_features, rank))):
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)))

    def forward(self, x):
        return self.base_layer(x) + self.scale * (x @ self.A.T @ self.B.T)

    def merged(self):
        layer = copy.deepcopy(self.base_layer)
        layer.weight.data += self.scale * self.B @ self.A
        return layer


class Subclassed(nn.Linear):
    """As loralib's: a Linear by type, with more in its forward."""

    def forward(self, x):
        return super().forward(x) * 3


def adapted(make, path, wrap):
    """A model with a wrapped module, and the same with the wrapper's effect in the weights."""
    wrapped = make()
    merged = copy.deepcopy(wrapped)
    inner = wrapped.get_submodule(path)
    if wrap is Adapter:
        module = Adapter(inner)
        merged.set_submodule(path, module.merged())
    else:
        module = Subclassed(inner.in_features, inner.out_features, dtype=torch.float64)
        module.load_state_dict(inner.state_dict())
        for parameter in merged.get_submodule(path).parameters():
            parameter.data *= 3
    wrapped.set_submodule(path, module.eval())
    return tp.load_model(wrapped), tp.load_model(merged)


@pytest.mark.parametrize("wrap", [Adapter, Subclassed])
@pytest.mark.parametrize(
    ("make", "path", "kind"),
    [
        (opt, "decoder.layers.1.self_attn.out_proj", "head"),
        (opt, "decoder.layers.1.self_attn.out_proj", "attn"),
        (opt, "decoder.layers.1.self_attn.v_proj", "head"),
        (opt, "decoder.layers.1.fc1", "mlp"),
        (opt, "decoder.layers.1.fc2", "mlp"),
        (bert, "encoder.layer.1.attention.output.dense", "head"),
        (bert, "encoder.layer.1.intermediate.dense", "mlp"),
    ],
)
def test_an_adapter_counts(make, path, kind, wrap):
    """A wrapped module gives what its merged weight gives; that is wholly ordinary."""
    found, expected = (
        tp.spectrum(tp.jacobian(tp.block(model, kind, layer=1, head=2 if kind == "head" else None, token_ids=IDS)))
        for model in adapted(make, path, wrap)
    )
    assert np.abs(found.values - expected.values).max() <= 1e-11 * expected.values[0]
    assert found.rank.interval == expected.rank.interval


def test_a_head_with_an_adapter_against_jacrev():
    hf = opt()
    attention = hf.decoder.layers[1].self_attn
    attention.out_proj = Adapter(attention.out_proj)
    block = tp.block(tp.load_model(hf.eval()), "head", layer=1, head=0, norm=False, token_ids=IDS)
    W = attention.out_proj.merged().weight.detach()
    q, k, v = (module for module in (attention.q_proj, attention.k_proj, attention.v_proj))

    def head(x):
        scores = q(x)[:, :7] @ k(x)[:, :7].T / 7**0.5
        return scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(-1) @ v(x)[:, :7] @ W[:, :7].T

    expected = torch.linalg.svdvals(jacobian_of(head, block.x))
    assert torch.allclose(torch.as_tensor(tp.spectrum(tp.jacobian(block)).values), expected, rtol=0, atol=1e-11)


# ---- of other sizes


def pruned(make, keep):
    """A model whose second layer has some of its heads left, and one in which the others add nothing."""
    small, masked = make(), make()
    for hf in (small, masked):
        causal = hasattr(hf, "decoder")
        layer = hf.decoder.layers[1] if causal else hf.encoder.layer[1]
        own = layer.self_attn if causal else layer.attention.self
        names = ("q_proj", "k_proj", "v_proj") if causal else ("query", "key", "value")
        holder, out = (own, "out_proj") if causal else (layer.attention.output, "dense")
        size = own.head_dim if causal else own.attention_head_size
        index = torch.cat([torch.arange(h * size, (h + 1) * size) for h in keep])
        projection = getattr(holder, out)
        if hf is masked:
            left = torch.zeros_like(projection.weight)
            left[:, index] = projection.weight[:, index]
            projection.weight.data = left
            continue
        for name in names:
            old = getattr(own, name)
            new = nn.Linear(old.in_features, len(index), dtype=torch.float64)
            new.weight.data, new.bias.data = old.weight.data[index].clone(), old.bias.data[index].clone()
            setattr(own, name, new)
        new = nn.Linear(len(index), projection.out_features, dtype=torch.float64)
        new.weight.data, new.bias.data = projection.weight.data[:, index].clone(), projection.bias.data.clone()
        setattr(holder, out, new)
        if causal:
            own.num_heads = len(keep)
        else:
            own.num_attention_heads, own.all_head_size = len(keep), len(index)
    return tp.load_model(small.eval()), tp.load_model(masked)


@pytest.mark.parametrize(
    ("make", "keep"),
    [(lambda: bert(hidden_size=12, num_attention_heads=4), (0, 1, 3)), (opt, (2, 0)), (opt, (1,))],
)
def test_a_pruned_layer_has_the_heads_that_are_left(make, keep):
    small, whole = pruned(make, keep)
    for new, old in enumerate(keep):
        a, b = (
            tp.spectrum(tp.jacobian(tp.block(model, "head", layer=1, head=h, token_ids=IDS))).values
            for model, h in ((small, new), (whole, old))
        )
        assert np.abs(a - b).max() <= 1e-12 * b[0]
    a, b = (tp.jacobian(tp.block(model, "attn", layer=1, token_ids=IDS)).dense() for model in (small, whole))
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
    with pytest.raises(tp.InputError, match=rf"layer 1 of .* has heads 0..{len(keep) - 1}, got {len(keep)}"):
        tp.block(small, "head", layer=1, head=len(keep), token_ids=IDS)
    assert tp.block(small, "head", layer=0, head=len(keep), token_ids=IDS)  # which has all of its own


def test_a_run_has_the_heads_that_are_left_and_says_so(tmp_path, capsys):
    small = pruned(opt, (2, 0))[0].base
    run = tp.run(small, block="head", tokens=4, layers="0-1", out=str(tmp_path / "run"))
    assert run.names == ["L00.H00", "L00.H01", "L00.H02", "L01.H00", "L01.H01"]
    said = capsys.readouterr().err.splitlines()
    assert "OPTModel is not what its configuration says, and is taken as it is: 2 heads (not 3) in layer 1" in said


def test_modules_win_over_the_configuration(tmp_path):
    """A model of more positions, fewer layers and other MLPs than its configuration has."""
    hf = opt()
    table = hf.decoder.embed_positions
    table.weight = nn.Parameter(torch.cat([table.weight, table.weight[:9]]), requires_grad=False)
    table.num_embeddings += 9
    hf.decoder.layers = hf.decoder.layers[:2]
    hf.decoder.layers[1].fc1 = nn.Linear(21, 40, dtype=torch.float64)
    hf.decoder.layers[1].fc2 = nn.Linear(40, 21, dtype=torch.float64)
    model = tp.load_model(hf.eval())
    shape = model.shape
    assert (len(shape.layers), shape.positions, [layer.d_ff for layer in shape.layers]) == (2, 28, [50, 40])
    assert shape.noted == ("2 layers (not 3)", "28 positions (not 19)", "40 units (not 50) in layer 1")
    assert tp.block(model, "mlp", layer=1, token_ids=[1] * 28).x.shape == (28, 21)
    with pytest.raises(tp.InputError, match="has 28 positions, 29 tokens were asked for"):
        tp.block(model, "mlp", layer=1, token_ids=[1] * 29)
