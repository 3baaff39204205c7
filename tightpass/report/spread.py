"""How every measure moves between runs of the same blocks: prompts, precisions, numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tightpass import doors
from tightpass.errors import InputError

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
    Raises InputError for anything but tables of runs, and as many names.
    """
    _check(tables, names)
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


def _check(tables: Any, names: Any) -> None:
    if not isinstance(tables, list | tuple) or not tables:
        raise InputError(f"spread expects a list of tables of runs, got {doors.shown(tables)}")
    for table in tables:
        if not isinstance(table, pd.DataFrame) or not set(MEASURES) <= set(table.columns):
            raise InputError(f"spread expects what Run.table() returns, got a {type(table).__name__}")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(f"spread expects a list of names, got {doors.shown(names)}")
    if len(set(names)) != len(tables):
        raise InputError(f"spread expects a name of its own for each of {len(tables)} tables, got {doors.shown(names)}")
