"""The usual way, the expert's way, and ours, on the MLP of an OPT-125M-shaped layer in float64.

    python benchmarks/naive.py

naive    torch.func.jacrev over the whole input, then one dense svdvals
expert   vmap(jacrev) per token and one batched svdvals: three lines for whoever knows the structure
ours     the Jacobian's blocks and their verified singular values; floor and storage apart
bare     T values-only SVDs of 768 x 768, and W1 and W2 applied to T·d columns: what must be paid

Random weights: times only. Every route's values are compared in the same run.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import fresh_process, interleaved, peak_since_reset, reset_peak, save, seconds, summary
from torch.func import jacrev, vmap
from transformers import OPTModel

import tightpass as tp
from tightpass.confidence import CERTAIN
from tightpass.evidence.collect import collect
from tightpass.jacobians.operator import Jacobian
from tightpass.jacobians.written import Written
from tightpass.models.sizes import opt_config
from tightpass.rank.records import Bound, Evidence, Part
from tightpass.spectra.exact import cross_check, singular_values
from tightpass.store.shards import Layout, ShardWriter

NAIVE_TOKENS, TOKENS = (2, 4, 8), (2, 4, 8, 16, 34, 64)
MEMORY_TOKENS = (128, 256)  # of ours alone, to see whether its memory has levelled off


def make_block(tokens: int):
    """Layer 0 of OPT-125M's shape; the vocabulary is cut, since the block does not see it."""
    config = opt_config("125m")
    config.update({"num_hidden_layers": 1, "vocab_size": 1000})
    torch.manual_seed(0)
    model = OPTModel._from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():  # trained weights are larger than freshly initialised ones
        for parameter in model.decoder.layers.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return tp.block(tp.load_model(model), "mlp", layer=0, token_ids=list(range(5, 5 + tokens)))


def naive(block):
    J = jacrev(block.function())(block.x).reshape(block.x.numel(), -1)
    return torch.linalg.svdvals(J).numpy()


def expert(block):
    f = block.function()
    J = vmap(jacrev(lambda row: f(row[None])[0]))(block.x)
    return np.sort(torch.linalg.svdvals(J).flatten().numpy())[::-1]


def jacobian_of(block) -> Jacobian:
    return Jacobian(block.function(), block.x, block.structure, block=block)


def ours(block):
    return singular_values(jacobian_of(block)).values


def floor_of(block):
    """What the floor adds: products in twice the precision, and what the SVD says of its error."""
    J = jacobian_of(block)
    written = Written.like(J)
    formed = seconds(lambda: [written.kept.append(panel) for panel in J.panels()])
    exact = singular_values(written)
    again = Written.like(J)
    both = seconds(lambda: collect(J, again.kept.append, again.panels))
    return both - formed + seconds(lambda: cross_check(exact))


def storage_of(block):
    """What storage adds: a shard written, synced, checked and published."""
    J = jacobian_of(block)
    panels = list(J.panels())
    with tempfile.TemporaryDirectory() as folder:

        def store():
            layout = Layout(J.structure, J.tokens_out, J.tokens_in, J.d_out, J.d_in, "float64")
            writer = ShardWriter(Path(folder) / "a.h5", layout, "benchmark", block.x.numpy())
            for panel in panels:
                writer.write(panel)
            energy = sum(float(panel.blocks.square().sum()) for panel in panels)
            part = Part("model arithmetic", 0.0, "not looked at: storage alone is timed", CERTAIN)
            size = Bound(min(layout.shape), "the matrix's size")
            writer.close(Evidence(energy, part, (size,), 0, None, "benchmark").as_dict())
            writer.publish()

        return seconds(store)


def bare(block):
    """One batched svdvals of T blocks, and the two weight products on T·d columns."""
    T, d = block.x.shape
    blocks = torch.randn(T, d, d, dtype=block.x.dtype)
    W1, W2 = block.layers[0].up.weight, block.layers[0].down.weight
    columns = torch.randn(d, T * d, dtype=block.x.dtype)

    def work():
        torch.linalg.svdvals(blocks)
        W2 @ (W1 @ columns)

    return work


