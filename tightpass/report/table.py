"""The tight-pass table: one row a job."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tightpass.rank.spectrum import Spectrum
from tightpass.report.fold import fold

if TYPE_CHECKING:  # takes half a second, where a table of it is not asked for
    import pandas as pd


def row(s: Spectrum) -> dict[str, Any]:
    """All numbers of a verdict; singular values and floor in the units of J."""
    m, bound = s.measures, s.evidence.bounds[0]
    knee = s.knees[0] if s.knees else None
    return {
        "job": s.name,
        "rank_low": s.rank.lo,
        "rank_high": s.rank.hi,
        "flag": s.rank.flag,
        "confidence": s.rank.confidence,
        "size": s.size,
        "known": len(s.values),
        "bound": bound.rank,
        "bound_reason": bound.reason,
        "sigma_1": float(s.values[0]),
        "floor": s.floor.total,
        "conventional": s.floor.conventional,
        "signal": int((s.codes == 2).sum()),
        "doubtful": int((s.codes == 1).sum()),
        "noise": int((s.codes == 0).sum()),
        "kinks": s.evidence.kinks,
        "nearest_certain_tau": s.rank.nearest,
        "cliff_index": None if s.cliff is None else s.cliff.index,
        "cliff_ratio": None if s.cliff is None else s.cliff.ratio,
        "knee_index": None if knee is None else knee.index,
        "knee_ratio": None if knee is None else knee.ratio,
        "knee_chance": None if knee is None else knee.chance,
        "stable_rank": m.stable_rank,
        "effective_rank": m.effective_rank,
        "participation": m.participation,
        "k90": m.energy_ranks[0],
        "k99": m.energy_ranks[1],
        "k99.9": m.energy_ranks[2],
    }


def rich_spread(summary: pd.DataFrame, title: str) -> Table:
    """Mean ± sd (low to high) over prompts, one row a job, for a terminal."""
    shown = {"rank_high": "rank", "stable_rank": "stable", "effective_rank": "effective", "k90": "90 %", "k99": "99 %",
             "knee_index": "knee @", "sigma_1": "σ₁"}  # fmt: skip
    table = Table(title=title, title_justify="left", caption=SPREAD_CAPTION, caption_justify="left")
    table.add_column("block", no_wrap=True)
    for name in shown.values():
        table.add_column(name, justify="right")
    for job in summary.index.get_level_values("job").unique():
        cells = []
        for measure in shown:
            row = summary.loc[(job, measure)]
            sd = "" if math.isnan(row["sd"]) else f" ± {row['sd']:.2g}"  # a single prompt has none
            missing = math.isnan(row["mean"])
            cells.append("–" if missing else f"{row['mean']:.4g}{sd}\n{row['low']:.4g} to {row['high']:.4g}")
        table.add_row(str(job), *cells)
    return table


SPREAD_CAPTION = (
    "mean ± standard deviation over prompts, and below lowest to highest · rank: upper end of the interval · "
    "stable: ‖J‖_F²/σ₁²\neffective: exp of the entropy of σ/Σσ · 90 %, 99 %: directions that carry that share of ‖J‖_F² · "
    "all measures, and every prompt's: --csv"
)


def rich_table(spectra: Sequence[Spectrum], title: str) -> Table:
    """The table for a terminal."""
    table = Table(title=title, title_justify="left", caption=CAPTION, caption_justify="left")
    table.add_column("block", no_wrap=True)
    for name in ("rank", "of", "bound"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("flag", no_wrap=True)
    for name in ("cliff", "knee", "stable", "90 %", "99 %", "σ₁", "floor/σ₁"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in spectra:
        m, sigma1 = s.measures, float(s.values[0])
        table.add_row(
            s.name,
            str(s.rank),
            str(s.size),
            str(s.evidence.bounds[0].rank),
            s.rank.words + (f", {s.evidence.kinks} kinks" if s.evidence.kinks else ""),
            "–" if s.cliff is None else fold(s.cliff.ratio),
            f"{fold(s.knees[0].ratio)} @ {s.knees[0].index}" if s.knees else "–",
            f"{m.stable_rank:.1f}",
            *(f"> {len(s.values)}" if k is None else str(k) for k in m.energy_ranks[:2]),
            f"{sigma1:.3g}",
            f"{s.floor.total / sigma1:.0e}" if sigma1 else "–",
        )
    return table


CAPTION = (
    "rank: directions above twice the noise floor · flag: whether the interval is one number, and how surely the floor holds\n"
    "bound: the most that structure allows · cliff: the fall into the floor\n"
    "knee: the steepest fall above it @ its index · stable: ‖J‖_F²/σ₁² · 90 %, 99 %: directions that carry that share of ‖J‖_F²"
)


def as_json(spectra: Sequence[Spectrum]) -> list[dict[str, Any]]:
    """The rows as plain JSON values, with the floor's parts and all knees."""
    rows = [row(s) for s in spectra]
    for found, s in zip(rows, spectra, strict=True):
        found["floor_parts"] = [vars(part) for part in s.floor.parts]
        found["bounds"] = [vars(bound) for bound in s.evidence.bounds]
        found["knees"] = [vars(knee) for knee in s.knees]
        found["method"] = s.method
        found["checks"] = list(s.checks)
        found["active"] = s.evidence.active
        found["agreement"] = s.evidence.agreement
        found["explanation"] = s.evidence.explanation.as_dict()
    return rows
