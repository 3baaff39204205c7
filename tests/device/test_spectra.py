"""Singular values of arrays on a GPU: every route, its failures, and where things are done."""

from __future__ import annotations

import cupy
import numpy as np
import pytest

import tightpass as tp
from tightpass.errors import InputError
from tightpass.spectra import device, drivers
from tightpass.spectra.dense import by_two_stage
from tightpass.spectra.leading.sketch import rough_svds
from tightpass.spectra.twostage import two_stage

RNG = np.random.default_rng(1)
SHAPES = [(40, 40), (70, 33), (33, 70), (1, 1), (5, 1), (1, 5), (100, 20), (200, 200)]


def drawn(m, n, dtype="float32"):
    return RNG.standard_normal((m, n)).astype(dtype)


def true_values(A):
    return np.linalg.svd(A.astype("float64"), compute_uv=False)


def units_off(found, A):
    """In eps·√N·σ₁."""
    true = true_values(A)
    return np.abs(found - true).max() / (np.finfo(A.dtype).eps * max(A.shape) ** 0.5 * true[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_two_stages(m, n, dtype):
    A = drawn(m, n, dtype)
    values, B = two_stage(cupy.asarray(A))
    assert units_off(values, A) <= 4
    assert B.shape == (m, n)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_all_values(m, n, dtype):
    A = drawn(m, n, dtype)
    there = cupy.asarray(A)
    found = tp.svdvals(there)
    assert isinstance(found, cupy.ndarray)
    assert found.dtype == A.dtype
    assert units_off(found.get(), A) <= 4
    assert np.array_equal(there.get(), A)


@pytest.mark.parametrize("change", ["transposed", "every other column", "scaled down", "scaled up"])
def test_all_values_of_other_layouts_and_sizes(change):
    A = drawn(30, 20)
    views = {
        "transposed": lambda x: x.T,
        "every other column": lambda x: x[:, ::2],
        "scaled down": lambda x: x * 2.0**-90,
        "scaled up": lambda x: x * 2.0**90,
    }
    B = views[change](cupy.asarray(A))
    assert units_off(tp.svdvals(B).get(), B.get()) <= 4


def test_degenerate_matrices():
    assert tp.svdvals(cupy.asarray(np.zeros((30, 20), "float32"))).get().max() == 0
    ones = tp.svdvals(cupy.asarray(np.ones((30, 20)))).get()
    assert ones[0] == pytest.approx(np.sqrt(600))
    assert ones[1] < 1e-14


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_entries_that_are_not_finite_are_refused(bad):
    A = drawn(20, 20)
    A[3, 4] = bad
    with pytest.raises(InputError, match="finite entries"):
        tp.svdvals(cupy.asarray(A))


def test_a_driver_that_does_not_converge_is_left_out(monkeypatch, capsys):
    def failing(A):
        raise np.linalg.LinAlgError("devInfo = 7")

    monkeypatch.setattr(device, "cusolver", failing)
    A = drawn(40, 30)
    assert units_off(tp.svdvals(cupy.asarray(A)).get(), A) <= 4
    assert "cuSOLVER is left out: devInfo = 7" in capsys.readouterr().err
    assert set(drivers.CHOICES.values()) == {"two-stage"}


def test_another_process_takes_the_same_driver(monkeypatch):
    """Whatever is faster there: it is read from the file."""
    A = cupy.asarray(drawn(40, 30))
    tp.svdvals(A)
    (key,) = drivers.CHOICES
    drivers.remembered(key, "cuSOLVER")
    monkeypatch.setattr(drivers, "CHOICES", {})
    monkeypatch.setattr(drivers, "_timed", lambda candidates, argument: pytest.fail("timed again"))
    tp.svdvals(A)
    assert {key: "cuSOLVER"} == drivers.CHOICES


def test_a_full_gpu_is_done_without(monkeypatch, capsys):
    from tightpass.spectra import dense

    real, A = dense.verified, drawn(40, 30)

    def full(matrix, *args):
        if isinstance(matrix, cupy.ndarray):
            raise cupy.cuda.memory.OutOfMemoryError("out of memory")
        return real(matrix, *args)

    monkeypatch.setattr(dense, "verified", full)
    found = tp.svdvals(cupy.asarray(A))
    assert isinstance(found, cupy.ndarray)
    assert units_off(found.get(), A) <= 4
    assert "the GPU is too small" in capsys.readouterr().err


def test_an_array_on_another_device(second):
    A = drawn(40, 30)
    with second:
        there = cupy.asarray(A)
    found = tp.svdvals(there)
    assert found.device.id == 1
    assert units_off(found.get(), A) <= 4


def test_leading_values():
    A = drawn(120, 90)
    true = true_values(A)[:5]
    found = tp.svds(cupy.asarray(A), k=5)
    assert found.converged
    assert isinstance(found.S, cupy.ndarray)
    assert np.abs(found.S.get() - true).max() <= 1e-5 * true[0]
    assert np.abs(rough_svds(cupy.asarray(A), 5).S.get() - true).max() <= 0.2 * true[0]


def test_what_a_step_of_the_reduction_asks_of_the_device(log):
    """Launches, and copies to the host, each of which waits; what is written here may only go down."""
    A = cupy.asarray(drawn(200, 200))
    log.clear()
    by_two_stage(A)
    steps = 200 / 16
    assert log["launch"] / steps <= 160
    assert log["to host"] / steps <= 7
