"""Random small blocks and functions: one generator, driven by hypothesis in the tests and by a seed in the benchmark.

To add a family: its configuration in `CONFIGS`, its pieces in `places.PLACES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertModel, OPTConfig, OPTModel

import tightpass as tp

Pick = Callable[[Sequence[Any]], Any]

DTYPES = {"float64": torch.float64, "float32": torch.float32}
VOCABULARY = 7
SIZES = [(T, d) for T in range(1, 9) for d in range(1, 9) if T * d <= 16]
BLOCKS = ("mlp", "mlp", "attn", "attn", "head", "layer", "model")


@dataclass(frozen=True)
class Case:
    """One block, or one function, at one x. The repr reproduces it.

    entries    what weights look like, see `ENTRIES`; `scale` multiplies those of all linear maps
    qk         multiplies query and key weights: softmax saturates
    bias       size of the biases; mean: of the embeddings (hence of what a LayerNorm gets); repeated: one token T times
    pruned     which units of each MLP are dead: zero rows of W₁ with their bias, zero columns of W₂
    tied       all heads alike
    plain_norm    norms have weight 1 and bias 0
    lanczos    the floor's ‖E‖₂ is found as that of a large J is
    """

    family: str
    kind: str
    dtype: str
    tokens: int
    width: int
    seed: int
    entries: str
    scale: float
    heads: int = 1
    units: int = 1
    layers: int = 1
    layer: int | None = None
    head: int | None = None
    activation: str = "relu"
    pre_norm: bool = False
    causal: bool = True
    norm: bool = True
    residual: bool = False
    qk: float = 1.0
    bias: float = 0.0
    mean: float = 0.0
    repeated: bool = False
    pruned: str = "none"
    tied: bool = False
    plain_norm: bool = False
    structure: str = "Dense"
    method: str = "auto"
    lanczos: bool = False


def case(pick: Pick) -> Case:
    """A random case; `pick` chooses one of a sequence."""
    return dataclasses.replace(_case(pick), lanczos=pick((False, False, False, True)))


def _case(pick: Pick) -> Case:
    family = pick(("opt", "opt", "bert", "bert", "function"))
    tokens, width = pick(SIZES)
    common = {
        "family": family,
        "dtype": pick(("float64", "float32")),
        "tokens": tokens,
        "width": width,
        "seed": pick(range(10**6)),
        "entries": pick((*ENTRIES, *(["normal", "held_by_float32"] * 2))),
        "scale": pick((1.0, 1.0, 1.0, 0.3, 0.3, 3.0, 1e-8, 1e-4, 1e4, 1e8)),
        "mean": pick((0.0, 0.0, 0.0, 0.0, 0.0, 10.0, 1e4, 1e6)),
        "method": pick(("auto", "auto", "auto", "auto", "topk")),
    }
    if family == "function":
        kind = pick(tuple(FUNCTIONS))
        return Case(kind=kind, structure=pick(FUNCTIONS[kind].structures), **common)
    kind, layers, pre_norm = pick(BLOCKS), pick((1, 1, 2)), family == "opt" and pick((True, True, False))
    heads = pick([h for h in (1, 2, 3, 4) if width % h == 0])
    norm = kind in ("layer",) or pick((True, True, False))
    return Case(
        kind=kind,
        heads=heads,
        units=pick((1, 2, 5, 8, 12)),
        layers=layers,
        layer=None if kind == "model" else pick(range(layers)),
        head=pick(range(heads)) if kind == "head" else None,
        activation=pick(("relu", "relu", "relu", "gelu", "gelu_new", "silu", "tanh")),
        pre_norm=pre_norm,
        causal=family == "opt" or pick((True, False)),
        norm=norm,
        residual=kind in ("mlp", "attn", "head") and (norm or not pre_norm) and pick((False, False, True)),
        qk=pick((1.0, 1.0, 3.0, 10.0, 30.0, 100.0)),
        bias=pick((0.0, 0.2, 0.2, 0.2, 1.0, 1.0, 100.0, 1e6)),
        repeated=pick((False, False, False, True)),
        pruned=pick(("none", "none", "rows", "columns", "both")),
        tied=pick((False, False, True)),
        plain_norm=pick((False, True)),
        **common,
    )


def seeded(seed: int) -> Case:
    """The case of a seed."""
    rng = np.random.default_rng(seed)
    return case(lambda options: options[int(rng.integers(len(options)))])


# ---- what weights look like; all in float64


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def held_by_float32(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32).astype(np.float64)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float64)


def signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.choice([-1.0, 1.0], shape)


def sparse(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape) * (rng.random(shape) < 0.3)


def graded(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 5, (*shape[:-1], 1))


def low_rank(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.multiply.outer(normal(rng, *shape[:-1]), normal(rng, shape[-1]))


def zeros(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.zeros(shape)


ENTRIES = {f.__name__: f for f in (normal, held_by_float32, integers, signs, sparse, graded, low_rank, zeros)}


# ---- models


def opt_config(c: Case) -> tuple[type, Any]:
    return OPTModel, OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=c.width,
        word_embed_proj_dim=c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        ffn_dim=c.units,
        max_position_embeddings=8,
        activation_function=c.activation,
        do_layer_norm_before=c.pre_norm,
    )


def bert_config(c: Case) -> tuple[type, Any]:
    return BertModel, BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        intermediate_size=c.units,
        max_position_embeddings=8,
        hidden_act=c.activation,
        is_decoder=c.causal,
    )


CONFIGS = {"opt": opt_config, "bert": bert_config}
QUERIES_AND_KEYS = ("q_proj.weight", "k_proj.weight", "query.weight", "key.weight")
VALUES = ("v_proj.weight", "value.weight")
FIRST, SECOND = ("fc1", "intermediate.dense"), ("fc2", "output.dense")


def model(c: Case) -> nn.Module:
    """The Hugging Face model of a case, in its precision."""
    kind, config = CONFIGS[c.family](c)
    made = kind._from_config(config, dtype=torch.float64).eval()
    rng = np.random.default_rng(c.seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            values = _parameter(c, name, tuple(parameter.shape), rng)
            parameter.copy_(torch.from_numpy(np.asarray(values, dtype=np.float64)))
        for module_name, module in made.named_modules():
            _prune(c, module_name, module, rng)
    return made.to(DTYPES[c.dtype])


def _parameter(c: Case, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if "orm." in name:  # LayerNorm, layer_norm
        is_weight = name.endswith("weight")
        middle = float(is_weight) if "embeddings" not in name or is_weight else c.mean
        return np.full(shape, middle) + (0 if c.plain_norm else 0.3 * normal(rng, *shape))
    if "embed" in name:
        if "position" in name and c.repeated:
            return np.zeros(shape)
        return normal(rng, *shape) + c.mean
    if len(shape) == 1:
        return c.bias * (normal(rng, *shape) if c.entries not in ("integers", "signs") else integers(rng, *shape))
    values = c.scale * ENTRIES[c.entries](rng, *shape)
    if name.endswith(QUERIES_AND_KEYS):
        values = values * c.qk
    if c.tied and name.endswith(QUERIES_AND_KEYS + VALUES):
        values = np.tile(values[: shape[0] // c.heads], (c.heads, 1))
    return values


def _prune(c: Case, name: str, module: nn.Module, rng: np.random.Generator) -> None:
    """Half of the units, in place."""
    if name.endswith(FIRST) and c.pruned in ("rows", "both"):
        dead = rng.random(module.weight.shape[0]) < 0.5
        module.weight[dead] = 0
        module.bias[dead] = 0
    if name.endswith(SECOND) and "attention" not in name and c.pruned in ("columns", "both"):
        module.weight[:, rng.random(module.weight.shape[1]) < 0.5] = 0


def token_ids(c: Case) -> list[int]:
    if c.repeated:
        return [3] * c.tokens
    return [int(i) for i in np.random.default_rng(c.seed + 1).integers(0, VOCABULARY, c.tokens)]


# ---- functions of users, written once: `of` is `Torch`, or the oracle's `Exact`


class Torch:
    """The functions that a user's function may call."""

    tanh, sin, abs, relu, sigmoid, reciprocal, exp = map(
        staticmethod, (torch.tanh, torch.sin, torch.abs, torch.relu, torch.sigmoid, torch.reciprocal, torch.exp)
    )
    gelu = staticmethod(nn.functional.gelu)

    @staticmethod
    def softmax(z: torch.Tensor) -> torch.Tensor:
        return torch.softmax(z, -1)

    @staticmethod
    def normed(z: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(z, z.shape[-1:])


@dataclass(frozen=True)
class UserFunction:
    """y of (of, x, A, B, M): weights A (d, m), B (m, n), and M (T', T), which mixes tokens."""

    apply: Callable[..., Any]
    structures: tuple[str, ...] = ("Dense", "BlockDiagonal")


EVERY = ("Dense",)
FUNCTIONS = {
    "linear": UserFunction(lambda of, x, A, B, M: x @ A),
    "perceptron": UserFunction(lambda of, x, A, B, M: of.tanh(x @ A) @ B),
    "square": UserFunction(lambda of, x, A, B, M: (x * x) @ A),
    "cubic": UserFunction(lambda of, x, A, B, M: x * x * x + x),
    "relu": UserFunction(lambda of, x, A, B, M: of.relu(x) @ A),
    "absolute": UserFunction(lambda of, x, A, B, M: of.abs(x) @ A),
    "gated": UserFunction(lambda of, x, A, B, M: (x @ A) * of.sigmoid(x @ A)),
    "sine": UserFunction(lambda of, x, A, B, M: of.sin(x) @ A),
    "rational": UserFunction(lambda of, x, A, B, M: x * of.reciprocal(x * x + 1)),
    "gelu": UserFunction(lambda of, x, A, B, M: of.gelu(x @ A) @ B),
    "softmax": UserFunction(lambda of, x, A, B, M: of.softmax(x @ A) @ B),
    "normed": UserFunction(lambda of, x, A, B, M: of.normed(x) @ A),
    "two norms": UserFunction(lambda of, x, A, B, M: of.tanh(of.normed(of.normed(x) @ A)) @ B),
    "bell": UserFunction(lambda of, x, A, B, M: of.exp((x @ A) * (x @ A) * -1.0)),
    "attention": UserFunction(lambda of, x, A, B, M: of.softmax(M @ (x @ A)) * of.sigmoid(M @ (x @ A)) @ B, EVERY),
    "mixing": UserFunction(lambda of, x, A, B, M: M @ of.tanh(x @ A), EVERY),
    "mixing linear": UserFunction(lambda of, x, A, B, M: M @ (x @ A) @ B, EVERY),
    "causal": UserFunction(
        lambda of, x, A, B, M: M @ of.tanh(x @ A), ("Dense", "BlockLowerTriangular")
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """A user's function with its weights and x, all in the case's precision."""

    apply: Callable[..., Any]
    x: torch.Tensor
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply(Torch, x, *(w.to(x.dtype) for w in self.weights))


def function(c: Case) -> Given:
    rng, of = np.random.default_rng(c.seed), FUNCTIONS[c.kind]
    entries = ENTRIES[c.entries]
    middle, out = (int(n) for n in rng.integers(1, 7, 2))
    A, B = c.scale * entries(rng, c.width, middle), entries(rng, middle, out)
    M = entries(rng, c.tokens if c.kind == "causal" else int(rng.integers(1, 5)), c.tokens)
    if c.kind == "causal":
        M = np.tril(M)
    x = integers(rng, c.tokens, c.width) if c.entries in ("integers", "signs") else normal(rng, c.tokens, c.width)
    x = x + c.mean * (c.kind in ("linear", "square", "relu", "absolute", "rational", "normed", "two norms"))
    dtype = DTYPES[c.dtype]
    return Given(of.apply, torch.from_numpy(x).to(dtype), tuple(torch.from_numpy(w).to(dtype) for w in (A, B, M)))


def structure(c: Case) -> tp.Dense | tp.BlockDiagonal | tp.BlockLowerTriangular:
    return getattr(tp, c.structure)()


def fields(c: Case) -> dict[str, Any]:
    """What is not as by default: enough to write it down."""
    return {f.name: getattr(c, f.name) for f in dataclasses.fields(c) if getattr(c, f.name) != f.default}