def bare_one_per_core(block):
    """The same with one SVD per core, the faster way to run them."""
    from tightpass.spectra.lapack import gesdd
    from tightpass.spectra.threads import one_per_core

    T, d = block.x.shape
    blocks = torch.randn(T, d, d, dtype=block.x.dtype).numpy()
    W1, W2 = block.layers[0].up.weight, block.layers[0].down.weight
    columns = torch.randn(d, T * d, dtype=block.x.dtype)

    def work():
        one_per_core(gesdd, blocks)
        W2 @ (W1 @ columns)

    return work


ROUTES = {"naive": naive, "expert": expert, "ours": ours}


def memory_of(route: str, tokens: int) -> dict[str, float]:
    """Peak memory of one route in this fresh process, and what there was before it."""
    block = make_block(tokens)
    before = reset_peak()
    ROUTES[route](block)
    return {"before": before, "peak": peak_since_reset()}


def exponent(tokens, values) -> float:
    """Slope of log value against log T."""
    return float(np.polyfit(np.log(tokens), np.log(values), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", nargs=2, metavar=("ROUTE", "TOKENS"))
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of[0], int(args.memory_of[1]))))
        return

    cases = []
    for T in TOKENS:
        block = make_block(T)
        routes = {name: functools.partial(route, block) for name, route in ROUTES.items()}
        if T not in NAIVE_TOKENS:
            del routes["naive"]
        works = {**routes, "bare": bare(block), "bare, one SVD per core": bare_one_per_core(block)}
        times, answers = interleaved(works, args.rounds if T < 8 else max(3, args.rounds - 2))
        reference = answers.get("naive", answers["expert"])
        worst = {n: float(np.abs(answers[n] - reference).max() / reference[0]) for n in routes}
        if max(worst.values()) > 1e-12:
            raise RuntimeError(f"{T} tokens: the routes disagree, {worst}")
        memory = {name: fresh_process(__file__, "--memory-of", name, str(T)) for name in routes}
        cases.append(
            {
                "tokens": T,
                "seconds": times,
                "memory": memory,
                "floor_seconds": summary([floor_of(block) for _ in range(3)]),
                "storage_seconds": summary([storage_of(block) for _ in range(3)]),
                "worst_difference": worst,
                "ours_over_expert": times["ours"]["median"] / times["expert"]["median"],
                "ours_over_bare": times["ours"]["median"] / times["bare"]["median"],
                "ours_over_bare_one_per_core": times["ours"]["median"] / times["bare, one SVD per core"]["median"],
            }
        )
        print(
            T,
            {n: round(t["median"], 3) for n, t in times.items()},
            {n: f"{(m['peak'] - m['before']) / 2**20:.0f} MiB" for n, m in memory.items()},
            flush=True,
        )
    fits = {}
    for name in ROUTES:
        of = [case for case in cases if name in case["seconds"]]
        T = [case["tokens"] for case in of]
        fits[name] = {
            "time": exponent(T, [case["seconds"][name]["median"] for case in of]),
            "memory_added": exponent(
                T, [max(c["memory"][name]["peak"] - c["memory"][name]["before"], 2**20) for c in of]
            ),
        }
    beyond = {T: fresh_process(__file__, "--memory-of", "ours", str(T)) for T in MEMORY_TOKENS}
    print({T: f"{(m['peak'] - m['before']) / 2**20:.0f} MiB" for T, m in beyond.items()})
    save(
        "naive",
        {
            "memory_beyond": beyond,
            "shape": "opt-125m, mlp with its norm, float64, random weights",
            "cases": cases,
            "exponents": fits,
        },
    )


if __name__ == "__main__":
    main()
