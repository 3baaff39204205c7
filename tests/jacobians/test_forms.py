"""What every form must do, whatever it computes: the table is where a new one joins."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from oracles.places import place_of
from oracles.small_models import HF_MODELS, bert, opt
from torch import nn

import tightpass as tp
from tightpass.jacobians.autodiff import Linearisation
from tightpass.jacobians.forms.attention import ClosedAttention
from tightpass.jacobians.forms.attention_cost import GRAM_COLUMNS, sum_of_grams
from tightpass.jacobians.forms.autodiff import Autodiff
from tightpass.jacobians.forms.base import Form, Piece
from tightpass.jacobians.forms.compose import Chain, Identity, Sum
from tightpass.jacobians.forms.heads import Heads
from tightpass.jacobians.forms.mlp import ActiveMLP, Branch, ClosedMLP, slope_of
from tightpass.jacobians.forms.norm import ClosedNorm, norm_at
from tightpass.structure import BlockDiagonal, BlockLowerTriangular, Dense

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Case:
    """A form, and the code whose Jacobian it says it is."""

    form: Form
    function: Function
    x: torch.Tensor

    def dense(self) -> torch.Tensor:
        """(tokens_out, d_out, tokens_in, d_in) by torch's jacrev of the code in float64."""
        return torch.func.jacrev(self.function)(self.x.double())


