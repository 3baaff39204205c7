"""Every family's Jacobians against layers written out from their formulas, and by which route they are computed.

    python benchmarks/family_agreement.py

Tiny random models, float64 (`oracles/`): with whatever their configurations allow. The oracles are plain torch, from weights alone.
Prints the table of docs/families.md, and stores it.
"""

from __future__ import annotations

from typing import Any

from common import save
from oracles import decoder_models, encoder_blocks, encoder_models, family_blocks, family_models

import tightpass as tp
from tightpass.models.options import layers_with


def one(name: str, kind: str, layer: int) -> dict[str, Any]:
    """Largest difference of J of one block, in σ₁, and its route."""
    blocks = encoder_blocks if name in encoder_models.CASES else family_blocks
    block = blocks.block_of(name, kind, layer)
    function = family_blocks.function_of(blocks.oracle_of(name, block, layer), block)
    return {"difference": family_blocks.difference(block, function), "closed": tp.jacobian(block).form.closed}


def measured(name: str) -> dict[str, Any]:
    """Of one family, the worst layer of each kind."""
    shape = (encoder_blocks if name in encoder_models.CASES else family_blocks).loaded(name).shape
    found: dict[str, Any] = {}
    for kind in family_blocks.KINDS:
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
