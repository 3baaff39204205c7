"""J·X and Jᵀ·Y of a whole layer: the composed closed form against automatic differentiation; and the rows of J.

    python benchmarks/layer.py [--rounds 7] [--columns 64] [--tokens 256] [--rows-of 34]

OPT-125M's shape, layer 0, random weights, float32: times only, and both answers compared in the same run. Half of random units
are active; a tenth, as in trained OPT models, is reached by lower biases. Automatic differentiation runs at its best chunk size,
and at the one that the operator would choose for it.

products   all columns at once
rows       the blocks of the middle and the last output token
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import interleaved, save, seconds
from jacobian import WIDTH, make_block

import tightpass as tp
from tightpass.jacobians.autodiff import Linearisation
from tightpass.jacobians.forms.autodiff import Autodiff

CHUNKS = (2, 4, 8, 16)


def both(active: float | None, tokens: int) -> tuple[Any, Any]:
    """The composed J of a layer, and its block."""
    block = make_block("layer", tokens, torch.float32, "cpu", active)
    J = tp.jacobian(block)
    if not J.route.startswith("closed form"):
        raise RuntimeError("the layer did not take its closed form")
    return J, block


def linearised(block: Any, chunk: int) -> Linearisation:
    return Linearisation(block.function(), block.x, chunk)


def products_case(active: float | None, tokens: int, columns: int, rounds: int) -> dict[str, Any]:
    J, block = both(active, tokens)
    X = torch.randn(J.shape[1], columns)
    tangents = X.T.reshape(columns, tokens, WIDTH).contiguous()
    sweep = {chunk: seconds(lambda c=chunk: linearised(block, c).push(tangents)) for chunk in CHUNKS}
    auto = linearised(block, min(sweep, key=sweep.__getitem__))
    works = {
        "ours": lambda: J @ X,
        "autodiff": lambda: auto.push(tangents),
        "autodiff, operator's chunk": lambda: linearised(block, J._whole.columns).push(tangents),
        "ours, transposed": lambda: J.T @ X,
        "autodiff, transposed": lambda: auto.pull(tangents),
    }
    times, answers = interleaved(works, rounds)
    worst = 0.0
    for ours, theirs in (("ours", "autodiff"), ("ours, transposed", "autodiff, transposed")):
        expected = answers[theirs].reshape(columns, -1).T
        worst = max(worst, float((answers[ours] - expected).abs().max() / expected.abs().max()))
    if worst > 1e-4:
        raise RuntimeError(f"products differ from automatic differentiation by {worst:.1e}")
    median = {name: value["median"] for name, value in times.items()}
    return {
        "tokens": tokens,
        "columns": columns,
        "active": float((block.unit_calls()[0].y > 0).float().mean()),
        "seconds": times,
        "chunk_sweep": sweep,
        "times_faster": median["autodiff"] / median["ours"],
        "times_faster_than_operators_chunk": median["autodiff, operator's chunk"] / median["ours"],
        "times_faster_transposed": median["autodiff, transposed"] / median["ours, transposed"],
        "worst_difference": worst,
    }


def rows_case(tokens: int, rounds: int) -> dict[str, Any]:
    J, block = both(None, tokens)
    auto = Autodiff(J._whole, J.structure, block.width)
    cases = []
    for t in (tokens // 2, tokens - 1):
        rows = range(t, t + 1)
        works = {
            "ours": lambda rows=rows: next(J.form.panels(rows)).blocks,
            "autodiff": lambda rows=rows: next(auto.panels(rows)).blocks,
        }
        with torch.no_grad():
            times, answers = interleaved(works, rounds)
        worst = float((answers["ours"] - answers["autodiff"]).abs().max() / answers["autodiff"].abs().max())
        if worst > 1e-4:
            raise RuntimeError(f"row {t} differs from automatic differentiation by {worst:.1e}")
        faster = times["autodiff"]["median"] / times["ours"]["median"]
        cases.append({"row": t, "seconds": times, "times_faster": faster, "worst_difference": worst})
    return {"tokens": tokens, "rows": cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rows-of", type=int, default=34)
    args = parser.parse_args()
    document: dict[str, Any] = {"shape": "opt-125m, one layer, random weights, float32", "products": []}
    for active in (None, 0.1):
        case = products_case(active, args.tokens, args.columns, args.rounds)
        print({k: v for k, v in case.items() if isinstance(v, float)}, flush=True)
        document["products"].append(case)
    document["rows"] = rows_case(args.rows_of, args.rounds)
    print([(case["row"], case["times_faster"]) for case in document["rows"]["rows"]], flush=True)
    save("layer", document)


if __name__ == "__main__":
    main()
