"""The tables of docs/trust.md, from results/trust.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from common import read, table


def trust() -> dict[str, Any]:
    return read("trust")


ROUTE_NAMES = {
    "exact": "all values, E formed",
    "lanczos": "all values, ‖E‖₂ by Lanczos",
    "perturbed": "all values, perturbed computations (unknown pieces)",
    "topk": "leading values by products",
}


def floors() -> str:
    """By route and precision: how often below, and how far above the truth."""
    cases = trust()["floors"]["cases"]
    rows = []
    for route, words in ROUTE_NAMES.items():
        for dtype in ("float64", "float32"):
            chosen = [c for c in cases if c["route"] == route and c["dtype"] == dtype]
            ratios = sorted(c["ratio"] for c in chosen)
            nearest = min(c["floor"] / max(c["moved"], c["error"] if route != "topk" else 0.0) for c in chosen)
            rows.append(
                [words, dtype, str(len(chosen)), str(sum(c["below"] for c in chosen)), f"{nearest:.2f}"]
                + [f"{value:.3g}" for value in (statistics.median(ratios), ratios[-1])]
            )
    return table(
        ["floor", "precision", "blocks", "below the truth", "smallest floor / truth", "median floor / (‖E‖₂ + eps·σ₁)", "largest"],
        rows,
    )  # fmt: skip


def floors_in_words() -> str:
    document = trust()["floors"]
    exact = [c["ratio"] for c in document["cases"] if c["route"] == "exact"]
    demo = [c["ratio"] for c in document["cases"] if c["model"].startswith("demo")]
    return (
        f"With all values and E formed, over {len(exact)} blocks in both precisions, the floor is {statistics.median(exact):.1f} times "
        f"‖E‖₂ + eps·σ₁ in the median and {max(exact):.1f} at most; on the trained demo model, {min(demo):.1f} to {max(demo):.1f}."
    )


def hostile() -> str:
    rows = [
        [r["group"], r["dtype"], str(r["blocks"]), str(len(r["wrong"])), str(r["saturated"]), f"{r['median']:.2f}",
         f"{r['largest']:.2f}", str(sum(r["refused"].values()))]
        for r in trust()["hostile"]
    ]  # fmt: skip
    return table(
        ["blocks", "precision", "how many", "with anything wrong", "with saturated rows", "median floor / (‖E‖₂ + eps·σ₁)", "largest", "refused"],
        rows,
    )  # fmt: skip


def perturbed() -> str:
    p = trust()["perturbed"]
    return (
        f"Of {p['functions']} random functions the true ‖E‖₂ was {p['median']:.2g} times how far J moved in the median, {p['99 %']:.2g} times "
        f"at 99 %, and {p['largest']:.2g} times at most; the floor is {1 / p['at most']:g} times how far J moves."
    )


def fuzz() -> str:
    document = read("fuzz")
    rows = []
    for key, spread in document["floor_over_truth"].items():
        rows.append([key, str(spread["floors"]), *(f"{spread[name]:.3g}" for name in ("median", "99 %", "largest"))])
    counts = (
        f"{document['cases']} cases, {document['judged']} judged, {document['cases'] - document['judged']} refused; {document['wrong']} with "
        f"anything wrong."
    )
    return (
        counts
        + "\n\n"
        + table(["precision / confidence", "floors", "median floor / (‖E‖₂ + eps·σ₁)", "99 %", "largest"], rows)
    )


def coverage() -> str:
    document = trust()["coverage"]
    names = {
        "low_rank": "exact low rank",
        "slow_exponential": "slow exponential",
        "straddling": "clusters at the floor",
    }
    rows = []
    for decay, entry in document["table"].items():
        flags = entry["flags"]
        rows.append(
            [names.get(decay, decay), str(entry["cases"]), str(entry["thresholds"]), str(entry["missed"])]
            + [str(flags.get(flag, 0)) for flag in ("certified", "interval", "ambiguous")]
            + [str(entry["random_flags"].get("ambiguous", 0))]
        )
    total = [str(sum(int(row[i]) for row in rows)) for i in range(1, 8)]
    return table(
        ["spectrum", "matrices", "thresholds", "truth outside the interval", "certified at 2f", "interval", "ambiguous", "of these, moved at random"],
        [*rows, ["all", *total]],
    )  # fmt: skip


def broken() -> str:
    document = trust()["coverage"]
    words = dict.fromkeys(document["broken"], "thresholds at which the truth is missed")
    rows = [
        [name, f"{count} {'matrices with a wrong label' if 'swapped' in name else words[name]}"]
        for name, count in document["broken"].items()
    ]
    kept = f"{document['cases']} matrices: none missed, {document['not_certified']} of {document['gaps_of_10_floors']} gaps of 10 floors not certified, {document['mislabelled']} with a wrong label"
    return table(["variant", "what the tests see"], [["as it is", kept], *rows])


def svd() -> str:
    rows = [
        [f"{r['matrix']}, N = {r['size']}", f"{r['true']:.1f}", f"{r['bound']:.3g}", r["confidence"]]
        for r in trust()["svd_errors"]
    ]
    return table(["matrix, float64", "largest error of a value / eps·σ₁", "bound / eps·σ₁", "confidence"], rows)


def conventional() -> str:
    document = trust()["conventional"]
    names = ("max(m, n)·eps·σ₁", "error bound of the SVD", "true error of the SVD")
    rows = [[name, f"{document[name]['threshold']:.1e}", str(document[name]["count"])] for name in names]
    return table(["threshold", "", "computed values above it"], rows)


def spectra() -> str:
    rows = []
    for r in trust()["figure"]:
        low, high = r["rank"]
        rank = str(low) if low == high else f"{low}–{high}"
        s1 = r["sigma_1"]
        rows.append(
            [r["title"], r["dtype"], f"{rank} of {r['size']}", r["flag"], str(r["bound"]), f"{r['floor'] / s1:.1e}",
             f"{r['conventional'] / s1:.1e}", f"{r['smallest_signal'] / s1:.1e}",
             "–" if r["shelf"] is None else f"{r['shelf'] / s1:.0e}", str(r["exact_zeros"])]
        )  # fmt: skip
    return table(
        ["block", "precision", "rank", "flag", "bound", "floor/σ₁", "max(m, n)·eps", "smallest signal/σ₁", "shelf/σ₁", "exact zeros"],
        rows,
    )  # fmt: skip


SHOWN = {"rank_high": "rank", "stable_rank": "stable rank", "effective_rank": "effective rank", "k90": "90 %", "k99": "99 %",
         "sigma_1": "σ₁", "cliff_ratio": "cliff"}  # fmt: skip


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.1e}"


def sensitivity(block: str) -> Callable[[], str]:
    def made() -> str:
        document = trust()["sensitivity"][block]
        by = {key: {row["measure"]: row for row in document[key]} for key in document}
        tokens = [name for name in by["tokens"]["k90"] if name.isdigit()]
        rows = []
        for measure, name in SHOWN.items():
            p, t, many = (by[key][measure] for key in ("precision", "tokens", "prompts"))
            spread = (
                "–"
                if many["mean"] is None
                else f"{many['mean']:.4g} ± {many['sd']:.2g} ({many['low']:.4g} to {many['high']:.4g})"
            )
            rows.append([name, number(p["float64"]), number(p["float32"]), *(number(t[T]) for T in tokens), spread])
        return table(["measure", "float64", "float32", *(f"T = {T}" for T in tokens), "6 prompts of 20 tokens"], rows)

    return made


def falls() -> str:
    document = trust()["falls"]
    rows = [
        [f"none, {name}", str(entry["spectra"]), str(entry["found"])] for name, entry in document["none_there"].items()
    ]
    rows += [
        [f"tenfold after 30 values, over {width} {'value' if width == '1' else 'values'}", "100", str(hits)]
        for width, hits in document["found_of_100"].items()
    ]
    return table(["fall that is there", "spectra", "found"], rows)


TRUST_TABLES: dict[str, Callable[[], str]] = {
    "trust-floors": floors,
    "trust-floors-in-words": floors_in_words,
    "trust-hostile": hostile,
    "trust-fuzz": fuzz,
    "trust-perturbed": perturbed,
    "trust-coverage": coverage,
    "trust-broken": broken,
    "trust-svd": svd,
    "trust-conventional": conventional,
    "trust-spectra": spectra,
    "trust-falls": falls,
    "trust-mlp": sensitivity("mlp"),
    "trust-attn": sensitivity("attn"),
}
