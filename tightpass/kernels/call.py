"""One call of a kernel: its arguments are checked, then the compiled one runs, or the caller takes the reference.

Arrays are NumPy's, torch's or CuPy's, all of one kind, one device and one precision (float32 or
float64). Axes of rows must be contiguous. What each operation computes is in `csrc/ops.h`, and
plainly in `reference/`. Raises InputError, naming the argument, before any native code runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from array_api_compat import array_namespace

from tightpass.arrays import DTYPES, kind, placement
from tightpass.errors import InputError, InstallationError
from tightpass.kernels import native
from tightpass.kernels.forks import check_threads
from tightpass.kernels.streams import current_stream, device_number, on_device, wait_for

Array = Any
CORES = os.cpu_count() or 1


class Call:
    """The checked arguments of one call; the first array decides precision and device."""

    def __init__(self, operation: str, name: str, first: Array) -> None:
        found = placement(name, first)
        if found.dtype not in DTYPES:
            raise InputError(f"{name}: expected float32 or float64, got {found.dtype}")
        self.operation, self.first, self.leader = operation, first, f"{name} ({found.dtype}, {found.device})"
        self.dtype, self.device = found.dtype, found.device
        self.given: dict[str, Any] = {}
        self.extents: dict[str, tuple[int, int]] = {}  # addresses of the first byte, and after the last one
        self.outputs: list[str] = []
        self.kept: list[Array] = []  # addresses outlive no array: the indices made here live as long as the call

    def add(
        self, name: str, array: Array | None, shape: Sequence[int], rows: bool = False, optional: bool = False
    ) -> None:
        """An array of a shape; with `rows`, its last axis must be contiguous. None is absent, where that is allowed."""
        if array is None and optional:
            self.given[name] = None
            return
        if isinstance(array, torch.Tensor) and array.is_neg():
            raise InputError(f"{name}: expected plain values, got a tensor with a pending negation; use resolve_neg()")
        if kind(array) != kind(self.first):
            raise InputError(f"{name}: expected a {kind(self.first)} like {self.leader}, got a {kind(array)}")
        found = placement(name, array)
        if found.dtype != self.dtype:
            raise InputError(f"{name}: expected {self.dtype} as {self.leader}, got {found.dtype}")
        if found.device != self.device:
            raise InputError(f"{name}: expected it on {self.device} as {self.leader}, got {found.device}")
        if found.shape != tuple(shape):
            raise InputError(f"{name}: expected shape {tuple(shape)}, got {found.shape}")
        if rows and found.shape[-1] > 1 and found.strides[-1] != 1:
            raise InputError(f"{name}: its last axis must be contiguous, got strides {found.strides} in elements")
        self.given[name] = found.handed_over
        self.extents[name] = found.extent

    def add_output(self, array: Array, shape: Sequence[int], name: str = "out") -> None:
        """An array that is written: its rows contiguous, and no two of its entries in one place."""
        self.add(name, array, shape, rows=True)
        self.outputs.append(name)
        found = placement(name, array)
        if not found.writable:
            raise InputError(f"{name}: expected an array that can be written to, got a read-only one")
        reach = 1
        for step, extent in sorted((s, n) for s, n in zip(found.strides, found.shape, strict=True) if n > 1):
            if step < reach:
                raise InputError(
                    f"{name}: entries overlap, or run backwards: strides {found.strides} of shape {found.shape}"
                )
            reach = step * (extent - 1) + reach

    def add_indices(self, name: str, values: Array | None, count: int, below: int) -> Array | None:
        """`count` integers in [0, below), as an int64 array beside the others."""
        if values is None:
            self.given[name] = None
            return None
        plain = as_numpy(values)
        if plain.shape != (count,) or plain.dtype.kind not in "iu":
            raise InputError(f"{name}: expected {count} integers, got shape {plain.shape} of {plain.dtype}")
        if count and not (plain.min() >= 0 and plain.max() < below):
            raise InputError(f"{name}: expected indices in [0, {below}), got {plain.min()} .. {plain.max()}")
        indices = as_kind_of(plain.astype(np.int64), self.first)
        self.given[name] = placement(name, indices).handed_over
        self.kept.append(indices)
        return indices

    def check_apart(self, may_overlap: str | None = None) -> None:
        """Raises InputError if an array shares memory with one that is written, but the one that may."""
        for output in self.outputs:
            low, high = self.extents[output]
            for name, (start, end) in self.extents.items():
                if name not in (output, may_overlap) and start < high and low < end:
                    raise InputError(f"{name}: shares memory with {output}; give a copy of one of them")

    def kernel(self) -> Any | None:
        """The compiled kernel, or None where there is none for this device: the whole extension may be absent, and on a GPU
        the library may have the operation.

        Raises InstallationError where the extension lacks one of the processor's.
        """
        on_gpu = self.device.startswith("cuda")
        if native.extension is None or not (self.device == "cpu" or (on_gpu and native.extension.cuda_built())):
            return None
        compiled = getattr(native.extension, f"{'cuda' if on_gpu else 'cpu'}_{self.operation}_{self.dtype}", None)
        if compiled is None and not on_gpu:
            raise InstallationError(
                f"the compiled kernels lack {self.operation} in {self.dtype}: they are not of this version of the "
                f"package.\nInstall it anew, or set {native.SWITCH}=reference to do without them"
            )
        return compiled

    def run(self, threads: int | None, stream: int | None = None) -> bool:
        """Runs the compiled kernel; False where there is none for this device."""
        on_gpu = self.device.startswith("cuda")
        if stream is not None and not on_gpu:
            raise InputError(f"stream: expected None for arrays on {self.device}, got {stream}")
        compiled = self.kernel()
        if compiled is None:
            return False
        if on_gpu:
            with on_device(self.first):
                own = current_stream(self.first)
                queue = own if stream is None else stream
                if queue != own:
                    wait_for(own, self.first)  # which brings the indices made here
                compiled(self.given, queue, device_number(self.first))
                if queue != own:
                    wait_for(queue, self.first)  # before they go
        else:
            compiled(self.given, self.threads(threads))
        return True

    @staticmethod
    def threads(wanted: int | None) -> int:
        """As many as torch uses where none are asked for. Raises InputError where they would never come."""
        count = torch.get_num_threads() if wanted is None else wanted
        if count < 1:
            raise InputError(f"threads: expected at least 1, got {count}")
        count = min(count, CORES)  # more threads than the system grants would end the process
        check_threads(count)
        return count


def shape_of(name: str, array: Array, axes: int, expected: str) -> tuple[int, ...]:
    """The shape of an array of so many axes. Raises InputError for another number, with what was expected in words."""
    shape = placement(name, array).shape
    if len(shape) != axes:
        raise InputError(f"{name}: expected {expected}, got shape {shape}")
    return shape


def as_kind_of(values: np.ndarray, like: Array) -> Array:
    """A NumPy array as one of the kind and on the device of `like`, in its own precision."""
    if isinstance(like, torch.Tensor):
        return torch.from_numpy(values).to(like.device)
    if isinstance(like, np.ndarray):
        return values
    return array_namespace(like).asarray(values, device=like.device)  # not on the device that happens to be current


def as_numpy(values: Any) -> np.ndarray:
    """Indices of any kind as a NumPy array; an empty sequence has no kind of its own."""
    if isinstance(values, torch.Tensor):
        values = values.cpu()
    elif hasattr(values, "__cuda_array_interface__"):
        values = values.get()
    plain = np.ascontiguousarray(values)
    return plain if plain.size else plain.astype(np.int64)
