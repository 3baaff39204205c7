"""What a run would do, from shapes alone: jobs, FLOPs, bytes on disk, peak memory.

Everything says itself what it takes, in the file that takes it; here it is put together in the order of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tightpass.evidence import collect, leading
from tightpass.jacobians import operator
from tightpass.jacobians.twice.block import cost_of as cost_of_twice
from tightpass.models import blocks, capture, streamed
from tightpass.models.loading import DTYPES, Source
from tightpass.models.options import Options
from tightpass.models.shape import Shape
from tightpass.runs.jobs import layers_of
from tightpass.runs.prompts import texts_of
from tightpass.runs.question import Config
from tightpass.spectra import exact
from tightpass.spectra.choose import choose
from tightpass.store import records
from tightpass.store.shards import Layout
from tightpass.structure import BlockDiagonal, BlockLowerTriangular, Dense, Structure
from tightpass.work import Work, kept

PROCESS_BYTES = 520 * 2**20
"""Interpreter, torch, transformers and HDF5 once loaded."""


@dataclass(frozen=True)
class Plan:
    """Names of the jobs, how many texts each is done for, and for the whole run: FLOPs, bytes on disk, peak bytes of memory,
    how many of those are the process and its model, once loaded, and whether the model's layers are read from the files one at a
    time, since all together they do not fit."""

    model: str
    weights: str
    jobs: tuple[str, ...]
    texts: int
    shape: tuple[int, int]
    structure: str
    route: str
    flops: float
    disk: int
    memory: int
    loaded: int
    in_turn: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def prompt_count(config: Config) -> int:
    """How many texts the question is asked of."""
    return 1 if config.prompts is None else len(texts_of(config))


def plan_for(config: Config, shape: Shape, listed: Sequence[Options], limit: int, source: Source | None) -> Plan:
    """The plan for a model of a shape, whose jobs may take so many bytes of memory; in turn only where it does not fit whole.

    source   where its files are, if it has any
    """
    files = None if config.weights == "random" else source
    label, stored = (config.weights, 53) if files is None else (files.stored_as, files.digits)
    whole = _planned(config, shape, listed, limit, label, stored, in_turn=False)
    if whole.memory <= limit or files is None or config.block == "model":
        return whole
    return _planned(config, shape, listed, limit, label, stored, in_turn=True)


def _planned(
    config: Config, shape: Shape, listed: Sequence[Options], limit: int, weights: str, stored: int, in_turn: bool
) -> Plan:
    """Of weights that are called so, and were stored with so many binary digits."""
    T, d = config.length, shape.width
    structure, size = structure_of(config.block, shape), DTYPES[config.dtype].itemsize
    layout = Layout(structure, T, T, d, d, config.dtype)
    job = _job(config, shape, layout, limit, stored)
    values = min(layout.shape) if config.forms_jacobian else _k(config, layout)
    results = len(listed) * records.bytes_of(layout.shape, values, config.vectors, size)
    model = streamed.kept_bytes(shape, T, size) if in_turn else shape.parameters * size
    loaded = PROCESS_BYTES + model
    calls = capture.work_of(shape, T, size, layers_of(listed) or range(len(shape.layers)))
    if in_turn:
        calls = calls.then(streamed.work_of_turns(shape, size))
        job = streamed.work_of_held(shape, size).then(job).dropped()
    run = calls.then(kept(2 * results), job)  # results are read back as they are written
    shards = (1 if config.discard_jacobian else len(listed)) * layout.bytes if config.forms_jacobian else 0
    return Plan(
        model=config.model,
        weights=weights,
        jobs=tuple(options.name for options in listed),
        shape=layout.shape,
        structure=structure.name,
        route=_route(config, layout, limit),
        texts=prompt_count(config),
        flops=prompt_count(config) * len(listed) * job.flops,
        disk=prompt_count(config) * (shards + results),
        memory=loaded + run.peak,
        loaded=loaded,
        in_turn=in_turn,
    )


def structure_of(kind: str, shape: Shape) -> Structure:
    """Of a block of some kind."""
    if kind == "mlp":
        return BlockDiagonal()
    return BlockLowerTriangular() if shape.causal else Dense()


def _job(config: Config, shape: Shape, layout: Layout, limit: int, stored: int) -> Work:
    """One job: its block, Jacobian, evidence and spectrum."""
    kind, T, size = config.block, config.length, DTYPES[config.dtype].itemsize
    form, twice = operator.cost_of(kind, T, shape, size), cost_of_twice(kind, T, shape, size, stored)
    made = blocks.work_of_checks(shape, kind, T, size).then(operator.work_of(form, kind, T, shape, size))
    if not config.forms_jacobian:
        return made.then(leading.work_of(form, twice, kind, T, shape, _k(config, layout), size)).dropped()
    reading, block = layout.work_of_reading(), (layout.d_out, layout.d_in)
    threads = config.threads or torch.get_num_threads()
    diagonal = isinstance(layout.structure, BlockDiagonal)
    return made.then(
        collect.work_of(form, twice, kind, T, shape, size, layout.bytes, reading),
        exact.work_of(layout.structure, layout.shape, block, layout.dtype, reading, limit, threads),
        exact.work_of_vectors(layout.shape, block, size, config.vectors, reading, diagonal),
    ).dropped()


def _k(config: Config, layout: Layout) -> int:
    return min(config.k or leading.DEFAULT_K, *layout.shape)


def _route(config: Config, layout: Layout, limit: int) -> str:
    """In words."""
    if config.forms_jacobian:
        return str(choose(layout.structure, layout.shape, (layout.d_out, layout.d_in), config.dtype, limit))
    k, total = _k(config, layout), min(layout.shape)
    return f"block Golub–Kahan–Lanczos, {k} of {total} values: products only, J is never formed"
