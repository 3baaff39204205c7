"""Through how few directions does a transformer block pass information? The public face.

Names are imported when they are first used: what reads stored numbers needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tightpass.errors import DoesNotFitError, InputError, TightpassError, VerificationError
    from tightpass.evidence.judge import spectrum
    from tightpass.jacobians.checked import block
    from tightpass.jacobians.operator import jacobian
    from tightpass.models.genuine import genuine
    from tightpass.models.loading import load_model
    from tightpass.rank.difference import difference
    from tightpass.report.spread import spread
    from tightpass.runs.check import plan
    from tightpass.runs.compare import compare
    from tightpass.runs.opened import open
    from tightpass.runs.question import Config
    from tightpass.runs.start import run
    from tightpass.runs.verify import verify
    from tightpass.spectra.dense import svdvals
    from tightpass.spectra.leading.krylov import svds
    from tightpass.spectra.leading.sketch import rough_svds
    from tightpass.structure import BlockDiagonal, BlockLowerTriangular, Dense

    __version__: str

_PLACES = {
    "BlockDiagonal": "structure",
    "BlockLowerTriangular": "structure",
    "Config": "runs.question",
    "Dense": "structure",
    "DoesNotFitError": "errors",
    "InputError": "errors",
    "TightpassError": "errors",
    "VerificationError": "errors",
    "block": "jacobians.checked",
    "compare": "runs.compare",
    "difference": "rank.difference",
    "genuine": "models.genuine",
    "jacobian": "jacobians.operator",
    "load_model": "models.loading",
    "open": "runs.opened",
    "plan": "runs.check",
    "rough_svds": "spectra.leading.sketch",
    "run": "runs.start",
    "spectrum": "evidence.judge",
    "spread": "report.spread",
    "svds": "spectra.leading.krylov",
    "svdvals": "spectra.dense",
    "verify": "runs.verify",
}

__all__ = [
    "BlockDiagonal",
    "BlockLowerTriangular",
    "Config",
    "Dense",
    "DoesNotFitError",
    "InputError",
    "TightpassError",
    "VerificationError",
    "block",
    "compare",
    "difference",
    "genuine",
    "jacobian",
    "load_model",
    "open",
    "plan",
    "rough_svds",
    "run",
    "spectrum",
    "spread",
    "svds",
    "svdvals",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("tightpass")
    elif name in _PLACES:
        value = getattr(importlib.import_module(f"tightpass.{_PLACES[name]}"), name)
    else:
        raise AttributeError(f"module 'tightpass' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
