"""Any module by its path, of models that no table knows: against plain torch, and refused in words."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    LlamaConfig,
    MambaConfig,
    MambaModel,
    T5Config,
    T5Model,
)

import tightpass as tp

IDS = [5, 17, 2, 88, 41]


def bigcode(kind=GPTBigCodeForCausalLM):
    torch.manual_seed(0)
    config = GPTBigCodeConfig(
        vocab_size=97, n_embd=12, n_layer=2, n_head=3, n_inner=20, n_positions=80, bos_token_id=1, eos_token_id=2
    )
    return kind(config).eval()


def mamba():
    torch.manual_seed(0)
    return MambaModel(MambaConfig(vocab_size=97, hidden_size=6, num_hidden_layers=2, state_size=4)).eval()


def differentiated(model, call, x):
    """∂(what `call` makes of x)/∂x by plain reverse mode, row by row, of a float64 copy."""
    x = x.clone().requires_grad_()
    y = call(model.double(), x).reshape(-1)
    rows = [torch.autograd.grad(y[i], x, retain_graph=True)[0].reshape(-1) for i in range(len(y))]
    return torch.stack(rows)


def state_space(model, x):
    """A layer of Mamba, written out (Gu & Dao 2023): the model's own code computes in float32 inside."""
    layer = model.layers[1]
    mixer = layer.mixer
    u = x / (x.square().mean(-1, keepdim=True) + model.config.layer_norm_epsilon).sqrt() * layer.norm.weight
    h, z = (u @ mixer.in_proj.weight.T).chunk(2, -1)
    padded = torch.cat([h.new_zeros(3, h.shape[1]), h])
    kernel = mixer.conv1d.weight[:, 0]
    h = nn.functional.silu(sum(padded[k : k + len(x)] * kernel[:, k] for k in range(4)) + mixer.conv1d.bias)
    dt, B, C = (h @ mixer.x_proj.weight.T).split([mixer.time_step_rank, 4, 4], -1)
    dt = nn.functional.softplus(dt @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    A, state, y = -torch.exp(mixer.A_log), x.new_zeros(h.shape[1], 4), []
    for t in range(len(x)):
        state = torch.exp(dt[t, :, None] * A) * state + dt[t, :, None] * B[t] * h[t, :, None]
        y.append(state @ C[t] + mixer.D * h[t])
    out = (torch.stack(y) * nn.functional.silu(z)) @ mixer.out_proj.weight.T
    return x + out


@pytest.mark.parametrize(
    ("make", "path", "call"),
    [
        (bigcode, "transformer.h.1.mlp", lambda model, x: model.transformer.h[1].mlp(x[None])[0]),
        (bigcode, "transformer.h.0.ln_1", lambda model, x: model.transformer.h[0].ln_1(x)),
        (mamba, "layers.1", state_space),
    ],
)
def test_a_module_is_differentiated_as_it_is(make, path, call):
    block = tp.block(make(), module=path, token_ids=IDS)
    J = tp.jacobian(block)
    assert (block.name, J.name, tp.spectrum(J).name) == (path,) * 3
    assert J.structure == tp.Dense()
    exact = differentiated(make(), call, block.x)
    assert float((J.dense() - exact).abs().max()) <= 1e-13 * float(exact.abs().max())


def test_attention_gets_its_mask_as_it_was_captured():
    """Against the layer's output, which is x + attention + MLP, with the MLP taken off."""
    model = bigcode()
    block = tp.block(model, module="transformer.h.1.attn", token_ids=IDS, structure=tp.BlockLowerTriangular())

    def attention(double, x):
        """As multi-query attention is, written out."""
        attn = double.transformer.h[1].attn
        q, k, v = nn.functional.linear(x, attn.c_attn.weight, attn.c_attn.bias).split([12, 4, 4], -1)
        scores = q.reshape(5, 3, 4).transpose(0, 1) @ k.T / 2
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(5, 12)
        return nn.functional.linear(mixed, attn.c_proj.weight, attn.c_proj.bias)

    exact = differentiated(bigcode(), attention, block.x)
    J = tp.jacobian(block)
    assert float((J.dense() - exact).abs().max()) <= 1e-13 * float(exact.abs().max())
    assert J.structure == tp.BlockLowerTriangular()


def test_x_is_that_of_the_forward_pass():
    model = bigcode()
    block = tp.block(model, module="transformer.h.1.mlp", token_ids=IDS)
    seen = []
    double = bigcode().double()
    double.transformer.h[1].mlp.register_forward_hook(lambda _, args, y: seen.extend([args[0][0], y[0]]))
    with torch.no_grad():
        double(input_ids=torch.tensor([IDS]))
    assert torch.allclose(block.x, seen[0], rtol=1e-12, atol=1e-13)
    assert torch.allclose(block(block.x), seen[1], rtol=1e-12, atol=1e-13)
    assert not any(module._forward_hooks for module in model.modules())
    assert next(model.parameters()).dtype == torch.float32


def test_paths_go_with_a_head_or_without():
    """And of a model that was loaded here, the module is what its block is."""
    given = transformers.LlamaForCausalLM(
        LlamaConfig(hidden_size=8, head_dim=4, intermediate_size=9, num_attention_heads=2, num_hidden_layers=2)
    ).eval()
    model = tp.load_model(given)
    ids = [1, 2, 3]
    for of, path in ((given, "model.layers.1.mlp"), (given, "layers.1.mlp"), (model, "model.layers.1.mlp")):
        J = tp.jacobian(tp.block(of, module=path, token_ids=ids, structure=tp.BlockDiagonal()))
        known = tp.jacobian(tp.block(model, "mlp", layer=-1, token_ids=ids, norm=False))
        assert torch.allclose(J.dense(), known.dense(), rtol=1e-12, atol=1e-14)


class Odd(nn.Module):
    """A module in the place of an MLP."""

    def __init__(self, does):
        super().__init__()
        self.does, self.inner, self.unused = does, nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        return self.does(self, x)


def odd(does):
    model = bigcode()
    model.transformer.h[1].mlp = Odd(does).eval()
    return model


def noisy(_, x):
    return x + torch.rand_like(x)


@pytest.mark.parametrize(
    ("model", "path", "message"),
    [
        (bigcode, "transformer.h.7.mlp", r"no module 'transformer.h.7.mlp'; nearest: transformer.h.[01].mlp, "),
        (bigcode, 3, "module must be a path"),
        (bigcode, "transformer.wte", "reads whole numbers .torch.int64., expected a floating tensor"),
        (bigcode, "transformer.h", "is never called in a forward pass of GPTBigCodeForCausalLM"),
        (lambda: odd(lambda m, x: m.inner(m.inner(x))), "h.1.mlp.inner", "is called 2 times in a forward pass"),
        (lambda: odd(lambda m, x: m.inner(x)), "h.1.mlp.unused", "is never called"),
        (lambda: odd(lambda m, x: m.inner(x[:, 1:]).sum() + x), "h.1.mlp.inner", None),
        (lambda: odd(lambda m, x: x.mean(1, keepdim=True)), "h.1.mlp", "makes 1 tokens of 5; a block gives as many"),
        (lambda: odd(lambda m, x: m.inner(x[:, :, None]).sum(2)), "h.1.mlp.inner", r"reads a tensor of shape .1, 5, 1"),
        (lambda: odd(noisy), "h.1.mlp", "gives something else when it is called again"),
        (lambda: T5Model(TINY_T5).eval(), "encoder.block.0", "one half, such as model.get_encoder"),
        (lambda: nn.Linear(2, 2).eval(), "x", "expected a Hugging Face model, got Linear"),
        (lambda: "gpt2", "x", "expected a Hugging Face model, got str"),
    ],
)
def test_what_is_no_map_of_tokens_is_refused(model, path, message):
    if message is None:
        assert tp.block(model(), module=path, token_ids=IDS).tokens == 4
        return
    with pytest.raises(tp.InputError, match=message) as error:
        tp.block(model(), module=path, token_ids=IDS)
    assert str(error.value).count("\n") <= 1


TINY_T5 = T5Config(vocab_size=97, d_model=8, d_kv=4, d_ff=9, num_layers=1, num_heads=2)


def test_a_module_that_gives_no_tensor_is_refused():
    model = bigcode()

    class Silent(nn.Module):
        def forward(self, x):
            return {"of": x.shape}

    model.transformer.h[1].mlp.beside = Silent()
    model.transformer.h[1].mlp.register_forward_pre_hook(lambda module, args: module.beside(args[0]) and None)
    with pytest.raises(tp.InputError, match="beside gives no tensor, expected a floating tensor"):
        tp.block(model.eval(), module="transformer.h.1.mlp.beside", token_ids=IDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "mlp"}, "module= says which block it is; leave out kind"),
        ({"layer": 0}, "leave out layer"),
        ({"norm": False}, "leave out norm"),
        ({"structure": "Dense"}, "structure must be BlockDiagonal"),
        ({"token_ids": [97]}, "token ids must lie in 0..96"),
        ({"text": "some words"}, "has no tokenizer at hand"),
        ({"pixel_values": torch.ones(3, 4, 4)}, "reads input_ids"),
    ],
)
def test_options_that_do_not_go_with_a_module(options, message):
    with pytest.raises(tp.InputError, match=message):
        tp.block(
            bigcode(), module="transformer.h.0.mlp", **({"token_ids": IDS} if "text" not in options else {}) | options
        )


def test_a_structure_that_does_not_hold_is_found():
    block = tp.block(bigcode(), module="transformer.h.1.attn", token_ids=IDS, structure=tp.BlockDiagonal())
    with pytest.raises(tp.VerificationError, match="claimed BlockDiagonal, but output"):
        tp.jacobian(block)


@pytest.mark.parametrize("make", [bigcode, mamba])
def test_the_error_of_an_unknown_family_has_a_line_to_paste(make, tmp_path):
    """Of a model that is given, and of one by its name; the line runs as it is."""
    model = make()
    model.save_pretrained(tmp_path / "stored")
    for of, names in ((model, {"model": model}), (str(tmp_path / "stored"), {})):
        with pytest.raises(tp.InputError, match="Any module of it is to be had by its path: ") as error:
            tp.load_model(of)
        line = str(error.value).rpartition("path: ")[2]
        J = eval(line, {"tp": tp, "transformers": transformers} | names)
        assert J.shape[0] == 64 * model.config.hidden_size
