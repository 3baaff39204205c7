"""Settings of torch that quietly lower the precision of matrix products."""

from __future__ import annotations

import os
from operator import attrgetter
from typing import Any

import torch

from tightpass.errors import InputError

FULL = ("none", "ieee", "highest")
"""Names of torch for float32 products in float32."""


def check_precision_settings() -> None:
    """Raises InputError under autocast, or where float32 products may run in TF32 or bfloat16.

    Also of float64 Jacobians: their floor is measured against float32 ones.
    """
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise InputError("autocast is on and would lower the precision of the Jacobian; leave the autocast context")
    for name, value in lowered().items():
        raise InputError(
            f"float32 products may run in lower precision, TF32 or bfloat16 ({name} is {value!r}); set it to its default"
        )


def lowered() -> dict[str, str]:
    """The settings that lower float32 products, by name. torch refuses to summarise settings of its two interfaces, so each
    is asked."""
    found = {}
    for name in ("torch.backends", "torch.backends.cuda.matmul", "torch.backends.mkldnn.matmul"):
        holder: Any = attrgetter(name.removeprefix("torch."))(torch)
        value = getattr(holder, "fp32_precision", "none")
        if value not in FULL:
            found[f"{name}.fp32_precision"] = str(value)
    if not found and torch.get_float32_matmul_precision() not in FULL:
        found["torch.get_float32_matmul_precision()"] = torch.get_float32_matmul_precision()
    for name in ("CUPY_TF32", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"):
        if os.environ.get(name, "0") not in ("0", ""):
            found[name] = os.environ[name]
    return found
