"""What reads stored numbers needs neither torch nor transformers, in a process where importing them raises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tightpass as tp

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", *EXTRA):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Blocked())
"""
SLOW = ("pandas", "xarray", "matplotlib", "scipy.stats")


def without(program: str, *arguments: object, extra: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    whole = f"EXTRA = {extra!r}\n{BLOCKED}{program}"
    return subprocess.run(
        [sys.executable, "-c", whole, *map(str, arguments)], capture_output=True, text=True, check=False
    )


COMMAND = "from tightpass.cli import main; main()"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One of every block, and a run for each of two prompts."""
    folder = tmp_path_factory.mktemp("wings")
    made = [tp.run(tokens=3, layers="1", block=kind, out=str(folder / kind)).directory for kind in ("mlp", "attn")]
    prompts = ["one two three four", "five six seven eight"]
    return [*made, tp.run(tokens=3, layers="1", prompts=prompts, out=str(folder / "prompts")).directory]


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["show", "--help"], ["run", "--help"], []])
def test_words_need_nothing(arguments):
    done = without(COMMAND, *arguments, extra=(*SLOW, "h5py") if arguments == ["--version"] else SLOW)
    assert "is not to be imported" not in done.stderr
    assert done.returncode == (0 if arguments else 2), done.stderr


@pytest.mark.parametrize("more", [[], ["--explain"], ["--json"], ["--csv"], ["--values"]])
def test_stored_numbers_are_shown(runs, more):
    for directory in runs:
        done = without(
            COMMAND, "show", directory, *more, extra=SLOW if more in ([], ["--json"]) and directory != runs[-1] else ()
        )
        assert done.returncode == 0, done.stderr
        assert "L01" in done.stdout


def test_runs_are_compared(runs):
    done = without(COMMAND, "compare", runs[0], runs[0])
    assert done.returncode == 0, done.stderr
    assert "0 of 1 blocks differ" in done.stdout


READING = """
import tightpass as tp
from pathlib import Path
from tightpass.store import journal, lock, publish, results
run = tp.open(sys.argv[1])
shard = run.shard(run.names[0])
shard.check()
assert sum(len(panel.rows) for panel in shard.panels()) == shard.layout.count
print(run[run.names[0]].rank, run.table().shape, [path.name for path in run.plot()])
"""


def test_records_shards_tables_and_figures_are_read(runs):
    for directory in runs[:2]:
        done = without(READING, directory)
        assert done.returncode == 0, done.stderr
        assert "'ranks.png', 'spectra.png', 'curves.png'" in done.stdout


def test_the_blocking_blocks(runs):
    """What computes needs torch: were nothing blocked, the tests above could not fail."""
    assert "transformers is not to be imported" in without(COMMAND, "run", "--tokens", 2).stderr
    assert "torch is not to be imported" in without("import tightpass as tp; tp.jacobian").stderr


def test_names_of_the_public_face():
    program = (
        "import tightpass as tp; assert set(tp.__all__) <= set(dir(tp)); [getattr(tp, name) for name in tp.__all__]"
    )
    program += "; assert callable(tp.jacobian) and callable(tp.run) and callable(tp.plan) and callable(tp.compare)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'svd'"):
        tp.svd  # noqa: B018