class Maps:
    """Modules of odd sizes, (tokens, d) in and out, and their forms at x: everything seeded."""

    def __init__(self, tokens: int, d: int, dtype: torch.dtype, causal: bool) -> None:
        self.generator = torch.Generator().manual_seed(100 * tokens + d)
        self.tokens, self.d, self.dtype, self.causal = tokens, d, dtype, causal
        self.x = self.array(tokens, d)

    def array(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def norm(self, kind: type[nn.Module] = nn.LayerNorm) -> dict[torch.dtype, nn.Module]:
        """The same norm in this precision and in float64."""
        module = kind(self.d, dtype=self.dtype).requires_grad_(False)
        for parameter in module.parameters():
            parameter.copy_(self.array(self.d))
        return {torch.float64: copy.deepcopy(module).double(), self.dtype: module}

    def norm_case(self, x: torch.Tensor, kind: type[nn.Module] = nn.LayerNorm) -> tuple[Piece, Function]:
        module = self.norm(kind)
        return ClosedNorm(norm_at(module[self.dtype], x)), lambda at: module[at.dtype](at)

    def mlp_case(self, x: torch.Tensor, out: int | None = None, norm: bool = False) -> tuple[Piece, Function]:
        up, down = self.array(5, self.d), self.array(out or self.d, 5)
        module = self.norm() if norm else None

        def hidden(at: torch.Tensor) -> torch.Tensor:
            return (at if module is None else module[at.dtype](at)) @ up.to(at.dtype).T

        slope = slope_of(torch.tanh, hidden(x))
        at = None if module is None else norm_at(module[self.dtype], x)
        form = ClosedMLP(down, [Branch(up if at is None else at.fold(up), slope)], at)
        return form, lambda at: torch.tanh(hidden(at)) @ down.to(at.dtype).T

    def attention_case(
        self, x: torch.Tensor, out: int | None = None, norm: bool = False, residual: bool = False
    ) -> tuple[Piece, Function]:
        H, dh = 2, 3
        W = [self.array(H, dh, self.d) for _ in range(3)]
        Wo = self.array(out or self.d, H, dh)
        module = self.norm() if norm else None
        mask = torch.full((self.tokens, self.tokens), -torch.inf).triu(1) if self.causal else torch.zeros(1)

        def projected(at: torch.Tensor) -> list[torch.Tensor]:
            h = at if module is None else module[at.dtype](at)
            return [h @ w.to(at.dtype).mT for w in W]

        def function(at: torch.Tensor) -> torch.Tensor:
            q, k, v = projected(at)
            return torch.einsum("oHi,Hti->to", Wo.to(at.dtype), (0.4 * q @ k.mT + mask.to(at.dtype)).softmax(-1) @ v)

        at = None if module is None else norm_at(module[self.dtype], x)
        folded = W if at is None else [at.fold(w) for w in W]
        return ClosedAttention(Heads(*folded, Wo, *projected(x), 0.4), at, self.causal, residual), (
            beside_identity(function) if residual else function
        )


def plain(make: str, **options) -> Callable[[Maps], Case]:
    def case(maps: Maps) -> Case:
        return Case(*getattr(maps, make)(maps.x, **options), maps.x)

    return case


def identity(maps: Maps) -> Case:
    return Case(Identity(maps.x), lambda at: at.clone(), maps.x)


def autodiff(maps: Maps) -> Case:
    function = lambda at: torch.cat([at.sin().cumsum(0) if maps.causal else at.sin() + at.sum(), at.exp()], -1)  # noqa: E731
    structure = BlockLowerTriangular() if maps.causal else Dense()
    return Case(Autodiff(Linearisation(function, maps.x, 2), structure, 2 * maps.d), function, maps.x)


def autodiff_of_each_token(maps: Maps) -> Case:
    whole = Linearisation(torch.sin, maps.x, 2)
    restricted = lambda tokens: Linearisation(torch.sin, maps.x[tokens], 2)  # noqa: E731
    return Case(Autodiff(whole, BlockDiagonal(), maps.d, restricted if maps.causal else None), torch.sin, maps.x)


class ByUnits(ActiveMLP):
    """However few columns there are."""

    def _by_units(self, columns: int) -> bool:
        return True


def active_units(maps: Maps) -> Case:
    """A gated MLP most of whose units are off."""
    gate, up, down = maps.array(7, maps.d), maps.array(7, maps.d), maps.array(maps.d, 7)
    norms = maps.norm()
    off = 1.0

    def function(at: torch.Tensor) -> torch.Tensor:
        h = norms[at.dtype](at)
        g = (h @ gate.to(at.dtype).T - off).relu()
        return at + (g * (h @ up.to(at.dtype).T)) @ down.to(at.dtype).T

    at, h = norm_at(norms[maps.dtype], maps.x), norms[maps.dtype](maps.x)
    z, u = h @ gate.T - off, h @ up.T
    branches = [Branch(at.fold(gate), (z > 0) * u), Branch(at.fold(up), z.relu())]
    return Case(ByUnits(down, branches, at, residual=True), function, maps.x)


def parallel(maps: Maps) -> Case:
    """x + attention + MLP, both of x."""
    (mlp, f), (attention, g) = maps.mlp_case(maps.x, norm=True), maps.attention_case(maps.x, norm=True)
    return Case(Sum(Identity(maps.x), mlp, attention), lambda at: at + f(at) + g(at), maps.x)


def beside_identity(function: Function) -> Function:
    return lambda at: at + function(at)


def sequence(*names: str) -> Callable[[Maps], Case]:
    """Pieces one after the other, branches with the identity beside them."""

    def case(maps: Maps) -> Case:
        pieces, functions, at = [], [], maps.x
        for name in names:
            piece, function = getattr(maps, f"{name}_case")(at)
            if name != "norm":
                piece = Sum(piece, Identity(at))
                function = beside_identity(function)
            pieces.append(piece)
            functions.append(function)
            at = function(at)

        def whole(at: torch.Tensor) -> torch.Tensor:
            for function in functions:
                at = function(at)
            return at

        return Case(Chain(*pieces), whole, maps.x)

    return case


def rectangular_chain(maps: Maps) -> Case:
    """A block-diagonal map before an attention of another width, which a token's rows are pulled back through."""
    mlp, f = maps.mlp_case(maps.x, out=4)
    wide = Maps(maps.tokens, 4, maps.dtype, maps.causal)
    attention, g = wide.attention_case(f(maps.x), out=3)
    return Case(Chain(mlp, attention), lambda at: g(f(at)), maps.x)


FORMS: dict[str, Callable[[Maps], Case]] = {
    "identity": identity,
    "autodiff": autodiff,
    "autodiff of each token": autodiff_of_each_token,
    "layer norm": plain("norm_case"),
    "rms norm": plain("norm_case", kind=nn.RMSNorm),
    "mlp": plain("mlp_case"),
    "mlp, rectangular, norm": plain("mlp_case", out=2, norm=True),
    "mlp by active units": active_units,
    "attention": plain("attention_case"),
    "attention with the identity": plain("attention_case", norm=True, residual=True),
    "attention, rectangular, norm": plain("attention_case", out=4, norm=True),
    "parallel layer": parallel,
    "layer": sequence("attention", "mlp"),
    "layer with norms on its sums": sequence("attention", "norm", "mlp", "norm"),
    "two layers": sequence("attention", "mlp", "attention", "mlp", "norm"),
    "ends in attention": sequence("norm", "mlp", "attention"),
    "chain of each token": sequence("mlp", "norm"),
    "rectangular chain": rectangular_chain,
}

SHAPES = [(1, 1), (1, 5), (3, 2), (7, 9)]
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5}


