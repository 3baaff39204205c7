"""GPU: arrays shared without copies, drivers chosen for the device at hand, and what to do when it is full."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from tightpass.arrays import beside, dtype_name, on_host, to_cupy
from tightpass.spectra import drivers

Array = Any
Result = TypeVar("Result")
LIMIT_32_BIT = 18_900
"""cuSOLVER's dense SVD behind CuPy goes wrong in silence beyond about this many rows and columns (cupy#7611)."""


def size_class(shape: tuple[int, ...]) -> int:
    """k of sizes from 2^(k − 1) up to 2^k, which share a choice of driver."""
    return int(min(shape[-2:])).bit_length()


SAMPLE = 2048
"""Drivers are timed on Gaussian matrices up to this size."""


def fastest_dense(A: Array, candidates: Sequence[drivers.Candidate]) -> str:
    """The driver for matrices like A (CuPy's), by a sample of about its size or of `SAMPLE`, whichever is less."""
    name, size = _name_of_cupy(A.device.id), size_class(A.shape)

    def sample() -> Array:
        n = min(2 ** (size - 1), SAMPLE)
        return beside(np.random.default_rng(0).standard_normal((n, n)), A)

    return drivers.fastest(f"{name}, dense {dtype_name(A.dtype)} of 2^{size}", candidates, sample)


def fastest_batched(blocks: Array, candidates: Sequence[drivers.Candidate]) -> str:
    """The driver for blocks (k, m, n) like these (torch's)."""
    import torch

    name = torch.cuda.get_device_name(blocks.device)
    kind = f"{name}, batched {dtype_name(blocks.dtype)} of 2^{size_class(tuple(blocks.shape))}"
    return drivers.fastest(kind, candidates, lambda: blocks[: max(1, len(blocks) // 4)])


def _name_of_cupy(number: int) -> str:
    """Of a GPU, with its driver's version."""
    import cupy

    runtime = cupy.cuda.runtime
    return f"{runtime.getDeviceProperties(number)['name'].decode()}, driver {runtime.driverGetVersion()}"


def shared(tensor: Array) -> Array:
    """A CUDA tensor as CuPy's, sharing its memory; where CuPy is not installed a copy on the host, and one line says so."""
    if importlib.util.find_spec("cupy") is None:
        print("CuPy is not installed (extra cuda), so the SVD is done on the host", file=sys.stderr)
        return on_host(tensor)
    return to_cupy(tensor)


def cusolver(A: Array) -> Array:
    """CuPy's dense SVD, values only."""
    import cupy

    return cupy.linalg.svd(A, compute_uv=False)


def or_on_host(compute: Callable[[Array], Result], A: Array) -> Result:
    """compute(A), on a copy in the machine's own memory where the GPU's is too small; one line says so."""
    import cupy

    try:
        return compute(A)
    except cupy.cuda.memory.OutOfMemoryError:
        cupy.get_default_memory_pool().free_all_blocks()
        print(f"the GPU is too small for an SVD of {A.shape}; it is done on the host", file=sys.stderr)
        return compute(A.get())
