"""The streams of a GPU, torch's and CuPy's: which one an array's library works on, and waiting for one."""

from __future__ import annotations

from typing import Any

import torch

Array = Any


def on_device(array: Array) -> Any:
    """A context in which an array's device is the current one."""
    return torch.cuda.device(array.device) if isinstance(array, torch.Tensor) else array.device


def device_number(array: Array) -> int:
    """Of the GPU that an array lies on."""
    return int(array.device.index if isinstance(array, torch.Tensor) else array.device.id)


def current_stream(array: Array) -> int:
    """Address of the stream that the array's library works on now."""
    if isinstance(array, torch.Tensor):
        return int(torch.cuda.current_stream(array.device).cuda_stream)
    import cupy

    return int(cupy.cuda.get_current_stream().ptr)


def wait_for(stream: int, array: Array) -> None:
    """Returns once all that was queued on a stream of the array's library is done."""
    if isinstance(array, torch.Tensor):
        torch.cuda.ExternalStream(stream).synchronize()
        return
    import cupy

    cupy.cuda.ExternalStream(stream).synchronize()
