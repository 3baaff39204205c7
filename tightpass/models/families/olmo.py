"""OLMo 1: Llama's layers with norms that have no weights, and queries, keys and values that may be clipped."""

from __future__ import annotations

from dataclasses import replace

from tightpass.models.families.base import register
from tightpass.models.families.llama import LLAMA

register(replace(LLAMA, model_types=("olmo",)))
