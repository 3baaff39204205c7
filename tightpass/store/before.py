"""results.h5 as it was before jobs had groups of their own: one array over all jobs, which had to be of one size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h5py

from tightpass.rank.floor import Floor
from tightpass.rank.records import Evidence
from tightpass.store.hdf5 import texts
from tightpass.store.records import ARRAYS, Record, spectrum_of
from tightpass.store.stored import parsed

SCHEMA = 2
VARIABLES = {
    "job",
    "singular_values",
    "label",
    "floor",
    "rank_low",
    "rank_high",
    "rank_flag",
    "identity",
    "detail",
    "token_id",
}


@dataclass(frozen=True)
class Detail:
    """What `detail` held as JSON: seconds and what made the job as well."""

    tokens: int
    floor: Floor
    evidence: Evidence
    method: str
    checks: tuple[str, ...]
    seconds: dict[str, float]
    total: int | None = None
    made: dict[str, Any] = field(default_factory=dict)


def records(file: h5py.File, made: dict[str, Any]) -> list[Record]:
    """All records of a file.

    made   what made the last job, as still older files have it, of all of them
    """
    if missing := VARIABLES - set(file):
        raise ValueError(f"without {', '.join(sorted(missing))}")
    details, identities = texts(file["detail"]), texts(file["identity"])
    found = []
    for i, name in enumerate(texts(file["job"])):
        try:
            detail = parsed(Detail, details[i])
        except ValueError as error:
            raise ValueError(f"detail of {name}: {error}") from None
        spectrum = spectrum_of(name, detail, {key: file[key][i] for key in ARRAYS if key in file})
        found.append(Record(identities[i], spectrum, detail.seconds, detail.made or made))
    return found
