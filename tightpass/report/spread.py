"""How every measure moves between runs of the same blocks: prompts, precisions, numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

MEASURES = (
    "rank_low",
    "rank_high",
    "sigma_1",
    "stable_rank",
    "effective_rank",
    "participation",
    "k90",
    "k99",
    "k99.9",
    "cliff_index",
    "cliff_ratio",
    "knee_index",
    "knee_ratio",
)


def spread(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """Mean, standard deviation, lowest and highest of each measure, and its value in every run.

    tables   of `Run.table()`, over the same jobs; names of their columns here

    Indexed by (job, measure), for the jobs that all tables have; NaN where a run has no such number (no knee, say).
    """
    jobs = [job for job in tables[0].index if all(job in table.index for table in tables)]
    rows = {
        (job, measure): [pd.to_numeric(table.loc[job, measure], errors="coerce") for table in tables]
        for job in jobs
        for measure in MEASURES
    }
    index = pd.MultiIndex.from_tuples(rows, names=["job", "measure"])
    values = pd.DataFrame(list(rows.values()), index=index, columns=list(names), dtype=float)
    summary = pd.DataFrame(
        {"mean": values.mean(axis=1), "sd": values.std(axis=1), "low": values.min(axis=1), "high": values.max(axis=1)}
    )
    return pd.concat([summary, values], axis=1)
