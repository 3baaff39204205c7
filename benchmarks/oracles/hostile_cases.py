"""Blocks in which something goes to an extreme: attention that saturates, or looks at one token alone; units that are pruned;
heads that are alike; weights that float32 holds, and such that it does not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import tightpass as tp
from oracles import fuzz_cases
from oracles.fuzz_cases import Case
from tightpass.jacobians.twice.block import twice

QK = (1.0, 3.0, 10.0, 15.0, 30.0, 60.0, 100.0)
COMMON = {"family": "opt", "tokens": 4, "width": 4, "heads": 2, "units": 8, "layer": 0, "pre_norm": True, "bias": 0.2}


def saturated(dtype: str, each: int) -> Iterator[Case]:
    """Query and key weights times 1 to 100."""
    for qk in QK:
        for seed in range(each):
            yield Case(**COMMON, kind="attn", dtype=dtype, seed=seed, entries="normal", scale=0.3, qk=qk)


def sinks(dtype: str, each: int) -> Iterator[Case]:
    """All rows look at token 0 most."""
    settings = COMMON | {"bias": 10.0, "heads": 1}
    drawn = (
        Case(**settings, kind="attn", dtype=dtype, seed=seed, entries="normal", scale=0.3, qk=10.0) for seed in count()
    )
    return islice((case for case in drawn if _looks_at_the_first(case)), each)


def _looks_at_the_first(case: Case) -> bool:
    model = tp.load_model(fuzz_cases.model(case), dtype=case.dtype)
    exact = twice(tp.block(model, "attn", layer=0, token_ids=fuzz_cases.token_ids(case)))
    assert exact is not None
    attention = exact.map.maps[-1]  # behind the norm
    return bool((attention.a.hi.argmax(-1) == 0).all())


def pruned(dtype: str, each: int) -> Iterator[Case]:
    """Zero rows of W₁, zero columns of W₂."""
    for which in ("rows", "columns", "both"):
        for seed in range(each):
            yield Case(**COMMON, kind="mlp", dtype=dtype, seed=seed, entries="normal", scale=1.0, pruned=which)


def tied(dtype: str, each: int) -> Iterator[Case]:
    """All heads alike."""
    for kind in ("attn", "layer"):
        for seed in range(each):
            yield Case(**COMMON, kind=kind, dtype=dtype, seed=seed, entries="normal", scale=1.0, tied=True)


def held_by_float32(dtype: str, each: int) -> Iterator[Case]:
    """Weights that float32 holds exactly, as real checkpoints' are, small integers and signs among them."""
    for entries in ("held_by_float32", "integers", "signs"):
        for kind in ("mlp", "attn"):
            for seed in range(each):
                yield Case(**COMMON, kind=kind, dtype=dtype, seed=seed, entries=entries, scale=1.0)


def not_held(dtype: str, each: int) -> Iterator[Case]:
    """Weights that float32 does not hold."""
    for kind in ("mlp", "attn"):
        for seed in range(each):
            yield Case(**COMMON, kind=kind, dtype=dtype, seed=seed, entries="normal", scale=1.0)


GROUPS = {
    "softmax saturates: q and k weights × 1 to 100": (saturated, 30),
    "all rows look at token 0": (sinks, 40),
    "pruned units": (pruned, 20),
    "heads all alike": (tied, 25),
    "weights that float32 holds": (held_by_float32, 20),
    "weights that it does not": (not_held, 40),
}
