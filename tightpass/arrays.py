"""Arrays of NumPy, torch and CuPy: the one file that tells them apart. The latter two are not imported for it: an array of
theirs can only come from whoever has."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from tightpass.errors import InputError

Array = Any
DTYPES = ("float32", "float64")


def is_torch(array: Array) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def is_cupy(array: Array) -> bool:
    return hasattr(array, "__cuda_array_interface__") and not is_torch(array)


def on_host(array: Array) -> NDArray[Any]:
    """Any array as NumPy's, copied where it lies on a GPU."""
    if isinstance(array, np.ndarray):
        return array
    return array.get() if hasattr(array, "get") else array.detach().cpu().numpy()  # type: ignore[no-any-return]


def beside(values: NDArray[Any], like: Array) -> Array:
    """A NumPy array as one of the kind, precision and device of `like`."""
    xp = array_namespace(like)
    if isinstance(like, np.ndarray):
        return values.astype(like.dtype, copy=False)
    return xp.asarray(values, dtype=like.dtype, device=like.device)


def to_cupy(tensor: Array) -> Array:
    """A CUDA tensor as CuPy's, sharing its memory (DLPack)."""
    import cupy

    return cupy.from_dlpack(tensor)


def all_finite(A: Array) -> bool:
    return bool(array_namespace(A).isfinite(A).all())


@lru_cache(maxsize=64)
def dtype_name(dtype: Any) -> str:
    """ "float32" for a dtype of any library; to spell it anew takes as long as the SVD of a small matrix."""
    return str(dtype).removeprefix("torch.")


def squared_norm(A: NDArray[Any], scale: float = 1.0) -> float:
    """‖A/scale‖_F² of an array of two axes or more, accumulated in float64 a few rows at a time."""
    step = max(1, 2**18 // max(1, A[0].size)) if len(A) else 1
    total = 0.0
    for start in range(0, len(A), step):
        part = np.asarray(A[start : start + step], dtype=np.float64)
        if scale != 1.0:
            part = part / scale
        total += float(np.vdot(part, part))
    return total


@dataclass(frozen=True)
class Placement:
    """Where an array lies: address, shape, strides in elements, precision, device."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: str
    writable: bool

    @property
    def extent(self) -> tuple[int, int]:
        """Address of its first byte, and the one after its last; empty where it has no entries."""
        if 0 in self.shape:
            return self.address, self.address
        size = np.dtype(self.dtype).itemsize
        ends = [step * (n - 1) * size for step, n in zip(self.strides, self.shape, strict=True)]
        low, high = sum(min(e, 0) for e in ends), sum(max(e, 0) for e in ends)
        return self.address + low, self.address + high + size

    @property
    def contiguous(self) -> bool:
        """Whether it lies in one piece, row after row."""
        steps = [int(np.prod(self.shape[axis + 1 :])) for axis in range(len(self.shape))]
        return all(s == step or n == 1 for s, step, n in zip(self.strides, steps, self.shape, strict=True))

    @property
    def handed_over(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """As the extension takes it."""
        return self.address, self.shape, self.strides


def placement(name: str, array: Array) -> Placement:
    """Raises InputError for anything but an array of NumPy, torch or CuPy."""
    if is_torch(array):
        dtype = dtype_name(array.dtype)
        return Placement(array.data_ptr(), tuple(array.shape), tuple(array.stride()), dtype, str(array.device), True)
    interface = getattr(array, "__cuda_array_interface__", None)
    device = "cpu" if interface is None else f"cuda:{array.device.id}"
    interface = interface or getattr(array, "__array_interface__", None)
    if interface is None:
        raise InputError(f"{name}: expected an array of NumPy, torch or CuPy, got {type(array).__name__}")
    size = array.dtype.itemsize
    if any(step % size for step in array.strides):
        raise InputError(f"{name}: strides {array.strides} are no multiples of its element size {size}")
    strides = tuple(step // size for step in array.strides)
    address, read_only = interface["data"]
    return Placement(address, tuple(array.shape), strides, dtype_name(array.dtype), device, not read_only)


def kind(array: Array) -> str:
    """ "torch.Tensor", "numpy.ndarray" or "cupy.ndarray"."""
    found = type(array)
    if is_torch(array):  # of a subclass too
        return "torch.Tensor"
    return f"{found.__module__.partition('.')[0]}.{found.__name__}"
