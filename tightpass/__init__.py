"""Through how few directions does a transformer block pass information? The public face."""

from importlib.metadata import version

__version__ = version("tightpass")

# `run` is a module and a function; importing the function last leaves the function's name in place.
from tightpass.compare import compare
from tightpass.config import Config
from tightpass.errors import DoesNotFitError, InputError, TightpassError, VerificationError
from tightpass.jacobian.checked import block
from tightpass.jacobian.operator import jacobian
from tightpass.models.loading import load_model
from tightpass.rank.difference import difference
from tightpass.rank.spectrum import spectrum
from tightpass.report.spread import spread
from tightpass.run import open, run, verify
from tightpass.spectra.dense import svdvals
from tightpass.spectra.krylov import svds
from tightpass.spectra.sketch import rough_svds
from tightpass.structure import BlockDiagonal, BlockLowerTriangular, Dense

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
    "jacobian",
    "load_model",
    "open",
    "rough_svds",
    "run",
    "spectrum",
    "spread",
    "svds",
    "svdvals",
    "verify",
]
