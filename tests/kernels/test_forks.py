"""Children that are forked: before threads have run, and after."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tightpass.kernels import native

PROGRAM = """
import os, sys
import numpy as np, torch
import tightpass as tp
from tightpass.errors import InputError
from tightpass.kernels.products import product
from tightpass.spectra.threads import one_per_core

A = np.random.default_rng(0).standard_normal((700, 700))
B = torch.eye(40, dtype=torch.float64)
WORK = {
    "svdvals": lambda: tp.svdvals(A),
    "product": lambda: product(A, A[:, :32].copy()),
    "jacobian": lambda: tp.jacobian(lambda x: torch.tanh(x @ B), B),
    "product of J": lambda: J @ np.ones(J.shape[1]),
    "batch": lambda: one_per_core(np.linalg.norm, [A, A]),
}

def in_a_child(work):
    child = os.fork()
    if child == 0:
        try:
            WORK[work]()
        except InputError as error:
            os._exit(2 if "forkserver" in str(error) else 3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

before = in_a_child("svdvals")
torch.set_num_threads(1)
J = tp.jacobian(lambda x: torch.tanh(x @ B), B)
torch.set_num_threads(2)
WORK[sys.argv[1]]()
after = [in_a_child(work) for work in WORK]
WORK[sys.argv[1]]()  # the parent is none the worse
print(before, *after)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.skipif(native.extension is None or os.cpu_count() == 1, reason="nothing runs in threads here")
@pytest.mark.parametrize("work", ["svdvals", "batch"])
def test_a_child_forked_after_threads_is_told_rather_than_left_to_wait(work, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, work],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["0", *"22222"], done.stderr
