"""Two runs: are their spectra and ranks different beyond their floors?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tightpass import doors
from tightpass.confidence import weakest
from tightpass.errors import InputError
from tightpass.rank.difference import Difference, difference
from tightpass.report.spread import spread
from tightpass.runs.opened import Run, open


@dataclass(frozen=True)
class Comparison:
    """differences   of every block that both runs have
    only         names of blocks that only the first, or only the second has
    unlike       what defines the Jacobians and is not the same, in words; empty unless forced
    """

    runs: tuple[Run, Run]
    differences: tuple[Difference, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    unlike: tuple[str, ...]

    @property
    def different(self) -> tuple[Difference, ...]:
        """Those beyond the floors."""
        return tuple(d for d in self.differences if d.different)

    @property
    def confidence(self) -> str:
        """How surely all floors of both runs hold at once, and with them what is said here."""
        return weakest(part for run in self.runs for d in self.differences for part in run[d.name].floor.parts)

    def measures(self) -> pd.DataFrame:
        """Every measure of both runs, A and B, and by how much it moves; indexed by (job, measure)."""
        both = spread([run.table() for run in self.runs], ["A", "B"])[["A", "B"]]
        return both.assign(change=both["B"] - both["A"])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "different": [d.name for d in self.different],
            "confidence": self.confidence,
            "unlike": list(self.unlike),
            "only": [list(names) for names in self.only],
            "blocks": [
                {**vars(d), "different": d.different, "floors": d.floors, "ranks": [vars(rank) for rank in d.ranks]}
                for d in self.differences
            ],
            "measures": json.loads(self.measures().reset_index().to_json(orient="records", double_precision=15)),
        }


def compare(first: str | Path, second: str | Path, force: bool = False) -> Comparison:
    """Compares two run directories.

    force   compare even where the Jacobians are of other weights, tokens, blocks or precisions

    Raises InputError for runs of different questions unless forced, and where no block is in both.
    """
    force = doors.flag("force", force)
    runs = (_single(first), _single(second))
    unlike = tuple(_unlike(*runs))
    if unlike and not force:
        raise InputError(
            f"the runs answer different questions ({'; '.join(unlike)}); --force compares them all the same"
        )
    names = [run.names for run in runs]
    common = [name for name in names[0] if name in names[1]]
    if not common:
        raise InputError(f"no block is in both runs: {', '.join(names[0][:4])} .. and {', '.join(names[1][:4])} ..")
    return Comparison(
        runs,
        tuple(difference(runs[0][name], runs[1][name]) for name in common),
        tuple(tuple(name for name in of if name not in common) for of in names),  # type: ignore[arg-type]
        unlike,
    )


def _single(directory: str | Path) -> Run:
    opened = open(directory)
    if not isinstance(opened, Run):
        raise InputError(f"{directory} holds a run for each of several prompts; compare two of {directory}/prompts/*")
    return opened


def _unlike(first: Run, second: Run) -> list[str]:
    """What defines the Jacobians and differs between two runs; not how, where or by whom they were computed."""
    found = []
    a, b = first.provenance, second.provenance
    if first.config.dtype == second.config.dtype:
        weights = ["weights_sha256"]
    else:  # the hash is of the weights as they were converted
        weights = ["model", "revision", "weights"]
    if any(a[key] != b[key] for key in weights):
        found.append(f"weights of {a['model']} ({a['weights']}) and {b['model']} ({b['weights']})")
    if first.token_ids != second.token_ids:
        found.append(f"{len(first.token_ids)} and {len(second.token_ids)} tokens, not the same ones")
    elif a.get("signal_sha256") != b.get("signal_sha256"):
        found.append(f"{a['tokens']} and {b['tokens']}, which are not the same")
    for key in ("block", "norm", "residual", "dtype"):
        mine, theirs = getattr(first.config, key), getattr(second.config, key)
        if mine != theirs:
            found.append(f"{key} {mine} and {theirs}")
    return found
