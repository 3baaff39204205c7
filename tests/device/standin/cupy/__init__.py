"""A stand-in for CuPy, for tests without a GPU: its arrays live in the machine's memory and obey CuPy's rules.

They are never converted to NumPy's by themselves, never mixed with those or with arrays of another device, and made on the
current device. `LOG` counts launches of kernels, and copies to the host, each of which waits for the device, and to the device.
What is computed, NumPy computes.
"""

from __future__ import annotations

import builtins
import collections
import sys
import types
from typing import Any

import numpy as np

__version__ = "14.2.0"
LOG: collections.Counter[str] = collections.Counter()
DEVICES = 2
SCALARS = (builtins.bool, int, float, complex, np.generic)
REFUSED = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)


CURRENT = [0]
"""The current device, behind those of before."""


class Device:
    """`with Device(n)` makes it the current one."""

    def __init__(self, device: Any = None) -> None:
        self.id = CURRENT[-1] if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return self.id == int(other)  # type: ignore[call-overload, no-any-return]

    def __hash__(self) -> int:
        return self.id

    def __enter__(self) -> Device:
        CURRENT.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        CURRENT.pop()

    def synchronize(self) -> None:
        LOG["sync"] += 1


class ndarray:  # noqa: N801 - CuPy's name
    """An array on a device."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: np.ndarray, device: Any = None) -> None:
        self._a, self.device = array, Device(device)

    shape = property(lambda self: self._a.shape)
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)
    strides = property(lambda self: self._a.strides)
    flags = property(lambda self: self._a.flags)
    T = property(lambda self: ndarray(self._a.T, self.device))
    mT = property(lambda self: ndarray(self._a.swapaxes(-1, -2), self.device))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        where = (self._a.ctypes.data, False)
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": where,
            "version": 3,
            "strides": self.strides,
        }

    # ---- to the host, which waits

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(REFUSED)

    def get(self, *_: Any, **__: Any) -> np.ndarray:
        LOG["to host"] += 1
        return np.array(self._a, order="C")

    def item(self) -> Any:
        LOG["to host"] += 1
        return self._a.item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return builtins.bool(self.item())

    # ---- NumPy's own functions

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if method != "__call__" or out is not None:
            return NotImplemented
        return _launch(ufunc, inputs, kwargs)

    def __array_function__(self, func: Any, kinds: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{func.__name__} of a CuPy array")

    # ---- as a container

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def copy(self, order: Any = "C") -> ndarray:
        LOG["launch"] += 1
        return ndarray(self._a.copy(order))

    def set(self, value: np.ndarray) -> None:
        LOG["to device"] += 1
        self._a[...] = value

    def __getitem__(self, key: Any) -> ndarray:
        found = np.asarray(self._a[_key(key)])  # CuPy keeps arrays of no axes
        if found.base is None and found.ndim:
            LOG["launch"] += 1  # gathered: no view
        return ndarray(found, self.device)

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(value, (ndarray, *SCALARS)):
            raise TypeError(f"Unsupported type {type(value)}")
        _check_devices((self, value))
        target = self._a[_key(key)]
        if isinstance(value, ndarray) and _is_same(target, value._a):
            return  # what an operation in place leaves to be assigned
        LOG["launch"] += 1
        self._a[_key(key)] = _plain(value)


def _is_same(one: Any, other: np.ndarray) -> bool:
    return isinstance(one, np.ndarray) and (one.ctypes.data, one.strides, one.shape) == (
        other.ctypes.data,
        other.strides,
        other.shape,
    )


def _key(key: Any) -> Any:
    return tuple(map(_key, key)) if isinstance(key, tuple) else key._a if isinstance(key, ndarray) else key


def _plain(value: Any) -> Any:
    """The numbers behind; NumPy's arrays are refused where CuPy refuses them."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple) and builtins.any(isinstance(item, ndarray) for item in value):
        return type(value)(map(_plain, value))
    return value


def _check_devices(values: Any) -> None:
    devices = {value.device.id for value in _flat(values) if isinstance(value, ndarray)}
    if len(devices) > 1:
        raise RuntimeError(f"Array device must be same as the current device: arrays on devices {sorted(devices)}")
    if devices - {CURRENT[-1]}:
        LOG["peer access"] += 1


def _flat(values: Any) -> Any:
    for value in values:
        yield from _flat(value) if isinstance(value, list | tuple) else [value]


def _wrapped(found: Any) -> Any:
    if isinstance(found, tuple):
        return tuple(map(_wrapped, found))
    return ndarray(np.asarray(found)) if isinstance(found, np.ndarray | np.generic) else found


def _launch(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    _check_devices([*args, *kwargs.values()])
    LOG["launch"] += 1
    return _wrapped(function(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()}))


# ---- operators and methods


