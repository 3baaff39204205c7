"""Settings of torch that quietly lower the precision of matrix products."""

from __future__ import annotations

import torch

from tightpass.errors import InputError


def check_precision_settings() -> None:
    """Raises InputError under autocast, or where float32 products may run in TF32 or bfloat16."""
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise InputError("autocast is on and would lower the precision of the Jacobian; leave the autocast context")
    if torch.get_float32_matmul_precision() != "highest":
        raise InputError(
            f"float32 products are set to {torch.get_float32_matmul_precision()!r} precision (TF32 or bfloat16); "
            'call torch.set_float32_matmul_precision("highest")'
        )
