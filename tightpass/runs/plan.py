"""What a run would do, from shapes alone: jobs, FLOPs, bytes on disk, peak memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from tightpass.evidence.collect import KEPT_BYTES
from tightpass.evidence.leading import DEFAULT_K
from tightpass.jacobians.autodiff import ARENA_BYTES
from tightpass.jacobians.forms import attention, mlp
from tightpass.jacobians.forms.base import PANEL_ELEMENTS, Cost
from tightpass.jacobians.forms.compose import cost_of_layers
from tightpass.kernels import native
from tightpass.models.loading import DTYPES
from tightpass.models.options import Options
from tightpass.models.shape import Shape
from tightpass.runs.prompts import texts_of
from tightpass.runs.question import Config
from tightpass.spectra.batched import is_referenced
from tightpass.spectra.choose import choose, dense_bytes
from tightpass.spectra.exact import WIDENED
from tightpass.spectra.leading.krylov import BASIS_BYTES, BLOCK
from tightpass.spectra.verify import AUGMENTED, SMALL
from tightpass.structure import BlockDiagonal, BlockLowerTriangular, Dense, Structure

PROCESS_BYTES = 520 * 2**20
"""Interpreter, torch, transformers and HDF5 once loaded (`benchmarks/main_job.py` puts the planned peak beside the measured one)."""
ARENA_FACTOR = 6
"""Intermediates of one product with the Jacobian, in units of its arena."""


SLICED_BYTES = 80
"""Of each weight in slices, rows and columns, for products in twice float64's precision."""
REFERENCE_ARRAYS = 16
"""Float64 arrays of a matrix's size that `reference_values` holds."""
PROBED_ARRAYS = 6
"""And an SVD by probes, with the factors."""


@dataclass(frozen=True)
class Plan:
    """Names of the jobs, how many texts each is done for, and for the whole run: FLOPs, bytes on disk, peak bytes of
    memory."""

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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def prompt_count(config: Config) -> int:
    """How many texts the question is asked of."""
    return 1 if config.prompts is None else len(texts_of(config))


def plan_for(config: Config, shape: Shape, listed: Sequence[Options], limit: int) -> Plan:
    """The plan for a model of a shape, whose jobs may take so many bytes of memory."""
    T, d, heads = config.tokens, shape.width, max(layer.heads for layer in shape.layers)
    d_ff, count = max(layer.d_ff for layer in shape.layers), len(shape.layers)
    structure: Structure = Dense()
    if config.block == "mlp":
        structure = BlockDiagonal()
    elif shape.causal:
        structure = BlockLowerTriangular()
    size = DTYPES[config.dtype].itemsize
    blocks, N = structure.count(T, T), T * d
    diagonal = isinstance(structure, BlockDiagonal)
    depth = count if config.block == "model" else 1
    cost = _cost(config.block, T, d, d_ff, heads, shape.causal, depth)
    decomposing = cost.blocks + 8 / 3 * (T * d**3 if diagonal else N**3)
    if config.forms_jacobian:
        route = str(choose(structure, (N, N), (d, d), config.dtype, limit))
        working = _working_bytes(T, d, diagonal, size, max(2 * d_ff, 4 * d)) + min(KEPT_BYTES, blocks * d * d * size)
        if config.block == "attn":  # the leading triplet, whose share each head explains
            working += min(BASIS_BYTES, 2 * N * size * (1 + 26 * BLOCK))
        stored = (1 if config.discard_jacobian else len(listed)) * blocks * d * d * size + len(listed) * N * size
    else:
        k = min(config.k or DEFAULT_K, N)
        route = f"block Golub–Kahan–Lanczos, {k} of {N} values: products only, J is never formed"
        decomposing = 14.0 * k * cost.product  # about 14 columns a value
        basis = min(BASIS_BYTES, 2 * N * size * (8 * k + 2 * BLOCK))
        working = (
            basis + ARENA_FACTOR * max(ARENA_BYTES, T * max(2 * d_ff, 4 * d) * size) + 8 * N * max(k, BLOCK) * size
        )
        stored = len(listed) * k * size
    sliced = {"mlp": 2 * d * d_ff, "attn": 4 * d * d, "head": 4 * d * d}.get(
        config.block, depth * (4 * d * d + 2 * d * d_ff)
    )
    weights = shape.parameters * size
    return Plan(
        model=config.model,
        weights=config.weights,
        jobs=tuple(options.name for options in listed),
        shape=(N, N),
        structure=structure.name,
        route=route,
        texts=prompt_count(config),
        flops=prompt_count(config) * len(listed) * decomposing,
        disk=prompt_count(config) * (stored + len(listed) * N * 2 * config.vectors * size),
        memory=PROCESS_BYTES
        + weights
        + depth * (4 * d * d + 2 * d * d_ff) * 12  # the block's layers once more in each precision
        + 12 * cost.kept  # likewise
        + SLICED_BYTES * sliced
        + 20 * T * d * size * count  # what is captured of every layer
        + 2 * config.vectors * 2 * N * size * len(listed)  # U and Vh of all jobs, and once more while written
        + working,
    )


def _cost(block: str, T: int, d: int, d_ff: int, heads: int, causal: bool, depth: int) -> Cost:
    """Of the closed form of a block."""
    if block == "head":
        return attention.cost(T, d, 1, d // heads, causal)
    whole, feed = attention.cost(T, d, heads, d // heads, causal), mlp.cost(T, d, d_ff)
    pulled = T * d * (0.5 if causal else 1.0)
    return {"mlp": feed, "attn": whole}.get(block) or cost_of_layers(whole, feed, depth, pulled)


def _working_bytes(T: int, d: int, diagonal: bool, size: int, width: int) -> int:
    """Panels in both precisions and intermediates; for a dense SVD also J, which is reduced in place. Without compiled
    kernels LAPACK does it, and its answer is checked with three float64 arrays of J's size (up to `AUGMENTED` rows: the
    augmented matrix and its copy, four times J each)."""
    products = ARENA_FACTOR * max(ARENA_BYTES, T * width * size)
    if diagonal:
        panel = min(T * d * d, max(PANEL_ELEMENTS, d * d))
        each = REFERENCE_ARRAYS if is_referenced((d, d), T) else PROBED_ARRAYS
        # two panels in either precision, and those being compared; or one, and what its blocks' SVDs need
        return products + max(6 * panel * 8, panel * 8 + min(torch.get_num_threads(), T) * each * d * d * 8)
    dense = dense_bytes((T * d, T * d), np.dtype(f"float{8 * size}"))
    if T * d <= SMALL:
        dense += REFERENCE_ARRAYS * (T * d) ** 2 * 8
    elif T * d <= WIDENED and size == 4:
        dense += 2 * (T * d) ** 2 * 8
    if native.extension is None:
        dense = (T * d) ** 2 * (size + (80 if T * d <= AUGMENTED else 24))
    return products + 4 * d * T * d * 8 + dense
