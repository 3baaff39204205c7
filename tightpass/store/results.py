"""results.h5: the spectra and verdicts of a run's finished jobs, replaced atomically.

One dataset for all jobs, with dimensions job, index, rank and vector axes, as
`xarray.open_dataset("results.h5", engine="h5netcdf")` shows it.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tightpass.errors import VerificationError
from tightpass.rank.evidence import Evidence
from tightpass.rank.floor import Floor, Part
from tightpass.rank.interval import LABELS
from tightpass.rank.verdict import Spectrum
from tightpass.store.shards import sync

SCHEMA = 2


@dataclass(frozen=True)
class Record:
    """One finished job: its identity, spectrum, and seconds spent on each stage."""

    identity: str
    spectrum: Spectrum
    seconds: dict[str, float]


def save(path: Path, records: list[Record], provenance: dict[str, Any], token_ids: list[int]) -> None:
    """Writes all records under a unique name, syncs, reads back, renames."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        _dataset(records, provenance, token_ids).to_netcdf(part, engine="h5netcdf")
        sync(part)
        if len(load(part)[0]) != len(records):
            raise VerificationError(f"{part} does not read back what was written")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)


def _dataset(records: list[Record], provenance: dict[str, Any], token_ids: list[int]) -> xr.Dataset:
    spectra = [record.spectrum for record in records]
    dataset = xr.Dataset(
        {
            "singular_values": (("job", "index"), np.stack([s.values for s in spectra])),
            "label": (
                ("job", "index"),
                np.stack([s.codes for s in spectra]),
                {"flag_values": np.arange(3, dtype=np.int8), "flag_meanings": " ".join(LABELS)},
            ),
            "floor": (
                "job",
                [s.floor.total for s in spectra],
                {"long_name": "bound on the error of each singular value"},
            ),
            "rank_low": ("job", [s.rank.lo for s in spectra]),
            "rank_high": ("job", [s.rank.hi for s in spectra]),
            "rank_flag": ("job", [s.rank.flag for s in spectra]),
            "rank_confidence": (
                "job",
                [s.rank.confidence for s in spectra],
                {"long_name": "how surely the floor holds, and with it the flag"},
            ),
            "identity": ("job", [r.identity for r in records]),
            "detail": (
                "job",
                [json.dumps(_detail(r)) for r in records],
                {"long_name": "the rest of the verdict, JSON"},
            ),
            "token_id": ("token", np.array(token_ids, dtype=np.int64)),
        },
        coords={"job": [s.name for s in spectra]},
        attrs={"schema": SCHEMA, "provenance": json.dumps(provenance)},
    )
    if all(s.blocks is not None for s in spectra):
        dataset["value_token"] = (("job", "index"), np.stack([s.blocks for s in spectra]))  # type: ignore[misc]
    if all(s.U is not None for s in spectra):
        dataset["U"] = (("job", "output", "vector"), np.stack([s.U for s in spectra]))  # type: ignore[misc]
        dataset["Vh"] = (("job", "vector", "input"), np.stack([s.Vh for s in spectra]))  # type: ignore[misc]
        dataset["residual"] = (("job", "vector"), np.stack([s.residuals for s in spectra]))  # type: ignore[misc]
    return dataset


def _detail(record: Record) -> dict[str, Any]:
    s = record.spectrum
    return {
        "tokens": s.tokens,
        "floor": {"parts": [asdict(part) for part in s.floor.parts], "conventional": s.floor.conventional},
        "evidence": s.evidence.as_dict(),
        "method": s.method,
        "checks": s.checks,
        "total": s.total,
        "seconds": record.seconds,
    }


def load(path: Path) -> tuple[list[Record], dict[str, Any], list[int]]:
    """Records, provenance and token ids. Raises VerificationError for an unknown schema."""
    try:
        opened = xr.open_dataset(path, engine="h5netcdf")
    except (OSError, ValueError) as error:
        raise VerificationError(f"{path} cannot be read ({error}); delete it and run again, shards are kept") from error
    with opened as dataset:
        if "schema" not in dataset.attrs:
            raise VerificationError(
                f"{path} is not a results file of tightpass; delete it and run again, shards are kept"
            )
        if dataset.attrs["schema"] != SCHEMA:
            raise VerificationError(f"{path} has schema {dataset.attrs.get('schema')}, this version reads {SCHEMA}")
        dataset = dataset.load()
        records = [_record(dataset, i) for i in range(dataset.sizes["job"])]
        return records, json.loads(dataset.attrs["provenance"]), [int(t) for t in dataset["token_id"].values]


def _record(dataset: xr.Dataset, i: int) -> Record:
    detail = json.loads(str(dataset["detail"].values[i]))
    floor = detail["floor"]

    def row(name: str) -> Any:
        return dataset[name].values[i] if name in dataset else None

    spectrum = Spectrum(
        name=str(dataset["job"].values[i]),
        tokens=detail["tokens"],
        values=dataset["singular_values"].values[i],
        blocks=row("value_token"),
        floor=Floor(tuple(Part(**part) for part in floor["parts"]), floor["conventional"]),
        evidence=Evidence.from_dict(detail["evidence"]),
        method=detail["method"],
        checks=tuple(detail["checks"]),
        U=row("U"),
        Vh=row("Vh"),
        residuals=row("residual"),
        total=detail.get("total"),
    )
    return Record(str(dataset["identity"].values[i]), spectrum, detail["seconds"])


def check_derived(path: Path, s: Spectrum) -> None:
    """Raises VerificationError if a job's stored labels, floor or rank do not follow from its values."""
    with xr.open_dataset(path, engine="h5netcdf") as dataset:
        row = dataset.sel(job=s.name)
        same = (
            np.array_equal(row["label"].values, s.codes)
            and float(row["floor"]) == s.floor.total
            and (int(row["rank_low"]), int(row["rank_high"])) == s.rank.interval
            and str(row["rank_flag"].values) == s.rank.flag
            and ("rank_confidence" not in row or str(row["rank_confidence"].values) == s.rank.confidence)
        )
    if not same:
        raise VerificationError(f"{path}: labels, floor or rank of {s.name} do not follow from its singular values")
