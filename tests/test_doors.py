"""Whatever is handed to a public function or method is taken for what it means, or refused in words: one of the package's own
errors, short, and never another."""

from __future__ import annotations

import decimal
import fractions
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from oracles.small_models import opt

import tightpass as tp
from tightpass.errors import InputError, TightpassError

N = 42


class Odd:
    """Nothing that anything could use."""


HOSTILE = {
    "None": None,
    "texts": ["", "x", "a\0b", "x" * 5000, "\ud800", b"x", np.str_("x")],
    "lists": [[], ["a"], [[1.0, 2.0]], [[1.0], [1.0, 2.0]], [None], (), {}, {"a": 1}, {1}, range(3), slice(None)],
    "numbers": [float("nan"), float("inf"), -1, 1.5, -0.0, 2**70, -(2**70), 10**400, 2**63, True, False, 1j],
    "numpy's": [np.uint64(2**64 - 1), np.float64("nan"), np.bool_(True), np.complex128(1j), np.array(1), np.array(0.5)],
    "others": [decimal.Decimal("0.5"), fractions.Fraction(1, 2), Odd(), int, np, Path("."), ..., torch.nn.Linear(2, 2)],
    "arrays": [
        *(np.zeros(shape) for shape in (0, 3, (0, 3), (2, 3), (2, 2, 2))),
        *(np.ones((N, 1), kind) for kind in (int, np.float16, np.float32, complex, bool, object, np.longdouble, ">f8")),
        np.array(["a", "b"]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.zeros(2, dtype=[("a", int)]),
        np.ma.masked_array(np.ones((N, 1)), mask=True),
        np.full((3, 3), np.nan),
        pd.DataFrame({"a": [1]}),
        pd.Series([1.0]),
    ],
    "tensors": [
        torch.tensor(0.5),
        torch.zeros(0),
        torch.zeros(2, 3, dtype=torch.bfloat16),
        torch.zeros(2, 3, dtype=torch.complex128),
        torch.eye(3, dtype=torch.float64).to_sparse(),
        torch.eye(3, dtype=torch.float64).to_sparse_csr(),
        torch.zeros(2, 3, device="meta", dtype=torch.float64),
        torch.zeros(N, 1, dtype=torch.float64, requires_grad=True),
        torch.full((2, 3), float("nan"), dtype=torch.float64),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
}


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """One of each object that the package hands out."""
    model = tp.load_model(opt())
    block = tp.block(model, "mlp", layer=0, token_ids=[1, 2])
    J = tp.jacobian(block)
    out = tmp_path_factory.mktemp("doors") / "a"
    run = tp.run(opt(), tokens=2, layers="0", out=out)
    matrix = np.random.default_rng(0).standard_normal((6, 5))
    return {"model": model, "block": block, "J": J, "S": tp.spectrum(J), "run": run, "A": matrix}


x = torch.ones(2, 3, dtype=torch.float64)
COUNTS = {"rows": 2, "columns": 2}
CALLS = {
    "load_model": lambda t: (
        tp.load_model,
        {"model": t["model"].base, "dtype": 0, "device": 0, "weights": 0, "seed": 0, "memory": 0},
    ),
    "block": lambda t: (
        tp.block,
        {
            "model": t["model"],
            "kind": "mlp",
            "layer": 0,
            "tokens": 2,
            "norm": True,
            "residual": False,
            "special": True,
            "seed": 0,
        },
    ),
    "block, head": lambda t: (
        tp.block,
        {"model": t["model"], "kind": "head", "layer": 0, "head": 1, "token_ids": [1, 2]},
    ),
    "jacobian": lambda t: (tp.jacobian, {"fn": torch.tanh, "x": x, "structure": None, "memory": None}),
    "spectrum": lambda t: (tp.spectrum, {"J": t["J"], "method": "topk", "vectors": 1, "k": 2}),
    "svdvals": lambda t: (tp.svdvals, {"A": t["A"], "overwrite": False}),
    "svds": lambda t: (tp.svds, {"A": t["A"], "k": 2, "tol": 1e-8, "block": 4, "limit": 99, "seed": 0}),
    "rough_svds": lambda t: (tp.rough_svds, {"A": t["A"], "k": 2, "power": 2, "oversampling": 3, "seed": 0}),
    "difference": lambda t: (tp.difference, {"a": t["S"], "b": t["S"]}),
    "spread": lambda t: (tp.spread, {"tables": [t["run"].table()], "names": ["A"]}),
    "open": lambda t: (tp.open, {"directory": t["run"].directory}),
    "verify": lambda t: (tp.verify, {"directory": t["run"].directory}),
    "compare": lambda t: (tp.compare, {"first": t["run"].directory, "second": t["run"].directory, "force": False}),
    "Config": lambda t: (tp.Config, tp.Config().model_dump()),
    "Config.read": lambda t: (tp.Config.read, {"path": t["run"].directory / "run.yaml"}),
    "J @ X": lambda t: (lambda X: t["J"] @ X, {"X": np.ones(N)}),
    "J.T @ X": lambda t: (lambda X: t["J"].T @ X, {"X": np.ones(N)}),
    "J.matvec": lambda t: (t["J"].matvec, {"x": np.ones(N)}),
    "J.rmatmat": lambda t: (t["J"].rmatmat, {"Y": np.ones((N, 1))}),
    "J.factors": lambda t: (t["J"].factors, {"t": 0}),
    "rank_at": lambda t: (t["S"].rank_at, {"tau": 0.1}),
    "rank_curve": lambda t: (t["S"].rank_curve, {"taus": [0.1]}),
    "run[..]": lambda t: (lambda name: t["run"][name], {"name": "L00.mlp"}),
    "run.shard": lambda t: (t["run"].shard, {"name": "L00.mlp"}),
    "block(x)": lambda t: (t["block"], {"x": t["block"].x}),
    "in_precision": lambda t: (t["block"].in_precision, {"dtype": torch.float32}),
    **{
        f"{s.name}.count": lambda t, s=s: (s.count, COUNTS)
        for s in (tp.BlockDiagonal(), tp.BlockLowerTriangular(), tp.Dense())
    },
    **{
        f"{s.name}.row": lambda t, s=s: (s.row, {"t": 0, "tokens": 2})
        for s in (tp.BlockDiagonal(), tp.BlockLowerTriangular(), tp.Dense())
    },
}
FAIR = {"load_model": {"dtype": "float64", "device": "cpu", "weights": "pretrained", "seed": 0, "memory": None}}


def refusal(call):
    """What a call is refused with, nothing where it is taken; any other exception goes through."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except TightpassError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", CALLS)
def test_whatever_is_handed_in_is_taken_or_refused_in_words(name, things):
    call, fair = CALLS[name](things)
    fair = fair | FAIR.get(name, {})
    assert refusal(lambda: call(**fair)) == ""
    said = []
    for parameter in fair:
        for values in HOSTILE.values():
            for value in values if isinstance(values, list) else [values]:
                said.append(refusal(lambda p=parameter, v=value: call(**fair | {p: v})))
    assert sum(map(bool, said)) > 20
    assert max(map(len, said)) < 800


REFUSED = {
    "a threshold in words": (lambda t: t["S"].rank_curve(["a"]), "a threshold is a number ≥ 0 .* got .*'a'"),
    "a matrix of thresholds": (lambda t: t["S"].rank_curve([[1.0, 2.0]]), "one number or a list of numbers"),
    "a complex threshold": (lambda t: t["S"].rank_curve(np.array([1j])), "a threshold is a number"),
    "a device that is none": (lambda t: tp.load_model("demo", device=None), "device must be auto, cpu or cuda"),
    "a directory by number": (lambda t: tp.open(3), "directory must be a path, got 3"),
    **{
        f"seed {seed!r}": (
            lambda t, s=seed: tp.load_model("demo", seed=s),
            "seed: expected a whole number from 0 to 9223",
        )
        for seed in ("x", 2**70, -1, 1.5, True, None)
    },
    **{
        f"memory {memory!r}": (lambda t, m=memory: tp.load_model("demo", memory=m), "memory.* got ")
        for memory in (-1, 0, 1.5, True, "lots", "0GiB", "9" * 400)
    },
    "a head below 0": (
        lambda t: tp.block(t["model"], "head", layer=0, head=-1, token_ids=[1]),
        "has heads 0..2, got -1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_what_was_expected(case, things):
    call, said = REFUSED[case]
    with pytest.raises(InputError, match=said):
        call(things)


TAKEN = {
    "memory in words": lambda t: tp.load_model("demo", memory="4GiB"),
    "memory of NumPy": lambda t: tp.load_model("demo", memory=np.int64(2**32)),
    "a seed of NumPy": lambda t: tp.load_model("demo", weights="random", seed=np.uint8(3)),
    "a device of torch": lambda t: tp.load_model("demo", device=torch.device("cpu"), dtype=torch.float32),
    "thresholds of NumPy": lambda t: t["S"].rank_curve(np.float32([0.1, 1])),
    "one threshold": lambda t: t["S"].rank_curve(0.1),
    "a threshold that is a fraction": lambda t: t["S"].rank_at(fractions.Fraction(1, 3)),
    "a layer of NumPy": lambda t: tp.block(
        t["model"], "head", layer=np.int8(0), head=np.uint16(1), token_ids=np.array([1, 2])
    ),
    "a truth value of NumPy": lambda t: tp.block(t["model"], "mlp", layer=0, norm=np.bool_(False), tokens=2),
    "a path in text": lambda t: tp.open(str(t["run"].directory)),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_means_the_right_thing_is_taken(case, things):
    TAKEN[case](things)
