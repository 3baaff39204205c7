"""Plans say what runs take: peak memory over a grid of questions, each measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import memory
import pytest
import torch
from oracles.small_models import opt
from torch import nn

import tightpass as tp
from tightpass.models.loading import demo_directory, locate, planned_shape
from tightpass.models.options import KINDS
from tightpass.runs import plan as planning
from tightpass.runs.check import resolve
from tightpass.runs.jobs import blocks_of
from tightpass.runs.plan import plan_for
from tightpass.runs.question import Config
from tightpass.spectra.leading.krylov import basis_columns
from tightpass.work import Work, kept, passing

MEASURE = Path(__file__).parents[2] / "benchmarks" / "memory.py"
SPARE = 64 * 2**20
"""Of what was freed the C library keeps about as much, wherever it fits nothing else."""
SOME = (
    {"model": "opt-125m", "weights": "random", "block": "mlp", "tokens": 4, "dtype": "float32", "layers": "0"},
    {"block": "attn", "tokens": 128, "method": "topk", "k": 1, "layers": "0"},
    {"block": "mlp", "tokens": 256, "vectors": 16, "layers": "0"},
    {"block": "attn", "tokens": 16, "dtype": "float32", "discard_jacobian": True, "layers": "0"},
    {"block": "layer", "tokens": 8, "layers": "0"},
)
measured = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured by Linux")


def peak_of(question):
    """Bytes that a run takes above the process with its model."""
    done = subprocess.run(
        [sys.executable, str(MEASURE), json.dumps(question)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1])


def check(questions):
    with ThreadPoolExecutor(2) as pool:
        for question, peak in zip(questions, pool.map(peak_of, questions), strict=True):
            compare(question, peak)


def compare(question, peak):
    plan = tp.plan(**question)
    planned = plan.memory - plan.loaded
    if peak > 1.2 * planned + SPARE:  # the system may take pages of mapped files away between the peak and its reading
        peak = min(peak, peak_of(question), peak_of(question))
    said = f"{question}: {peak / 2**20:.0f} MiB, planned {planned / 2**20:.0f}"
    assert peak <= 1.2 * planned + SPARE, said
    assert planned <= 1.5 * peak + SPARE, said


@measured
def test_runs_take_the_memory_that_is_planned():
    check(SOME)


@pytest.mark.slow
@measured
def test_all_runs_of_the_grid_take_the_memory_that_is_planned():
    check(memory.QUESTIONS)


def test_work_in_a_row_takes_the_most_that_is_there_at_once():
    row = kept(3).then(passing(10, flops=2.0), kept(4), passing(5))
    assert row == Work(2.0, peak=13, left=7)
    assert row.dropped().then(kept(14)) == Work(2.0, peak=14, left=14)
    assert kept(1).then(row.dropped(), kept(2)) == Work(2.0, peak=14, left=3)


@pytest.mark.parametrize("k", [1, 16, 64])
def test_the_basis_of_leading_values_is_planned_as_it_is_made(k):
    plan = tp.plan(block="head", head=0, layers="0", tokens=256, method="topk", k=k)
    (n, _), columns = plan.shape, basis_columns(*plan.shape, k, 16, 8)
    assert columns >= 24 * 16  # however few values are asked for
    assert plan.memory - plan.loaded >= 2 * n * (columns + 16) * 8


def test_flops_are_those_of_all_jobs():
    T, d, d_ff = 8, 128, 512
    assert tp.plan(tokens=T).flops == 6 * (2 * T * d**2 * d_ff + 8 / 3 * T * d**3)
    product = 2 * T * d * 2 * d_ff
    assert tp.plan(tokens=T, method="topk", k=3, layers="0-1").flops == 2 * 14 * 3 * product


def test_more_of_anything_takes_no_less():
    few = {"block": "layer", "tokens": 8, "layers": "0"}
    least = tp.plan(**few).memory
    for more in ({"tokens": 32}, {"block": "model", "layers": "all"}, {"vectors": 4}):
        assert tp.plan(**few | more).memory >= least
    assert tp.plan(**few, dtype="float32").memory < least


def test_weights_and_process_are_what_is_loaded():
    shape = planned_shape(locate(str(demo_directory())))
    assert tp.plan(dtype="float32").loaded == planning.PROCESS_BYTES + 4 * shape.parameters


def test_the_copy_of_experts_in_the_other_precision_is_planned():
    experts = 8 * 3 * 768 * 2048
    for dtype, other in (("float64", 4), ("float32", 8)):
        plan = tp.plan(**memory.MIXTRAL, block="mlp", tokens=4, dtype=dtype)
        assert plan.memory - plan.loaded >= other * experts


def test_no_size_stands_in_the_plan_but_that_of_the_process():
    numbers = {name for name, value in vars(planning).items() if isinstance(value, int | float) and name.isupper()}
    assert numbers == {"PROCESS_BYTES"}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_differ_are_planned_for_the_largest(kind):
    """Wherever it is among them."""
    shape = planned_shape(locate("demo"))
    small = shape.layers[0]
    large = replace(small, heads=9, kv_heads=9, d_ff=4000, parameters=10**6)
    question = Config.of(block=kind, tokens=32, head=0 if kind == "head" else None)

    def planned(*layers):
        uneven = replace(shape, layers=layers)
        return plan_for(question, uneven, blocks_of(question, uneven), 2**40, None)

    first, last = planned(large, small, small), planned(small, small, large)
    assert first == last
    assert first.memory > planned(small, small, small).memory


def test_a_given_model_is_planned_by_its_own_layers():
    """The second of which has more units than its configuration says."""
    hf, wide = opt(), opt()
    layer = wide.decoder.layers[1]
    layer.fc1, layer.fc2 = nn.Linear(21, 4000, dtype=torch.float64), nn.Linear(4000, 21, dtype=torch.float64)
    plain, uneven = (resolve(Config.of(tokens=4), model.eval()).plan for model in (hf, wide))
    added = uneven.memory - uneven.loaded - (plain.memory - plain.loaded)
    assert added > 8 * 21 * (4000 - 50)  # its weights alone, once more
    assert uneven.flops > 10 * plain.flops
