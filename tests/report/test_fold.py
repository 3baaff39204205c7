"""One rounding of a fall, in the terminal, in figures and in the tables of the docs."""

from __future__ import annotations

from dataclasses import replace

import gallery
import pytest

import tightpass as tp
from tightpass.rank.floor import Floor
from tightpass.rank.records import Part
from tightpass.report.fold import fold
from tightpass.report.table import as_json, rich_table


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (1.0, "1.0"),
        (1.96, "1.9"),
        (42.37, "42.3"),
        (99.99, "99.9"),
        (100.0, "10^2"),
        (999.9, "10^2"),
        (1e3, "10^3"),
        (7e12, "10^12"),
        (1e15, "10^15"),
        (float("inf"), "∞"),
    ],
)
def test_a_fall_is_never_said_to_be_larger_than_it_is(ratio, said):
    assert fold(ratio) == said


def test_the_docs_say_what_the_terminal_says():
    s = tp.spectrum(tp.jacobian(tp.block(tp.load_model("demo"), "mlp", layer=1, tokens=3)))
    floors = [float(s.values[9]) / times for times in (1.0001, 3, 42.37)]
    spectra = [s] + [replace(s, floor=Floor((Part("SVD", floor, "", "certain"),), 0.0)) for floor in floors]
    table = rich_table(spectra, "")
    shown = next(list(column.cells) for column in table.columns if column.header == "cliff")
    assert shown == [gallery.cliff(job) for job in as_json(spectra)]
    assert shown == [fold(s.cliff.ratio) for s in spectra]
    assert shown[0].startswith("10^")
    assert shown[1] == "1.0"
