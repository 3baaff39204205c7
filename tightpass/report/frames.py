"""The numbers of a run as pandas tables."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from tightpass.rank.spectrum import Spectrum
from tightpass.report.table import row


def frame(spectra: Sequence[Spectrum]) -> pd.DataFrame:
    """All numbers of the verdicts, indexed by job; singular values and floor in the units of J."""
    return pd.DataFrame([row(s) for s in spectra]).set_index("job")


def values(spectra: Sequence[Spectrum]) -> pd.DataFrame:
    """One row a singular value: job, index (from 1), value, label, and token where it belongs to one."""
    parts = []
    for s in spectra:
        columns = {"job": s.name, "index": range(1, len(s.values) + 1), "value": s.values, "label": s.labels}
        parts.append(pd.DataFrame(columns | ({} if s.blocks is None else {"token": s.blocks})))
    return pd.concat(parts, ignore_index=True)
