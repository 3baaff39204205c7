"""Random small blocks and functions against 200-digit Jacobians: every value, rank, label and bound (oracles/fuzzing.py).

    python benchmarks/fuzz.py                  # 6000 cases on all cores, a few minutes
    python benchmarks/fuzz.py --seeds 17 4711  # what comes of these, to look into; nothing is stored

Stored are counts, everything that was wrong (with its seed), refusals by their reasons, and how tight floors are.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections import Counter
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
from common import save
from oracles import fuzzing

CASES = 6000
SIDES = ("kind", "family", "dtype")


def run(seeds: range, processes: int) -> list[dict[str, Any]]:
    """The outcome of every seed; processes are started anew, since a fork does not survive threads."""
    out = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, outcome in enumerate(pool.imap(fuzzing.run_seed, seeds, chunksize=20), start=1):
            out.append(outcome)
            if done % 500 == 0:
                print(f"{done} of {len(seeds)}, {sum(bool(o['faults']) for o in out)} at fault", flush=True)
    return out


def spread(ratios: list[float]) -> dict[str, float]:
    quantiles = {"smallest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}
    return {"floors": len(ratios)} | {k: float(f"{np.quantile(ratios, q):.4g}") for k, q in quantiles.items() if ratios}


def tightness(outcomes: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Floor / (‖E‖₂ + eps·σ₁), by precision and confidence, where all values are known."""
    by: dict[str, list[float]] = {}
    for o in outcomes:
        if o["ratio"] is not None:
            by.setdefault(f"{o['case']['dtype']} / {o['confidence']}", []).append(o["ratio"])
    return {key: spread(ratios) for key, ratios in sorted(by.items())}


def report(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    judged = [o for o in outcomes if o["refusal"] is None]
    wrong = [o for o in judged if o["faults"]]
    names = ("seed", "faults", "confidence", "flag", "rank", "case")
    return {
        "cases": len(outcomes),
        "judged": len(judged),
        "wrong": len(wrong),
        "wrong_by_fault": dict(
            Counter(f"{o['faults'][0].split(':')[0]} / {o['case']['dtype']} / {o['confidence']}" for o in wrong)
        ),
        "kinks_on_the_wrong_side": sum(o["flipped"] > 0 for o in judged),
        "refusals": dict(Counter(o["refusal"] for o in outcomes if o["refusal"]).most_common()),
        "judged_by_case": fuzzing.counted(judged, *SIDES),
        "judged_by_flag": fuzzing.counted(judged, "dtype", "flag", "confidence"),
        "refused_by_case": fuzzing.counted([o for o in outcomes if o["refusal"]], *SIDES),
        "floor_over_truth": tightness(judged),
        "violations": [{name: o[name] for name in names} for o in wrong],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--seeds", type=int, nargs="+", help="only these, printed")
    asked = parser.parse_args()
    if asked.seeds:
        for seed in asked.seeds:
            print(fuzzing.run_seed(seed))
        return
    save("fuzz", report(run(range(asked.cases), asked.processes)))


if __name__ == "__main__":
    main()
