"""Granite: Llama's layers, with a multiplier on what each branch adds."""

from __future__ import annotations

from dataclasses import replace

from tightpass.models.families.base import register
from tightpass.models.families.llama import LLAMA

register(replace(LLAMA, model_types=("granite",), scale=lambda config: float(config.residual_multiplier)))
