"""The figures of a run: rank per block, the spectra with their floors, and the rank at every threshold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tightpass.rank.spectrum import Spectrum
from tightpass.report.fold import fold
from tightpass.store.publish import published

# A stale font cache makes matplotlib list every font it misses; the figures fall back to DejaVu Sans,
# which matplotlib carries, and the user can do nothing with the list.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

SIGNAL, DOUBTFUL, NOISE, ZERO, BOUND, KNEE = "#1f5a8c", "#e0a030", "#b8b8b8", "#5c5c5c", "#c8553d", "#2a9d5c"
FLAG_COLOURS = {"certified": SIGNAL, "interval": "#e0a030", "ambiguous": "#c8553d", "not converged": "#8a5a9e"}
MARKERS = "osD^v"
"""One for each confidence that occurs."""
PANELS_AT_MOST = 24


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure


def _saved(figure: Figure, path: Path) -> Path:
    with published(path) as part:
        figure.savefig(part, format="png")
    return path


def ranks(spectra: Sequence[Spectrum], title: str, path: Path) -> Path:
    """Rank of each block as a dot with its interval as a bar, beside the structural bound."""
    count, size = len(spectra), spectra[0].size
    figure = _figure(min(max(6.0, 0.55 * count + 2.5), 18.0), 4.2)
    axes = figure.add_subplot()
    at = np.arange(count)
    axes.hlines(
        [s.evidence.bounds[0].rank for s in spectra],
        at - 0.35,
        at + 0.35,
        color=BOUND,
        lw=1.5,
        label="structural bound",
    )
    sure = sorted({s.rank.confidence for s in spectra})
    for words in sorted({s.rank.words for s in spectra}):
        alike = [i for i, s in enumerate(spectra) if s.rank.words == words]
        first = spectra[alike[0]].rank
        middle = np.array([(spectra[i].rank.lo + spectra[i].rank.hi) / 2 for i in alike])
        half = np.array([(spectra[i].rank.hi - spectra[i].rank.lo) / 2 for i in alike])
        axes.errorbar(
            alike,
            middle,
            yerr=half,
            fmt=MARKERS[sure.index(first.confidence) % len(MARKERS)],
            color=FLAG_COLOURS[first.flag],
            ms=6,
            capsize=4,
            label=f"rank, {words}",
        )
    for i, s in enumerate(spectra):
        if count <= 16:
            axes.annotate(
                str(s.rank), (i, s.rank.hi), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8
            )
    axes.axhline(size, color="black", lw=0.8, ls=":", label=f"all {size} directions")
    axes.set_ylim(0, 1.12 * size)
    axes.set_xticks(at, [s.name for s in spectra], rotation=0 if count <= 8 else 90, fontsize=8)
    axes.set_ylabel("directions that pass")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _saved(figure, path)


def spectra(spectra: Sequence[Spectrum], title: str, path: Path) -> Path:
    """σᵢ against i on a log axis, one panel a block: signal, noise, floor, cliff and knees."""
    shown = list(spectra)[:PANELS_AT_MOST]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = _figure(max(4.2 * columns + 0.3, 7.5), 2.9 * rows + 0.9)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    smallest = min(_lowest_drawn(s) for s in shown)
    for axes, s in zip(grid.flat, shown, strict=False):
        _panel(axes, s, smallest)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    for i in range(columns):
        lowest = [axes for axes in grid[:, i] if axes.get_visible()][-1]
        lowest.set_xlabel("index")
        lowest.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("singular value")
    drawn = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    left_out = f" · first {len(shown)} of {len(spectra)}" if len(shown) < len(spectra) else ""
    figure.suptitle(title + left_out, fontsize=10, x=0.01, ha="left")
    return _saved(figure, path)


def curves(spectra: Sequence[Spectrum], title: str, path: Path) -> Path:
    """The rank at every threshold, one line a block with the band that the floor leaves open."""
    shown = list(spectra)[:PANELS_AT_MOST]
    figure = _figure(7.5, 4.4)
    axes = figure.add_subplot()
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(shown)))
    for s, colour in zip(shown, colours, strict=True):
        curve = s.rank_curve()
        axes.fill_between(curve["tau"], curve["lo"], curve["hi"], color=colour, alpha=0.35, lw=0, step="mid")
        axes.plot(
            curve["tau"], (curve["lo"] + curve["hi"]) / 2, color=colour, lw=1.3, drawstyle="steps-mid", label=s.name
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("threshold τ (the curve starts at the block's floor)")
    axes.set_ylabel("singular values above τ; shaded: the interval")
    left_out = f" · first {len(shown)} of {len(spectra)}" if len(shown) < len(spectra) else ""
    axes.set_title(title + left_out, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=-(-len(shown) // 16))
    return _saved(figure, path)


def _lowest_drawn(s: Spectrum) -> float:
    """A little under the bulk of the noise; stragglers below are drawn at the edge."""
    noise = s.values[(s.codes == 0) & (s.values > 0)]
    bulk = float(np.quantile(noise, 0.02)) if len(noise) else s.floor.total
    return max(min(bulk, s.floor.total) / 30, s.floor.total * 1e-6, 1e-300)


def _panel(axes: Axes, s: Spectrum, smallest: float) -> None:
    index = np.arange(1, len(s.values) + 1)
    drawn = np.maximum(s.values.astype(np.float64), smallest)
    zero = s.values == 0
    noise = (s.codes == 0) & ~zero
    axes.plot(index[s.codes == 2], drawn[s.codes == 2], color=SIGNAL, lw=2.2, label="signal (above 3 floors)")
    doubtful = s.codes == 1
    if doubtful.any():
        axes.plot(
            index[doubtful], drawn[doubtful], ".-", color=DOUBTFUL, lw=2.2, ms=5, label="doubtful (1 to 3 floors)"
        )
    if noise.any():
        axes.plot(index[noise], drawn[noise], color=NOISE, lw=2.2, label="noise (below the floor)")
    if zero.any():
        edge = np.full(int(zero.sum()), 3 * smallest)
        axes.plot(index[zero], edge, color=ZERO, lw=3.5, label="exactly 0 (drawn at the lower edge)")
    axes.axhline(s.floor.total, color=BOUND, lw=1, ls="--", label="noise floor")
    for knee in s.knees[:3]:
        axes.plot([knee.index], [s.values[knee.index - 1]], "v", color=KNEE, ms=6, label=None)
        axes.annotate(
            f"knee {knee.index}",
            (knee.index, s.values[knee.index - 1]),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=7,
            color=KNEE,
        )
    if s.cliff is not None:
        _mark_cliff(axes, s)
    axes.set_yscale("log")
    axes.set_ylim(bottom=smallest)
    axes.set_title(f"{s.name}: rank {s.rank} of {s.size} ({s.rank.words})", fontsize=8.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _mark_cliff(axes: Axes, s: Spectrum) -> None:
    """A line where the signal ends, with the rank, beside it where the curve is not."""
    assert s.cliff is not None
    axes.axvline(s.cliff.index, color="black", lw=0.7, ls=":")
    left = s.cliff.index < 0.6 * len(s.values)
    fall = f"\nfalls ≥ {_set(fold(s.cliff.ratio))}-fold" if s.cliff.ratio >= 10 else ""
    axes.annotate(
        f"rank {s.rank}{fall}",
        (s.cliff.index, 0.97 if left else 0.5),
        xycoords=("data", "axes fraction"),
        xytext=(4 if left else -6, 0),
        textcoords="offset points",
        ha="left" if left else "right",
        va="top",
        fontsize=8,
    )


def _set(text: str) -> str:
    """A power as mathematics has it."""
    base, power, exponent = text.partition("^")
    return f"${base}^{{{exponent}}}$" if power else text