def _binary(name: str) -> Any:
    def method(self: ndarray, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            raise TypeError(f"Unsupported type {type(other)}")
        if not isinstance(other, (ndarray, *SCALARS)):
            return NotImplemented
        return _launch(getattr(np.ndarray, name), (self, other), {})

    return method


def _in_place(name: str) -> Any:
    def method(self: ndarray, other: Any) -> ndarray:
        if not isinstance(other, (ndarray, *SCALARS)):
            raise TypeError(f"Unsupported type {type(other)}")
        _check_devices((self, other))
        LOG["launch"] += 1
        getattr(np.ndarray, name)(self._a, _plain(other))
        return self

    return method


def _of_array(name: str) -> Any:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        return _launch(getattr(np.ndarray, name), (self, *args), kwargs)

    return method


ARITHMETIC = "add sub mul truediv floordiv mod pow matmul and or xor".split()  # noqa: SIM905
for _name in ARITHMETIC:
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))
    setattr(ndarray, f"__r{_name}__", _binary(f"__r{_name}__"))
    setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in "lt le gt ge eq ne".split():  # noqa: SIM905
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))
METHODS = (
    "__neg__ __abs__ __pos__ __invert__ sum max min any all mean astype reshape ravel transpose swapaxes squeeze argmax argmin "
    "cumsum round clip conj dot view"
)
for _name in METHODS.split():
    setattr(ndarray, _name, _of_array(_name))


# ---- making arrays


def asarray(a: Any, dtype: Any = None, order: Any = None, **_: Any) -> ndarray:
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)  # type: ignore[attr-defined, no-any-return]
    LOG["to device"] += 1
    return ndarray(np.array(a, dtype=dtype, order=order))


def array(a: Any, dtype: Any = None, copy: bool = True, order: Any = None, **_: Any) -> ndarray:
    if isinstance(a, ndarray):
        LOG["launch"] += 1
        return ndarray(np.array(a._a, dtype=dtype, copy=copy or None, order=order))
    return asarray(a, dtype, order)


def asnumpy(a: Any, *_: Any, **__: Any) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def from_dlpack(tensor: Any) -> ndarray:
    return ndarray(np.from_dlpack(tensor))


def get_default_memory_pool() -> Any:
    return types.SimpleNamespace(free_all_blocks=lambda: LOG.update(["pool emptied"]))


# ---- cupy.cuda, cupy.linalg, cupy.fft


class OutOfMemoryError(MemoryError):
    pass


class Stream:
    """Streams of an emulated device are all one."""

    def __init__(self, ptr: int = 0, *_: Any, **__: Any) -> None:
        self.ptr = ptr

    def synchronize(self) -> None:
        LOG["sync"] += 1


def _module(name: str, **contents: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(contents)
    made.__all__ = list(contents)  # type: ignore[attr-defined]
    sys.modules[name] = made
    return made


def _of_library(function: Any) -> Any:
    def called(*args: Any, **kwargs: Any) -> Any:
        return _launch(function, args, kwargs)

    called.__name__ = getattr(function, "__name__", "function")
    return called


def _names(module: Any) -> list[str]:
    return [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name))]


cuda = _module(
    "cupy.cuda",
    Device=Device,
    Stream=Stream,
    ExternalStream=Stream,
    get_current_stream=lambda device_id=None: Stream(),
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=types.SimpleNamespace(
        getDeviceCount=lambda: DEVICES,
        getDevice=lambda: CURRENT[-1],
        getDeviceProperties=lambda number: {"name": b"Emulated"},
        driverGetVersion=lambda: 13000,
        CUDARuntimeError=RuntimeError,
    ),
)
cuda.device = _module("cupy.cuda.device", Device=Device)  # type: ignore[attr-defined]
_linear = {name: getattr(np.linalg, name) for name in _names(np.linalg)}
linalg = _module(
    "cupy.linalg",
    **{name: f if isinstance(f, type) else _of_library(f) for name, f in _linear.items()},
)
fft = _module("cupy.fft", **dict.fromkeys(_names(np.fft)))

newaxis, pi, e, inf, nan = np.newaxis, np.pi, np.e, np.inf, np.nan
PLAIN = {"dtype", "finfo", "iinfo", "result_type", "can_cast", "promote_types", "issubdtype", "isscalar"}
"""NumPy's functions that launch nothing."""
APART = {
    *("linalg", "fft", "random", "testing", "ma", "lib", "core", "rec", "ctypeslib", "test", "f2py"),
    *("strings", "char", "polynomial", "dtypes", "exceptions"),
}

for _name in [name for name in dir(np) if not name.startswith("_") and name not in globals() and name not in APART]:
    _found = getattr(np, _name)
    _as_it_is = isinstance(_found, type | types.ModuleType) or not callable(_found) or _name in PLAIN
    globals()[_name] = _found if _as_it_is else _of_library(_found)
__all__ = [name for name in globals() if not name.startswith("_")]
