"""Draws the figures of a run, whatever the surroundings say of matplotlib."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tightpass.rank.spectrum import Spectrum


def draw(spectra: Sequence[Spectrum], title: str, directory: Path) -> tuple[Path, Path, Path]:
    """Writes ranks.png, spectra.png and curves.png in matplotlib's own style; returns their paths.

    A user's style (LaTeX for all text, fonts that are not there) is set aside, as is MPLBACKEND: Agg draws.
    """
    with backend_set_aside():
        import matplotlib

        from tightpass.report import plots
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        return (
            plots.ranks(spectra, title, directory / "ranks.png"),
            plots.spectra(spectra, title, directory / "spectra.png"),
            plots.curves(spectra, title, directory / "curves.png"),
        )


@contextmanager
def backend_set_aside() -> Iterator[None]:
    """Imports matplotlib without MPLBACKEND, which stops the import where it names a backend that is not installed, as
    notebooks do for the processes they start; what it names is used afterwards by whoever asks for it."""
    name = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if name is not None:
            os.environ["MPLBACKEND"] = name
    if name is not None:
        import matplotlib

        with suppress(ValueError):
            matplotlib.rcParams["backend"] = name