@pytest.fixture(params=FORMS)
def make(request) -> Callable[[Maps], Case]:
    return FORMS[request.param]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("tokens", "d"), SHAPES)
def test_a_form_is_the_jacobian_of_the_code(make, tokens, d, dtype, causal):
    with torch.no_grad():
        maps = Maps(tokens, d, dtype, causal)
        case = make(maps)
        form, expected = case.form, case.dense()
        m, n = form.tokens_out * form.d_out, form.tokens_in * form.d_in
        J = expected.reshape(m, n)
        near = ROUNDING[dtype] * (1 + float(torch.linalg.matrix_norm(J, 2)))
        V, W = maps.array(3, form.tokens_in, form.d_in), maps.array(2, form.tokens_out, form.d_out)
        kept = V.clone(), W.clone()
        pushed, pulled = form.push(V).double(), form.pull(W).double()
        assert float((pushed.flatten(1) - V.double().flatten(1) @ J.T).norm()) <= near * float(V.norm())
        assert float((pulled.flatten(1) - W.double().flatten(1) @ J).norm()) <= near * float(W.norm())
        inner = torch.einsum("ktd,jtd->kj", pushed, W.double()) - torch.einsum("ktd,jtd->kj", V.double(), pulled)
        assert float(inner.norm()) <= near * float(V.norm() * W.norm())
        dense = torch.zeros(expected.shape, dtype=dtype)
        form.write_dense(dense)
        assert float((dense.double() - expected).norm()) <= near * tokens
        for known in (form.energy(), form.block_energies()):
            if known is not None:
                assert float(np.sum(np.asarray(known))) == pytest.approx(
                    float(J.square().sum()), rel=near, abs=4 * near
                )
        assert torch.equal(V, kept[0])
        assert torch.equal(W, kept[1])


@pytest.mark.parametrize("causal", [True, False])
def test_panels_are_the_blocks_of_the_structure(make, causal):
    with torch.no_grad():
        case = make(Maps(5, 3, torch.float64, causal))
        form, expected = case.form, case.dense()
        panels = list(form.panels(range(1, 4)))
        places = [place for panel in panels for place in zip(panel.rows, panel.columns, strict=True)]
        assert places == [(t, s) for t in (1, 2, 3) for s in form.structure.row(t, form.tokens_in)]
        blocks = torch.cat([panel.blocks for panel in panels])
        for (t, s), block in zip(places, blocks, strict=True):
            assert torch.allclose(block, expected[t, :, s], rtol=0, atol=1e-12 * float(1 + expected.abs().max()))
        for t in range(5):
            outside = torch.ones(5, dtype=torch.bool)
            outside[list(form.structure.row(t, 5))] = False
            assert not bool(expected[t][:, outside].any())


def test_no_form_writes_more_than_its_structure(make):
    with torch.no_grad():
        form = make(Maps(4, 3, torch.float64, True)).form
        J = torch.zeros(form.tokens_out, form.d_out, form.tokens_in, form.d_in, dtype=torch.float64)
        form.write_dense(J)
        for t in range(4):
            allowed = form.structure.row(t, 4)
            for s in set(range(4)) - set(allowed):
                assert not bool(J[t, :, s].any())


