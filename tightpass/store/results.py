"""results.h5: all records of a run in listed order, gathered by one writer and rebuilt at will.

The root is one dataset over jobs, as `xarray.open_dataset("results.h5", engine="h5netcdf")` shows it; each job's values lie in a
group of its own, `xarray.open_dataset("results.h5", engine="h5netcdf", group="L00.mlp")`, so that jobs differ in size and kind.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tightpass.errors import VerificationError
from tightpass.rank.spectrum import Spectrum
from tightpass.store import before
from tightpass.store.hdf5 import create, put, texts
from tightpass.store.publish import published
from tightpass.store.records import REMEDY, Common, Record, check_content, read_job, write_job
from tightpass.store.stored import door

SCHEMA = 3
VARIABLES = {"job", "floor", "rank_low", "rank_high", "rank_flag", "rank_confidence", "identity", "token_id"}
PROVENANCE = {"jobs", "model", "revision", "weights", "weights_sha256", "tokens"}


def save(path: Path, records: list[Record], common: Common) -> None:
    """Writes all records under a unique name, reads back, syncs, renames."""

    def check(part: Path) -> None:
        if len(load(part)[0]) != len(records):
            raise VerificationError(f"{part} does not read back what was written")

    with published(path, check) as part, create(part) as file:
        put(file, "job", [r.spectrum.name for r in records], ("job",))
        for name, (values, attributes) in _table(records).items():
            put(file, name, values, ("job",), **attributes)
        put(file, "token_id", np.array(common.token_ids, dtype=np.int64), ("token",))
        for record in records:
            write_job(file.create_group(record.spectrum.name), record, common)
        file.attrs.update(schema=SCHEMA, provenance=json.dumps(common.provenance))


def _table(records: list[Record]) -> dict[str, tuple[Any, dict[str, str]]]:
    """What the root says of each job, with attributes."""
    spectra = [record.spectrum for record in records]
    return {
        "floor": ([s.floor.total for s in spectra], {"long_name": "bound on the error of each singular value"}),
        "rank_low": ([s.rank.lo for s in spectra], {}),
        "rank_high": ([s.rank.hi for s in spectra], {}),
        "rank_flag": ([s.rank.flag for s in spectra], {}),
        "rank_confidence": (
            [s.rank.confidence for s in spectra],
            {"long_name": "how surely the floor holds, and with it the flag"},
        ),
        "identity": ([record.identity for record in records], {}),
    }


def load(path: Path) -> tuple[list[Record], Common]:
    """Records in order, and what they share. Raises VerificationError for a damaged file and an unknown schema."""
    with door(path, REMEDY), h5py.File(path, "r", locking=False) as file:
        schema = file.attrs.get("schema")
        if schema is None:
            raise VerificationError(f"{path} is not a results file of tightpass; {REMEDY}")
        if schema not in (SCHEMA, before.SCHEMA):
            raise VerificationError(f"{path} has schema {schema}, this version reads {before.SCHEMA} and {SCHEMA}")
        if schema == SCHEMA and (missing := VARIABLES - set(file)):
            raise ValueError(f"without {', '.join(sorted(missing))}")
        said = _provenance(file.attrs.get("provenance"))
        shared = said if schema == SCHEMA else {k: v for k, v in said.items() if k in PROVENANCE}
        common = Common(shared, [int(t) for t in file["token_id"][()]])
        if schema == before.SCHEMA:
            records = before.records(file, {k: v for k, v in said.items() if k not in PROVENANCE})
        else:
            records = [read_job(file[name], name) for name in texts(file["job"])]
            for record in records:
                check_content(file[record.spectrum.name], record, common)
        if not records:
            raise ValueError("without any job")
        return records, common


def _provenance(text: Any) -> dict[str, Any]:
    """Raises ValueError where it is not there, or not whole."""
    found = json.loads(text) if isinstance(text, str) else None
    if not isinstance(found, dict) or PROVENANCE - set(found) or not isinstance(found["jobs"], list):
        raise ValueError(f"provenance: expected JSON with {', '.join(sorted(PROVENANCE))}")
    return found


def check_derived(path: Path, s: Spectrum) -> None:
    """Raises VerificationError if a job's stored labels, floor or rank do not follow from its values."""
    with door(path, REMEDY), h5py.File(path, "r", locking=False) as file:
        at = texts(file["job"]).index(s.name)
        labels = file["label"][at] if file.attrs["schema"] == before.SCHEMA else file[s.name]["label"][()]
        stored = {name: file[name][at] for name in ("floor", "rank_low", "rank_high")}
        words = {name: texts(file[name])[at] for name in ("rank_flag", "rank_confidence") if name in file}
    same = (
        np.array_equal(labels, s.codes)
        and math.isclose(float(stored["floor"]), s.floor.total, rel_tol=1e-15)  # once summed without rounding up
        and (int(stored["rank_low"]), int(stored["rank_high"])) == s.rank.interval
        and words["rank_flag"] == s.rank.flag
        and words.get("rank_confidence", s.rank.confidence) == s.rank.confidence
    )
    if not same:
        raise VerificationError(f"{path}: labels, floor or rank of {s.name} do not follow from its singular values")
