"""The compiled kernels, where they are built. Absent is allowed; present but broken raises."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

from tightpass.errors import InputError

SWITCH = "TIGHTPASS_KERNELS"
"""Environment variable: `reference` leaves the compiled kernels aside."""


INSTRUCTIONS = "TIGHTPASS_ISA"
"""Environment variable: the widest instruction set that may be used."""


def load() -> ModuleType | None:
    """The extension, or None where none was built or the environment says `reference`.

    Raises InputError for a value of an environment variable that means nothing.
    """
    for variable, known in ((SWITCH, ("reference", "native")), (INSTRUCTIONS, ("baseline", "avx2", "avx512"))):
        if os.environ.get(variable, known[0]) not in known:
            raise InputError(f"{variable} must be one of {', '.join(known)}, got {os.environ[variable]!r}")
    if os.environ.get(SWITCH) == "reference" or importlib.util.find_spec("tightpass.kernels._native") is None:
        return None
    return importlib.import_module("tightpass.kernels._native")


extension = load()


def backend(device: str = "cpu") -> str:
    """Which kernels run for arrays on a kind of device, and with which instructions: what the numbers may depend on."""
    if extension is None or (device == "cuda" and not extension.cuda_built()):
        return "reference"
    return f"native ({extension.instruction_set()})" if device == "cpu" else "native"


def description(device: str = "cpu") -> str:
    """Which kernels run for arrays on a kind of device, and why."""
    if extension is not None and device == "cuda" and not extension.cuda_built():
        return "reference (the native extension was built without CUDA)"
    if extension is not None:
        cuda = "with CUDA" if extension.cuda_built() else "built without CUDA"
        return f"native ({extension.instruction_set()}, {cuda})"
    if os.environ.get(SWITCH) == "reference":
        return f"reference ({SWITCH}=reference is set)"
    return "reference (no native extension in this installation)"