@pytest.mark.parametrize("causal", [True, False])
def test_pieces_compose(make, causal):
    """Rows behind a matrix, and of what is causal the first tokens alone."""
    with torch.no_grad():
        maps = Maps(6, 4, torch.float64, causal)
        case = make(maps)
        form, expected = case.form, case.dense()
        if not isinstance(form, Piece):
            return
        left = maps.array(2, form.d_out)
        near = 1e-12 * float(1 + expected.abs().max())
        for t in (0, 3, 5):
            columns = form.structure.row(t, 6)
            for given in (None, left):
                rows = expected[t] if given is None else torch.einsum("mo,osd->msd", given, expected[t])
                found = form.row(t, given)
                wanted = rows[:, columns.start : columns.stop].transpose(0, 1)
                assert torch.allclose(found, wanted, rtol=0, atol=10 * near)
        if isinstance(form.structure, Dense):
            return
        V, W = maps.array(2, 4, form.d_in), maps.array(2, 4, form.d_out)
        J = expected[:4, :, :4]
        assert torch.allclose(form.push(V), torch.einsum("tosd,ksd->kto", J, V), rtol=0, atol=10 * near)
        assert torch.allclose(form.pull(W), torch.einsum("tosd,kto->ksd", J, W), rtol=0, atol=10 * near)


def test_costs_grow_as_the_work_does(make):
    few, many = (make(Maps(tokens, 4, torch.float64, True)).form.cost for tokens in (4, 8))
    assert 2 * few.product <= many.product <= 4 * few.product
    assert 2 * few.blocks <= many.blocks <= 8 * few.blocks
    assert few.working <= many.working
    assert few.kept <= many.kept


# ---- layers and models

