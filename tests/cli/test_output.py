"""Figures and printing in unfriendly surroundings: they may fail, the numbers may not. Real processes, real streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

import tightpass as tp
from tightpass.cli.printing import print_json
from tightpass.rank.knee import cliff
from tightpass.report.figures import draw

COMMAND = [sys.executable, "-m", "tightpass"]
QUESTION = ["--tokens", "2", "--layers", "1", "--discard-jacobian", "--out", "a"]
FIGURES = ("ranks.png", "spectra.png", "curves.png")
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def process(*arguments, cwd, shell="", **environment):
    """`tightpass ARGUMENTS` with a shell's redirections behind it."""
    command = " ".join([*COMMAND, *arguments, shell])
    cleaned = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "MPL", "PYTHONIO"))}
    return subprocess.run(
        ["sh", "-c", f"exec {command}"],
        cwd=cwd,
        env=cleaned | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"} | environment,
        capture_output=True,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a finished run in `a`, which each test asks for again."""
    path = tmp_path_factory.mktemp("output")
    done = process("run", *QUESTION, cwd=path)
    assert done.returncode == 0, done.stderr
    return path


SLOW = pytest.mark.slow
SURROUNDINGS = {
    "stdout is ASCII": ({"PYTHONIOENCODING": "ascii"}, "", ""),
    "the C locale": (C_LOCALE, "", ""),
    "stdout is closed": ({}, ">&-", "the results could not be printed (stdout is closed); they are in a"),
    "both are closed": ({}, ">&- 2>&-", ""),
    "stdout is full": ({}, "> /dev/full", "the results could not be printed (No space left on device); they are in a"),
}


@pytest.mark.parametrize(
    ("environment", "shell", "said"),
    [
        pytest.param(*case, id=name, marks=SLOW if "C loc" in name or "both" in name else ())
        for name, case in SURROUNDINGS.items()
    ],
)
def test_a_run_that_cannot_be_printed_is_done(place, environment, shell, said):
    done = process("run", *QUESTION, cwd=place, shell=shell, **environment)
    errors = done.stderr.decode()
    assert (done.returncode, errors.strip()) == (0, said)
    assert tp.open(place / "a").names == ["L01.mlp"]
    if not shell:
        assert b"L01.mlp" in done.stdout
        assert done.stdout.isascii()


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=SLOW),
        pytest.param(C_LOCALE, marks=SLOW),
    ],
)
def test_json_survives_any_encoding(place, environment):
    done = process("show", "a", "--json", cwd=place, **environment)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout.decode("ascii"))["jobs"][0]
    assert job["floor_parts"][0]["method"] == tp.open(place / "a")["L01.mlp"].floor.parts[0].method


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["show", "a", "--explain"], ["doctor"]])
def test_other_commands_print_what_an_encoding_lets_them(place, arguments):
    done = process(*arguments, cwd=place, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "a"],
        ["models"],
        *(
            pytest.param(command.split(), marks=SLOW)
            for command in ("show a --json", "compare a a", "doctor", "--help")
        ),
    ],
)
@pytest.mark.parametrize(
    ("shell", "reason"),
    [("> /dev/full", "No space left on device"), (">&-", "stdout is closed")],
    ids=["full", "closed"],
)
def test_what_is_only_printed_and_cannot_be_is_an_error_in_a_line(place, arguments, shell, reason):
    done = process(*arguments, cwd=place, shell=shell)
    assert (done.returncode, done.stderr.decode()) == (2, f"error: the output could not be printed: {reason}\n")


def test_a_reader_that_has_seen_enough_is_no_error(place):
    done = process("show", "a", "--values", cwd=place, shell="| head -1")
    assert (done.stdout.count(b"\n"), done.stderr) == (1, b"")


PRINTING = [
    "--help",
    "show a",
    "models",
    *(
        pytest.param(command, marks=SLOW)
        for command in (
            "--version",
            "run --help",
            "show a --explain",
            "show a --json",
            "compare a a",
            "verify a",
            "plan --tokens 2",
            "plan --tokens 2 --json",
            "doctor",
            "run --tokens 2 --layers 1 --discard-jacobian --out a",
            "",
        )
    ),
]


@pytest.mark.parametrize("command", PRINTING)
def test_a_reader_that_stops_at_once_is_no_error(place, command):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *command.split()], cwd=place, stdout=writing, stderr=subprocess.PIPE, env=os.environ, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_check_that_cannot_be_printed_has_been_made(place):
    done = process("verify", "a", cwd=place, shell=">&-")
    said = b"the results could not be printed (stdout is closed); all checks passed\n"
    assert (done.returncode, done.stderr) == (0, said)


def strictly(text):
    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_fall_to_nothing_is_null_in_json(capsys):
    fall = cliff(np.array([1.0, 0.0]), 0.0)
    assert fall.ratio == float("inf")
    print_json({"cliff": vars(fall), "knees": [float("nan")]})
    assert strictly(capsys.readouterr().out) == {"cliff": vars(fall) | {"ratio": None}, "knees": [None]}


# ---- matplotlib's surroundings


def drawn(directory):
    return all(imread(directory / name).std() > 0.01 for name in FIGURES)


@pytest.mark.parametrize(
    "backend",
    ["module://matplotlib_inline.backend_inline", *(pytest.param(name, marks=SLOW) for name in ("none", "tkagg"))],
)
def test_a_notebooks_backend_stops_nothing(place, backend):
    for name in FIGURES:
        (place / "a" / name).unlink(missing_ok=True)
    done = process("run", *QUESTION, cwd=place, MPLBACKEND=backend)
    assert (done.returncode, done.stderr) == (0, b"")
    assert drawn(place / "a")


def test_the_backend_is_still_there_for_others(tmp_path):
    code = (
        "import os, tightpass\n"
        "from tightpass.report.figures import backend_set_aside\n"
        "with backend_set_aside(): import matplotlib\n"
        "print(os.environ['MPLBACKEND'], matplotlib.rcParams['backend'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MPLBACKEND": "svg"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["svg", "svg"]


@pytest.mark.parametrize(
    "style",
    [
        "text.usetex: True",
        pytest.param("font.family: no-such-font\naxes.unicode_minus: False", marks=SLOW),
        pytest.param("savefig.format: pdf", marks=SLOW),
    ],
)
def test_a_users_style_stops_nothing(place, style):
    (place / "matplotlibrc").write_text(style)
    for name in FIGURES:
        (place / "a" / name).unlink(missing_ok=True)
    done = process("run", *QUESTION, cwd=place, MATPLOTLIBRC=str(place / "matplotlibrc"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert drawn(place / "a")


def test_a_style_set_in_python_is_left_as_it_was(place, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 7.0}):
        draw(tp.open(place / "a").spectra, "title", tmp_path)
        assert matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["lines.linewidth"] == 7.0
    assert drawn(tmp_path)


def test_a_figure_that_fails_leaves_the_one_before(place, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    draw(tp.open(place / "a").spectra, "title", tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in FIGURES}
    whole = Figure.savefig

    def half(figure, path, **options):
        whole(figure, path, **options)
        path.write_bytes(path.read_bytes()[:1000])
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="full"):
        draw(tp.open(place / "a").spectra, "another title", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_figures_that_cannot_be_written_are_said_and_cost_nothing(tmp_path, capsys):
    question = {"tokens": 2, "layers": "1", "discard_jacobian": True, "out": str(tmp_path / "a")}
    before = tp.run(**question)["L01.mlp"].values
    (tmp_path / "a" / "ranks.png").unlink()
    (tmp_path / "a" / "ranks.png").mkdir()
    capsys.readouterr()
    again = tp.run(**question)
    assert (again["L01.mlp"].values == before).all()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("figures were not drawn (IsADirectoryError: ")
    assert line.endswith(f"the numbers are in {tmp_path / 'a'}")
