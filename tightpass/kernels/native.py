"""The compiled kernels, where they are built. Absent is allowed; present but broken raises."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

SWITCH = "TIGHTPASS_KERNELS"
"""Environment variable: `reference` leaves the compiled kernels aside."""


def load() -> ModuleType | None:
    """The extension, or None where none was built or the environment says `reference`."""
    if os.environ.get(SWITCH) == "reference" or importlib.util.find_spec("tightpass.kernels._native") is None:
        return None
    return importlib.import_module("tightpass.kernels._native")


extension = load()


def description() -> str:
    """Which kernels run, and why."""
    if extension is not None:
        cuda = "with CUDA" if extension.cuda_built() else "built without CUDA"
        return f"native ({extension.instruction_set()}, {cuda})"
    if os.environ.get(SWITCH) == "reference":
        return f"reference ({SWITCH}=reference is set)"
    return "reference (no native extension in this installation)"
