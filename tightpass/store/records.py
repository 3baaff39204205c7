"""A finished job's record: its spectrum, what is known of it, and what made it. One small file, equal to the bit for one question
but for its group `made`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tightpass.errors import VerificationError
from tightpass.rank.floor import Floor
from tightpass.rank.interval import LABELS
from tightpass.rank.records import Evidence
from tightpass.rank.spectrum import Spectrum
from tightpass.store.hdf5 import create, put
from tightpass.store.publish import published
from tightpass.store.stored import check_evidence, check_part, door, parsed

SCHEMA = 1
REMEDY = "delete it and run again; all else is kept"
ARRAYS = {
    "singular_values": ("index",),
    "label": ("index",),
    "value_token": ("index",),
    "U": ("output", "vector"),
    "Vh": ("vector", "input"),
    "residual": ("vector",),
}
"""Datasets of a job, and their dimensions; those that a spectrum does not have are left out."""


@dataclass(frozen=True)
class Record:
    """One finished job: its identity, spectrum, seconds spent on each stage, and what made it (`provenance.made_here`)."""

    identity: str
    spectrum: Spectrum
    seconds: dict[str, float]
    made: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Common:
    """What all jobs of a run share: provenance (with the names of all jobs in order), and the token ids."""

    provenance: dict[str, Any]
    token_ids: list[int]


@dataclass(frozen=True)
class Detail:
    """What a job's attribute `detail` holds as JSON, beside the arrays."""

    tokens: int
    floor: Floor
    evidence: Evidence
    method: str
    checks: tuple[str, ...]
    total: int | None = None


def bytes_of(shape: tuple[int, int], values: int, vectors: int, itemsize: int) -> int:
    """Of a job's values and vectors."""
    return (values + vectors * sum(shape)) * itemsize


def arrays_of(s: Spectrum) -> dict[str, Any]:
    """What is stored of a spectrum as arrays, by name."""
    found = dict(zip(ARRAYS, (s.values, s.codes, s.blocks, s.U, s.Vh, s.residuals), strict=True))
    return {name: values for name, values in found.items() if values is not None}


def detail_of(s: Spectrum) -> str:
    return json.dumps(asdict(Detail(s.tokens, s.floor, s.evidence, s.method, s.checks, s.total)))


def write_job(group: h5py.Group, record: Record, common: Common) -> None:
    """One job into a group: arrays, `detail`, the hash of all that, and what made it in a group of its own."""
    s = record.spectrum
    for name, values in arrays_of(s).items():
        meaning = (
            {"flag_values": np.arange(3, dtype=np.int8), "flag_meanings": " ".join(LABELS)} if name == "label" else {}
        )
        put(group, name, values, ARRAYS[name], **meaning)
    group.attrs.update(identity=record.identity, detail=detail_of(s), content=content_hash(record, common))
    group.create_group("made").attrs.update(made=json.dumps(record.made), seconds=json.dumps(record.seconds))


def read_job(group: h5py.Group, name: str) -> Record:
    """What `write_job` wrote. Raises ValueError, KeyError or TypeError where it is not whole."""
    if missing := {"singular_values", "label", "made"} - set(group) | {"detail", "identity", "content"} - set(
        group.attrs
    ):
        raise ValueError(f"{name} without {', '.join(sorted(missing))}")
    try:
        detail = parsed(Detail, group.attrs["detail"])
    except ValueError as error:
        raise ValueError(f"detail of {name}: {error}") from None
    made = group["made"].attrs
    spectrum = spectrum_of(name, detail, {key: group[key][()] for key in ARRAYS if key in group})
    if not np.array_equal(group["label"][()], spectrum.codes):
        raise ValueError(f"the labels of {name} do not follow from its values")
    return Record(str(group.attrs["identity"]), spectrum, json.loads(made["seconds"]), json.loads(made["made"]))


def spectrum_of(name: str, detail: Any, arrays: dict[str, Any]) -> Spectrum:
    """A spectrum from its arrays and what stands beside them. Raises ValueError for what no computation gives."""
    try:
        check_evidence(detail.evidence)
        for part in detail.floor.parts:
            check_part(part)
        if not detail.floor.parts:
            raise ValueError("floor: expected at least one part")
    except ValueError as error:
        raise ValueError(f"detail of {name}: {error}") from None
    spectrum = Spectrum(
        name=name,
        tokens=detail.tokens,
        values=arrays["singular_values"],
        blocks=arrays.get("value_token"),
        floor=detail.floor,
        evidence=detail.evidence,
        method=detail.method,
        checks=detail.checks,
        U=arrays.get("U"),
        Vh=arrays.get("Vh"),
        residuals=arrays.get("residual"),
        total=detail.total,
    )
    check_spectrum(spectrum)
    return spectrum


def check_spectrum(s: Spectrum) -> None:
    """Raises ValueError for values that no decomposition gives, or of tokens that there are not."""
    values = s.values
    if values.ndim != 1 or values.dtype.name not in ("float32", "float64") or not 0 < len(values) <= s.size:
        raise ValueError(f"singular_values of {s.name}: expected float32 or float64, and at most {s.size} of them")
    if not bool(np.isfinite(values).all() and (values >= 0).all() and (np.diff(values) <= 0).all()):
        raise ValueError(f"singular_values of {s.name}: expected finite ones, none negative, from the largest down")
    if s.blocks is not None and not (
        s.blocks.shape == values.shape and bool(((s.blocks >= 0) & (s.blocks < s.tokens)).all())
    ):
        raise ValueError(f"value_token of {s.name}: expected tokens 0..{s.tokens - 1}, one for each value")


def content_hash(record: Record, common: Common) -> str:
    """SHA-256 over all of a record but what made it."""
    digest = hashlib.sha256()
    for part in (
        record.spectrum.name,
        record.identity,
        detail_of(record.spectrum),
        json.dumps(asdict(common), sort_keys=True),
    ):
        digest.update(part.encode() + b"\0")
    for name, values in arrays_of(record.spectrum).items():
        array = np.ascontiguousarray(values)
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


def save(path: Path, record: Record, common: Common) -> None:
    """Publishes a record, once it reads back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with published(path, check=load) as part, create(part) as file:
        write_job(file, record, common)
        put(file, "token_id", np.array(common.token_ids, dtype=np.int64), ("token",))
        file.attrs.update(
            record=SCHEMA,
            name=record.spectrum.name,
            provenance=json.dumps(common.provenance),
        )


def load(path: Path) -> tuple[Record, Common]:
    """A record. Raises VerificationError for a damaged file and an unknown schema."""
    with door(path, REMEDY), h5py.File(path, "r", locking=False) as file:
        if file.attrs.get("record") != SCHEMA:
            raise VerificationError(f"{path} is not a record that this version reads; {REMEDY}")
        record = read_job(file, str(file.attrs["name"]))
        common = Common(json.loads(file.attrs["provenance"]), [int(t) for t in file["token_id"][()]])
        check_content(file, record, common)
        return record, common


def check_content(group: h5py.Group, record: Record, common: Common) -> None:
    """Raises ValueError unless what was read is what was written."""
    if content_hash(record, common) != group.attrs["content"]:
        raise ValueError(f"the content of {record.spectrum.name} is not what was written")
