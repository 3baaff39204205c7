"""GPU: arrays shared without copies, drivers timed on the device at hand, and what to do when it is full."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from tightpass.arrays import on_host, to_cupy

Array = Any
Result = TypeVar("Result")
LIMIT_32_BIT = 18_900
"""cuSOLVER's dense SVD behind CuPy goes wrong in silence beyond about this many rows and columns (cupy#7611)."""


def size_class(shape: tuple[int, ...]) -> int:
    """Sizes that differ by less than a factor two share a choice of driver."""
    return int(min(shape[-2:])).bit_length()


CHOICES: dict[tuple[Any, ...], str] = {}
"""The fastest driver for each device, precision and size class, once timed."""


def fastest(key: tuple[Any, ...], candidates: list[tuple[str, Callable[[Any], Any]]], argument: Any) -> str:
    """The name of the candidate that runs fastest on an argument; timed once for each key, after a run to warm up."""
    if key not in CHOICES:
        seconds = {}
        for name, run in candidates:
            try:
                run(argument)
                start = time.perf_counter()
                run(argument)
                seconds[name] = time.perf_counter() - start
            except (
                ArithmeticError,
                RuntimeError,
                MemoryError,
                np.linalg.LinAlgError,
            ) as error:  # it cannot do this size: no candidate
                print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
        CHOICES[key] = min(seconds, key=lambda name: seconds[name]) if seconds else candidates[0][0]
    return CHOICES[key]


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
