"""One job: its Jacobian formed, stored, decomposed and judged; its shard and its record published."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tightpass.errors import InputError, VerificationError
from tightpass.evidence.collect import collect
from tightpass.evidence.judge import verdict
from tightpass.evidence.leading import DEFAULT_K, leading_spectrum
from tightpass.jacobians.checked import build_checked
from tightpass.jacobians.operator import Jacobian
from tightpass.models.capture import Captured
from tightpass.models.tokens import Tokens
from tightpass.rank.spectrum import Spectrum
from tightpass.runs.directory import record_path, shard_path
from tightpass.runs.jobs import Job
from tightpass.runs.made import made_here, provenance_of
from tightpass.spectra.batched import Factors
from tightpass.store import records
from tightpass.store.records import Common, Record
from tightpass.store.shards import Layout, Shard, write_shard


@dataclass(frozen=True)
class Workplace:
    """Where a process does its jobs: the run's directory, and the model's calls at the text's tokens."""

    directory: Path
    captured: Captured
    tokens: Tokens


def do(job: Job, place: Workplace) -> Record:
    """Publishes a job's shard, where it is kept, and its record.

    Raises VerificationError if a result fails its checks, InputError for a shard that is there already and is another's.
    """
    record = _computed(job, place)
    common = Common(provenance_of(place.captured.model, place.tokens, job), list(job.token_ids))
    records.save(record_path(place.directory, job.name), record, common)
    return record


def has_shard(directory: Path, job: Job) -> bool:
    """Whether the job's shard is there and whole enough to open; an unreadable one is made again.

    Raises InputError for a shard of other weights, another text or another version: shards never change.
    """
    path = shard_path(directory, job.name)
    if not path.is_file():
        return False
    try:
        shard = Shard(path)
    except VerificationError:
        return False
    if shard.identity != job.identity:
        raise InputError(f"{path} was made from other weights, another text or another version; choose another --out")
    return True


def _computed(job: Job, place: Workplace) -> Record:
    """The record of a job, from its published shard where there is one."""
    made = made_here(str(place.captured.model.device))
    seconds: dict[str, float] = {}
    if not job.question.forms_jacobian:
        found = _by_products(job, place, seconds)
    elif has_shard(place.directory, job):
        made["jacobian"] = "from its shard, which was there already"
        shard = Shard(shard_path(place.directory, job.name))
        factors = _jacobian(job, place).factors if job.block.kind == "mlp" else None
        found = _judged(job, shard, factors, seconds)
    else:
        found = _written(job, place, seconds)
    return Record(job.identity, found, seconds, made)


def _by_products(job: Job, place: Workplace, seconds: dict[str, float]) -> Spectrum:
    with timed(seconds, "block"):
        J = _jacobian(job, place)
    with timed(seconds, "spectrum"):
        return leading_spectrum(J, job.question.k or DEFAULT_K, job.question.vectors)


def _written(job: Job, place: Workplace, seconds: dict[str, float]) -> Spectrum:
    """By way of a shard, which is published where it is kept, and removed where not."""
    path = shard_path(place.directory, job.name)
    with timed(seconds, "block"):
        J = _jacobian(job, place)
    with timed(seconds, "jacobian, floor and storage"):
        layout = Layout(J.structure, J.tokens_out, J.tokens_in, J.d_out, J.d_in, job.question.dtype)
        x = J.x.cpu().numpy()
        writer = write_shard(path, layout, job.identity, x, lambda part: collect(J, part.write, part.panels).as_dict())
    try:
        if not job.question.discard_jacobian:
            with timed(seconds, "publishing"):
                shard = writer.publish()
        else:
            shard = Shard(writer.part)
        return _judged(job, shard, J.factors, seconds)
    finally:
        writer.discard()


def _jacobian(job: Job, place: Workplace) -> Jacobian:
    block = build_checked(place.captured, job.block)
    return Jacobian(block.function(), block.x, block.structure, block=block, memory=job.memory)


def _judged(job: Job, shard: Shard, factors: Factors | None, seconds: dict[str, float]) -> Spectrum:
    with timed(seconds, "spectrum"):
        return verdict(shard, shard.evidence, job.name, len(job.token_ids), job.question.vectors, factors, job.memory)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
