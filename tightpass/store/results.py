"""results.h5: the spectra and verdicts of a run's finished jobs, replaced atomically.

One dataset for all jobs, with dimensions job, index, rank and vector axes, as
`xarray.open_dataset("results.h5", engine="h5netcdf")` shows it.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tightpass.errors import VerificationError
from tightpass.rank.evidence import Evidence
from tightpass.rank.floor import Floor
from tightpass.rank.interval import LABELS
from tightpass.rank.verdict import Spectrum
from tightpass.store.publish import published
from tightpass.store.stored import check_evidence, check_part, door, parsed

SCHEMA = 2


VARIABLES = {
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
PROVENANCE = {"jobs", "model", "revision", "weights", "weights_sha256", "tokens"}
"""What the attribute has of the run as a whole; older files have what made the last job beside it."""


@dataclass(frozen=True)
class Record:
    """One finished job: its identity, spectrum, seconds spent on each stage, and what made it (`provenance.made_here`)."""

    identity: str
    spectrum: Spectrum
    seconds: dict[str, float]
    made: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Detail:
    """What a job's `detail` holds as JSON, beside the arrays."""

    tokens: int
    floor: Floor
    evidence: Evidence
    method: str
    checks: tuple[str, ...]
    seconds: dict[str, float]
    total: int | None = None
    made: dict[str, Any] = field(default_factory=dict)


def save(path: Path, records: list[Record], provenance: dict[str, Any], token_ids: list[int]) -> None:
    """Writes all records under a unique name, reads back, syncs, renames."""
    with published(path) as part:
        _dataset(records, provenance, token_ids).to_netcdf(part, engine="h5netcdf")
        if len(load(part)[0]) != len(records):
            raise VerificationError(f"{part} does not read back what was written")


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
    return asdict(
        Detail(s.tokens, s.floor, s.evidence, s.method, s.checks, record.seconds, s.total, record.made),
    )


def load(path: Path) -> tuple[list[Record], dict[str, Any], list[int]]:
    """Records, provenance and token ids. Raises VerificationError for a damaged file and an unknown schema."""
    remedy = "delete it and run again, shards are kept"
    with door(path, remedy), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of files that are not ours: said below
        opened = xr.open_dataset(path, engine="h5netcdf")
    with opened as dataset, door(path, remedy):
        if "schema" not in dataset.attrs:
            raise VerificationError(f"{path} is not a results file of tightpass; {remedy}")
        if dataset.attrs["schema"] != SCHEMA:
            raise VerificationError(f"{path} has schema {dataset.attrs.get('schema')}, this version reads {SCHEMA}")
        if missing := VARIABLES - set(dataset.variables):
            raise ValueError(f"without {', '.join(sorted(missing))}")
        dataset = dataset.load()
        provenance = _provenance(dataset.attrs.get("provenance"))
        records = [_record(dataset, i, provenance) for i in range(dataset.sizes["job"])]
        for record in records:
            check_spectrum(record.spectrum)
        if not records:
            raise ValueError("without any job")
        return records, provenance, [int(t) for t in dataset["token_id"].values]


def check_spectrum(s: Spectrum) -> None:
    """Raises ValueError for values that no decomposition gives, or of tokens that there are not."""
    values = s.values
    if not bool(np.isfinite(values).all() and (values >= 0).all() and (np.diff(values) <= 0).all()):
        raise ValueError(f"singular_values of {s.name}: expected finite ones, none negative, from the largest down")
    if s.blocks is not None and not bool(((s.blocks >= 0) & (s.blocks < s.tokens)).all()):
        raise ValueError(f"value_token of {s.name}: expected tokens 0..{s.tokens - 1}")


def _provenance(text: Any) -> dict[str, Any]:
    """Raises ValueError where it is not there, or not whole."""
    found = json.loads(text) if isinstance(text, str) else None
    if not isinstance(found, dict) or PROVENANCE - set(found) or not isinstance(found["jobs"], list):
        raise ValueError(f"provenance: expected JSON with {', '.join(sorted(PROVENANCE))}")
    return found


def _record(dataset: xr.Dataset, i: int, provenance: dict[str, Any]) -> Record:
    name = str(dataset["job"].values[i])
    try:
        detail = parsed(Detail, dataset["detail"].values[i])
        check_evidence(detail.evidence)
        for part in detail.floor.parts:
            check_part(part)
        if not detail.floor.parts:
            raise ValueError("floor: expected at least one part")
    except ValueError as error:
        raise ValueError(f"detail of {name}: {error}") from None

    def row(name: str) -> Any:
        return dataset[name].values[i] if name in dataset else None

    spectrum = Spectrum(
        name=name,
        tokens=detail.tokens,
        values=dataset["singular_values"].values[i],
        blocks=row("value_token"),
        floor=detail.floor,
        evidence=detail.evidence,
        method=detail.method,
        checks=detail.checks,
        U=row("U"),
        Vh=row("Vh"),
        residuals=row("residual"),
        total=detail.total,
    )
    if spectrum.values.dtype.name not in ("float32", "float64") or not 0 < len(spectrum.values) <= spectrum.size:
        raise ValueError(f"singular_values: expected float32 or float64, and at most {spectrum.size} of them")
    made = detail.made or {key: value for key, value in provenance.items() if key not in PROVENANCE}
    return Record(str(dataset["identity"].values[i]), spectrum, detail.seconds, made)


def check_derived(path: Path, s: Spectrum) -> None:
    """Raises VerificationError if a job's stored labels, floor or rank do not follow from its values."""
    with xr.open_dataset(path, engine="h5netcdf") as dataset:
        row = dataset.sel(job=s.name)
        same = (
            np.array_equal(row["label"].values, s.codes)
            and math.isclose(float(row["floor"]), s.floor.total, rel_tol=1e-15)  # once summed without rounding up
            and (int(row["rank_low"]), int(row["rank_high"])) == s.rank.interval
            and str(row["rank_flag"].values) == s.rank.flag
            and ("rank_confidence" not in row or str(row["rank_confidence"].values) == s.rank.confidence)
        )
    if not same:
        raise VerificationError(f"{path}: labels, floor or rank of {s.name} do not follow from its singular values")