MODELS = HF_MODELS | {
    "opt, one token": opt(num_hidden_layers=1, hidden_size=3, num_attention_heads=1, ffn_dim=2, word_embed_proj_dim=3),
    "bert, gelu": bert(hidden_act="gelu", intermediate_size=7),
    "opt, no bias": opt(enable_bias=False, layer_norm_elementwise_affine=False),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("kind", "options"), [("layer", {}), ("model", {}), ("model", {"norm": False})], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_layers_and_models_are_composed_and_equal_autodiff(name, kind, options, dtype):
    ids = [5] if "one token" in name else [5, 17, 2, 88, 41, 7, 60]
    layer = {"layer": 0} if kind == "layer" else {}
    block = tp.block(tp.load_model(MODELS[name], dtype=dtype), kind, token_ids=ids, **layer, **options)
    J, other = tp.jacobian(block), tp.jacobian(block.function(), block.x)
    assert J.route.startswith("closed form")
    dense = other.dense()
    near = (1e-13 if dtype == "float64" else 5e-6) * float(torch.linalg.matrix_norm(dense, 2))
    X = torch.randn(J.shape[1], 3, dtype=J.dtype, generator=torch.Generator().manual_seed(1))
    assert float((J @ X - other @ X).norm()) <= near * float(X.norm())
    assert float((J.T @ X - other.T @ X).norm()) <= near * float(X.norm())
    assert float((J.dense() - dense).norm()) <= near * len(ids)
    assert J.energy() == pytest.approx(other.energy(), rel=1e-11 if dtype == "float64" else 1e-4)
    if place_of(block.model.config).causal(block.model.config):
        blocks = J.dense().reshape(len(ids), -1, len(ids), block.x.shape[1])
        assert all(not bool(blocks[t, :, t + 1 :].any()) for t in range(len(ids)))


def test_units_are_held_layer_by_layer():
    """The pattern of the block that was converted, not that of the signs in the other precision."""
    block = tp.block(tp.load_model(HF_MODELS["opt"]), "model", token_ids=[5, 17, 2])
    held = block.in_precision(torch.float64)
    flipped = tuple(1 - pattern for pattern in held.pattern)
    for parts, pattern in zip(held.layers, flipped, strict=True):
        parts.act.pattern = pattern
    other = tp.block(tp.load_model(HF_MODELS["opt"]), "model", token_ids=[5, 17, 2]).in_precision(torch.float64)
    turned = replace(held, pattern=flipped)
    expected = torch.func.jacrev(turned.function())(turned.x).reshape(63, 63)
    J = tp.jacobian(turned)
    assert J.route.startswith("closed form")
    assert torch.allclose(J.dense(), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    assert not torch.allclose(tp.jacobian(other).dense(), expected, rtol=1e-3)


def test_a_layer_with_an_unknown_module_stays_with_autodiff():
    model = opt()
    inner = model.decoder.layers[1].fc1

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    odd = Doubled(inner.in_features, inner.out_features, dtype=torch.float64)
    odd.load_state_dict(inner.state_dict())
    model.decoder.layers[1].fc1 = odd
    loaded = tp.load_model(model.eval())
    for kind, layer, route in (("layer", 1, "automatic"), ("model", None, "automatic"), ("layer", 0, "closed form")):
        block = tp.block(loaded, kind, layer=layer, token_ids=[5, 17, 2])
        assert tp.jacobian(block).route.startswith(route)


def test_a_layer_goes_by_its_active_units_where_they_are_few():
    model = opt(num_hidden_layers=1)
    with torch.no_grad():
        model.decoder.layers[0].fc1.bias -= 2.5
    block = tp.block(tp.load_model(model), "layer", layer=0, token_ids=[5, 17, 2, 88])
    J, other = tp.jacobian(block), tp.jacobian(block.function(), block.x)
    share = float((block.unit_calls()[0].y > 0).double().mean())
    assert 0 < share < 0.2
    many = torch.randn(J.shape[1], 40, dtype=J.dtype, generator=torch.Generator().manual_seed(1))
    for product, expected in ((J, other), (J.T, other.T)):
        wanted = expected @ many
        found = product @ many
        assert float((found - wanted).norm()) <= 1e-13 * float(wanted.norm())
        single = torch.stack([product @ column for column in many.T], 1)  # too few columns to gather for
        assert float((found - single).norm()) <= 1e-13 * float(wanted.norm())
        assert not torch.equal(found, single)


# ---- the transpose


@pytest.mark.parametrize("kind", ["mlp", "attn", "layer", "function"])
def test_a_transpose_is_an_operator_like_any_other(kind):
    if kind == "function":
        J = tp.jacobian(lambda x: torch.cat([x.sin(), x.cumsum(0)], -1), torch.linspace(0, 1, 15).double().view(5, 3))
    else:
        J = tp.jacobian(tp.block(tp.load_model(HF_MODELS["bert"]), kind, layer=1, token_ids=[5, 17, 2, 88]))
    A = J.dense()
    assert J.T.T is J
    assert J.T.shape == A.T.shape
    assert torch.equal(J.T.dense(), A.T)
    found = tp.svds(J.T, 1)
    expected = torch.linalg.svdvals(A)
    assert float(found.S[0]) == pytest.approx(float(expected[0]), rel=1e-8)
    assert found.U.shape == (A.shape[1], 1)
    y, x = torch.ones(A.shape[0], dtype=A.dtype), torch.ones(A.shape[1], dtype=A.dtype)
    assert torch.allclose(J.T.matvec(y), A.T @ y)
    assert torch.allclose(J.T.rmatvec(x), A @ x)
    assert torch.allclose(J.T @ y, torch.from_numpy(J.T.to_scipy() @ y.numpy()))
    assert J.T.energy() == pytest.approx(float(A.square().sum()), rel=1e-12)
    assert repr(J.T).endswith(".T")


def test_grams_of_long_rows_are_summed_in_parts():
    """As in exact integers, and closer than one long sum."""
    integers = torch.arange(3 * (2 * GRAM_COLUMNS + 5), dtype=torch.float64).reshape(3, -1) % 257
    assert torch.equal(sum_of_grams(integers), integers @ integers.T)
    rows = torch.randn(3, 2 * GRAM_COLUMNS + 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = rows.numpy().astype(np.longdouble)
    apart = np.abs(sum_of_grams(rows).numpy() - wide @ wide.T).max()
    assert apart <= 2e-14 * (wide[0] @ wide[0])
