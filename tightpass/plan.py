"""What a run would do, from shapes alone: jobs, FLOPs, bytes on disk, peak memory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tightpass.config import Config, parse_layers
from tightpass.errors import DoesNotFitError, InputError
from tightpass.jacobian.autodiff import ARENA_BYTES
from tightpass.jacobian.forms import attention, mlp
from tightpass.jacobian.forms.base import PANEL_ELEMENTS, Cost
from tightpass.jacobian.forms.compose import cost_of_layers
from tightpass.kernels import native
from tightpass.memory import format_bytes, memory_limit
from tightpass.models.blocks import KINDS, Options
from tightpass.models.families import family_of
from tightpass.models.loading import DTYPES, WEIGHTS, check_dtype, choose_device, locate, parameter_count, read_config
from tightpass.models.tokens import check_count
from tightpass.prompts import texts_of
from tightpass.rank.evidence import KEPT_BYTES
from tightpass.rank.leading import DEFAULT_K
from tightpass.rank.verdict import check_k, check_method
from tightpass.spectra.batched import is_referenced
from tightpass.spectra.choose import choose, dense_bytes
from tightpass.spectra.exact import WIDENED
from tightpass.spectra.krylov import BASIS_BYTES, BLOCK
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


THREADS = 4096


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


def jobs(config: Config, heads: Sequence[int]) -> list[Options]:
    """The blocks of a run of a model whose layers have so many heads, in order. Raises InputError for what the model does not have."""
    if config.block not in KINDS:
        raise InputError(f"unknown block {config.block!r}; expected one of {', '.join(KINDS)}")
    if config.head is not None and config.block != "head":
        raise InputError(f"--head belongs to --block head, got --block {config.block}")
    if config.residual and config.block in ("layer", "model"):
        raise InputError(f"a {config.block} always contains its residuals; leave out --residual")
    common = {"norm": config.norm, "residual": config.residual}
    if config.block == "model":
        if config.layers.strip() != "all":
            raise InputError("--layers does not apply to --block model, which is all layers at once")
        return [Options("model", **common)]
    layers = parse_layers(config.layers, len(heads))
    if config.block != "head":
        return [Options(config.block, layer, **common) for layer in layers]
    for layer in layers:
        if config.head is not None and not 0 <= config.head < heads[layer]:
            raise InputError(f"layer {layer} of the model has heads 0..{heads[layer] - 1}, got {config.head}")
    chosen = [range(heads[layer]) if config.head is None else [config.head] for layer in layers]
    return [Options("head", layer, head, **common) for layer, own in zip(layers, chosen, strict=True) for head in own]


def plan(config: Config) -> Plan:
    """What `run` would do. Reads the model's configuration, never its weights."""
    check_settings(config)
    source = locate(config.model)
    return plan_for(config, read_config(source), source.name)


def prompt_count(config: Config) -> int:
    """How many texts the question is asked of."""
    return 1 if config.prompts is None else len(texts_of(config))


def plan_for(config: Config, architecture: Any, name: str) -> Plan:
    """The plan for a known architecture (a Hugging Face configuration)."""
    family = family_of(architecture)
    check_count(config.tokens, int(architecture.max_position_embeddings), name)
    heads = int(architecture.num_attention_heads)
    listed = jobs(config, [heads] * int(architecture.num_hidden_layers))
    T, d = config.tokens, int(architecture.hidden_size)
    d_ff = int(getattr(architecture, "ffn_dim", 0) or architecture.intermediate_size)
    structure: Structure = Dense()
    if config.block == "mlp":
        structure = BlockDiagonal()
    elif family.causal(architecture):
        structure = BlockLowerTriangular()
    size = DTYPES[config.dtype].itemsize
    blocks, N = structure.count(T, T), T * d
    diagonal = isinstance(structure, BlockDiagonal)
    depth = int(architecture.num_hidden_layers) if config.block == "model" else 1
    cost = _cost(config.block, T, d, d_ff, heads, family.causal(architecture), depth)
    decomposing = cost.blocks + 8 / 3 * (T * d**3 if diagonal else N**3)
    if config.forms_jacobian:
        route = str(choose(structure, (N, N), (d, d), config.dtype, memory_limit(config.memory)))
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
    weights = parameter_count(architecture) * size
    return Plan(
        model=name,
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
        + 20 * T * d * size * int(architecture.num_hidden_layers)  # what is captured of every layer
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


def check_settings(config: Config) -> None:
    """Raises InputError for options that are wrong whatever the model."""
    check_dtype(config.dtype)
    check_method(config.method)
    check_k(config.method, config.k, config.vectors)
    choose_device(config.device)
    if config.tokens < 1:
        raise InputError(f"tokens must be at least 1, got {config.tokens}")
    if config.weights not in WEIGHTS:
        raise InputError(f"weights must be one of {', '.join(WEIGHTS)}, got {config.weights!r}")
    if config.vectors < 0:
        raise InputError(f"vectors must be at least 0, got {config.vectors}")
    if config.threads is not None and config.threads < 1:
        raise InputError(f"threads must be at least 1, got {config.threads}")
    if config.threads is not None and config.threads > THREADS:
        raise InputError(f"threads must be at most {THREADS}, got {config.threads}")
    if config.text is not None and config.text_file is not None:
        raise InputError("give --text or --text-file, not both")
    if config.prompts is not None and (config.text is not None or config.text_file is not None):
        raise InputError("give --prompts or a text, not both")


def check_fits(planned: Plan, config: Config, directory: Path) -> None:
    """Raises DoesNotFitError, with the plan and what would fit, if memory or disk is too small."""
    limit = memory_limit(config.memory)
    if planned.memory > limit:
        smallest = -(-planned.memory // 2**20)
        raise DoesNotFitError(
            f"{len(planned.jobs)} jobs, {planned.jobs[0]} to {planned.jobs[-1]}, each {planned.shape[0]} × {planned.shape[1]} ({planned.route}), need "
            f"{format_bytes(planned.memory)} of memory, {format_bytes(limit)} are allowed.\n"
            f"The smallest that fits: --memory {smallest}MiB; fewer --tokens need less"
            + (
                ""
                if planned.structure == BlockDiagonal().name or not config.forms_jacobian
                else ", and so does --method topk"
            )
        )
    existing = next(p for p in [directory, *directory.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if planned.disk > free:
        raise DoesNotFitError(
            f"the Jacobians take {format_bytes(planned.disk)} on disk, {format_bytes(free)} are free in {existing}.\n"
            "Use --discard-jacobian, fewer --layers or --tokens, or another --out"
        )
