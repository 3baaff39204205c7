"""What trained weights look like: SmolLM2-135M and MiniLM, every layer, in float64.

    python benchmarks/real_weights.py --runs DIR

Hours on two cores, most of them for the attention of 34 tokens, whose Jacobians are 19 584². Runs in DIR are continued. Writes
results/real_weights.json and docs/figures/NAME-{ranks,spectra}.png, from which `gallery.py --tables-only` fills docs/gallery.md.
With `--finished` nothing is computed: blocks that are done in DIR are added to those that the results have.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from common import environment, read, save
from gallery import FIGURES

import tightpass as tp
from tightpass.report.table import as_json

QUESTIONS: dict[str, dict[str, Any]] = {
    "minilm-mlp-t34": {"model": "minilm", "block": "mlp", "tokens": 34},
    "minilm-attn-t16": {"model": "minilm", "block": "attn", "tokens": 16},
    "minilm-attn-t34": {"model": "minilm", "block": "attn", "tokens": 34, "layers": "0,5"},
    "smollm2-mlp-t34": {"model": "smollm2", "block": "mlp", "tokens": 34},
    "smollm2-attn-t16": {"model": "smollm2", "block": "attn", "tokens": 16},
    "smollm2-attn-t34": {"model": "smollm2", "block": "attn", "tokens": 34, "layers": "0,5,10,15,20,25"},
}


FIGURES_OF = {
    "minilm-attn-t16": ("spectra",),
    "smollm2-mlp-t34": ("spectra",),
    "smollm2-attn-t16": ("ranks", "spectra"),
    "smollm2-attn-t34": ("spectra",),
}
"""Those that are shown."""
COMMIT = environment(rates=False)["commit"]


def paths_of(run: Any) -> dict[str, Any]:
    """Of an attention, block by block: shares of ‖J‖_F² through the values and through the weights."""
    found = {r.spectrum.name: r.spectrum.evidence.explanation.paths for r in run.records}
    return {
        name: None if paths is None else {"energy": paths.energy, "directions": paths.directions}
        for name, paths in found.items()
    }


def half(values: np.ndarray) -> int:
    """How many directions carry half of ‖J‖_F²."""
    carried = np.cumsum(np.square(values, dtype=np.float64))
    return int(np.searchsorted(carried, carried[-1] / 2)) + 1


def added(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Blocks of a run beside those of before, which were computed elsewhere."""
    both = {**before, **found}
    for part in ("commit", "seconds", "paths", "half"):
        both[part] = {**before.get(part, {}), **found[part]}
    jobs = {job["job"]: job for job in [*before.get("jobs", []), *found["jobs"]]}
    both["jobs"] = [jobs[name] for name in sorted(jobs)]
    return both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--finished", action="store_true", help="compute nothing: gather the blocks that are done")
    args = parser.parse_args()
    FIGURES.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Any] = read("real_weights")["runs"] if args.finished else {}
    for name, question in QUESTIONS.items():
        place = args.runs / name
        if args.finished and not (place / "records").is_dir():
            continue
        run = tp.open(place) if args.finished else tp.run(**question, out=str(place), discard_jacobian=True)
        run.plot()
        for figure in FIGURES_OF.get(name, ()):
            shutil.copy(run.directory / f"{figure}.png", FIGURES / f"{name}-{figure}.png")
        found = {
            "question": question,
            "title": run.title,
            "commit": {s.name: COMMIT for s in run.spectra},
            "seconds": {r.spectrum.name: sum(r.seconds.values()) for r in run.records},
            "paths": paths_of(run),
            "half": {s.name: half(s.values) for s in run.spectra},
            "jobs": as_json(run.spectra),
        }
        runs[name] = added(runs.get(name, {}), found)
        print(name, [(j["job"], j["rank_low"], j["rank_high"], j["flag"]) for j in runs[name]["jobs"]], flush=True)
    save("real_weights", {"runs": runs}, rates=False)


if __name__ == "__main__":
    main()
