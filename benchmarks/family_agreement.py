"""Every family's Jacobians against layers written out from their formulas, and by which route they are computed.

    python benchmarks/family_agreement.py

Tiny random models, float64 (`oracles/`): with whatever their configurations allow. The oracles are plain torch, from weights alone.
Prints the table of docs/families.md, and stores it.
"""

from __future__ import annotations

from typing import Any

import torch
from common import save
from oracles import decoder_models, encoder_models, encoder_oracles, family_blocks, family_models

import tightpass as tp
from tightpass.models.loading import Model
from tightpass.models.options import layers_with

KINDS = ("mlp", "attn", "head", "layer")


def encoder_function(name: str, model: Model, block: Any, layer: int) -> Any:
    call, heads = block.calls[0]["context"], model.shape.layers[layer].heads
    row, own = encoder_oracles.ROWS[name], block.layers[0].layer
    return family_blocks.function_of(
        encoder_oracles.Oracle(row, model.config, model.base, own, layer, heads, call.rotary), block
    )


def one(name: str, kind: str, layer: int) -> dict[str, Any]:
    """Largest difference of J of one block, in σ₁, and its route."""
    if name in encoder_models.CASES:
        model = encoder_model(name)
        head = model.shape.layers[0].heads - 1 if kind == "head" else None
        block = tp.block(model, kind, layer, head=head, **encoder_models.given_of(name))
        function = encoder_function(name, model, block, layer)
    else:
        block = family_blocks.block_of(name, kind, layer)
        function = family_blocks.function_of(family_blocks.oracle_of(name, block, layer), block)
    N, J = block.x.numel(), tp.jacobian(block)
    true = torch.func.jacrev(function)(block.x).reshape(-1, N)
    apart = float((J.dense() - true).abs().max() / torch.linalg.matrix_norm(true, 2))
    return {"difference": apart, "closed": J.form.closed}


loaded: dict[str, Model] = {}


def encoder_model(name: str) -> Model:
    if name not in loaded:
        loaded[name] = tp.load_model(encoder_models.made(name))
    return loaded[name]


def measured(name: str) -> dict[str, Any]:
    """Of one family, the worst layer of each kind."""
    encoder = name in encoder_models.CASES
    shape = (encoder_model(name) if encoder else family_blocks.loaded(name)).shape
    found: dict[str, Any] = {}
    for kind in KINDS:
        each = [one(name, kind, layer) for layer in layers_with(shape, kind)]
        found[kind] = {
            "difference": max(part["difference"] for part in each),
            "closed": sum(part["closed"] for part in each),
            "layers": len(each),
        }
    return found


def main() -> None:
    rows = {}
    assert decoder_models.DECODERS.keys() <= family_models.CASES.keys()
    for name in [*family_models.CASES, *encoder_models.CASES]:
        rows[name] = measured(name)
        print(name, {kind: f"{part['difference']:.0e}" for kind, part in rows[name].items()}, flush=True)
    worst = max(part["difference"] for row in rows.values() for part in row.values())
    print(f"largest: {worst:.1e}")
    save("family_agreement", {"families": rows, "largest": worst}, rates=False)


if __name__ == "__main__":
    main()
