"""Singular values and leading triplets against the libraries, answers checked in the same run.

    python benchmarks/svd.py [small] [large] [stages] [memory] [batched] [leading] [products]

Without arguments all parts, about half an hour on 2 cores; a part alone replaces its own in the results. Contenders run
in turn, a tenth of a second apart, since threads of one library that wait spinning would slow the next one down; short
ones run once untimed first, since threads that sleep take milliseconds to wake up.

`leading` also measures scikit-learn and skerch where they are installed (pip install scikit-learn skerch==1.2.0).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, fresh_process, gemm_rate, peak_since_reset, reset_peak, save, seconds, summary, timed

import tightpass as tp
from tightpass.jacobians.operator import Jacobian
from tightpass.kernels import products as skinny
from tightpass.kernels import svd
from tightpass.spectra import twostage
from tightpass.spectra.batched import block_values
from tightpass.spectra.gram import gram_values

SMALL, LARGE = (64, 96, 128, 256, 400, 512, 1024), (2304, 6144, 12288)
ALLOWED = 4.0
"""Units of eps·√N·σ₁ that two routes may differ by."""
K, TOKENS, TOL = 64, 8, 1e-6


def alternate(
    works: dict[str, Callable[[], Any]], rounds: int, long: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Times works in turn, after a pause and, unless they are long, one run untimed, which wakes the threads up.

    Their answers as well.
    """
    answers: dict[str, Any] = {}
    samples: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            time.sleep(0.1)
            if not long:
                work()

            def keep(name: str = name, work: Callable[[], Any] = work) -> None:
                answers[name] = work()

            samples[name].append(seconds(keep))
    return {name: summary(times) for name, times in samples.items()}, answers


def gaussian(n: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, n), dtype=dtype)


def small() -> dict[str, Any]:
    """All singular values of small Gaussian matrices."""
    return values(SMALL)


def large() -> dict[str, Any]:
    """All singular values of large Gaussian matrices."""
    return values(LARGE)


def values(sizes: tuple[int, ...]) -> dict[str, Any]:
    cases = []
    for dtype in ("float32", "float64"):
        for n in sizes:
            if (dtype, n) == ("float64", 12288):
                continue  # ten minutes
            A = gaussian(n, dtype)
            T = torch.from_numpy(A)
            works = {
                "tightpass": lambda A=A: tp.svdvals(A),
                "torch": lambda T=T: torch.linalg.svdvals(T).numpy(),
                "numpy": lambda A=A: np.linalg.svd(A, compute_uv=False),
            }
            rounds = 31 if n <= 128 else 9 if n <= 1024 else 5 if n == 2304 else 2 if n == 6144 else 1
            if n > 6144:
                del works["numpy"]  # a quarter of an hour
            times, answers = alternate(works, rounds, long=n >= 6144)
            unit = np.finfo(dtype).eps * np.sqrt(n) * float(answers["torch"][0])
            apart = float(np.abs(answers["tightpass"] - answers["torch"].astype(float)).max()) / unit
            if apart > ALLOWED:
                raise RuntimeError(f"{dtype} {n}: tightpass and torch differ by {apart:.1f} eps·√N·σ₁")
            faster = {
                name: times[name]["median"] / times["tightpass"]["median"] for name in works if name != "tightpass"
            }
            cases.append({"size": n, "dtype": dtype, "times": times, "faster_than": faster, "apart_units": apart})
            print(
                dtype,
                n,
                {k: f"{v['median']:.4g} s" for k, v in times.items()},
                {k: f"{v:.2f}x" for k, v in faster.items()},
                f"apart {apart:.2f}",
                flush=True,
            )
    return {"cases": cases}


def stages() -> dict[str, Any]:
    """Band, bulges and bisection one by one, in GFLOP/s of 8/3·N³ and in parts of the best product."""
    rates = {}
    for dtype in ("float32", "float64"):
        X, W = (torch.randn(rows, columns, dtype=getattr(torch, dtype)) for rows, columns in ((512, 768), (768, 2304)))
        rates[dtype] = {
            "torch": gemm_rate(getattr(torch, dtype)),
            "kernel": 2e-9 * 512 * 768 * 2304 / timed(lambda X=X, W=W: skinny.product(X, W), 60)["median"],
            "numpy": numpy_rate(dtype),
        }
    cases = []
    for dtype, n in (("float32", 2304), ("float32", 6144), ("float32", 12288), ("float64", 2304), ("float64", 6144)):
        samples: dict[str, list[float]] = {"band": [], "bulges": [], "values": []}
        for _ in range(3):
            for name, taken in zip(samples, one_by_one(gaussian(n, dtype)), strict=True):
                samples[name].append(taken)
        median = {name: summary(taken)["median"] for name, taken in samples.items()}
        best = max(rates[dtype].values())
        rate = 8e-9 / 3 * n**3 / median["band"]
        cases.append(
            {
                "size": n,
                "dtype": dtype,
                "seconds": {k: summary(v) for k, v in samples.items()},
                "band_gflops": rate,
                "band_of_best_product": rate / best,
            }
        )
        print(
            dtype,
            n,
            {k: f"{v:.3f}" for k, v in median.items()},
            f"band {rate:.0f} GFLOP/s, {rate / best:.0%} of the best product",
            flush=True,
        )
    print({dtype: {k: round(v) for k, v in r.items()} for dtype, r in rates.items()})
    return {"product_gflops": rates, "cases": cases}


def numpy_rate(dtype: str) -> float:
    A = gaussian(2048, dtype)
    times, _ = alternate({"numpy": lambda: A @ A}, 5)
    time.sleep(0.2)
    return 2e-9 * 2048**3 / times["numpy"]["median"]


def one_by_one(A: np.ndarray) -> list[float]:
    """Seconds of the three stages; A is destroyed."""
    n, dtype = len(A), A.dtype
    b = twostage.band_width(n)
    rows = n + 2 * b
    padded = np.empty((n, n + 16), dtype)[:, :n]  # as two_stage lays out its copy
    padded[...] = A
    band, left, right = (np.zeros((rows, width), dtype) for width in (3 * b, 4, 4))
    time.sleep(0.1)
    taken = [seconds(lambda: svd.band_reduction(padded, band, left, right, b))]
    taken.append(seconds(lambda: svd.bulge_chase(band, left, right, n, b)))
    d, e = band[:n, b].astype(float), band[: n - 1, b + 1].astype(float)
    eps = float(np.finfo(dtype).eps)
    taken.append(seconds(lambda: svd.bisection(d, e, eps / 32 * float(np.abs(d).max()), eps / 8)))
    return taken


def memory() -> dict[str, Any]:
    """Peak memory beyond what is there, in units of the matrix; each in a process of its own."""
    extra = {}
    for name in ("overwrite", "copy", "gram", "torch"):
        extra[name] = fresh_process(__file__, "--peak", name)["extra"]
        print(name, f"{extra[name]:.2f} of the matrix", flush=True)
    return {"size": 6144, "dtype": "float32", "extra_in_matrices": extra}


def peak(name: str) -> None:
    A = gaussian(6144, "float32")
    tp.svdvals(A[:64, :64].copy())
    works: dict[str, Callable[[], Any]] = {
        "overwrite": lambda: tp.svdvals(A, overwrite=True),
        "copy": lambda: tp.svdvals(A),
        "gram": lambda: gram_values(((A[i : i + 256], slice(0, 6144)) for i in range(0, 6144, 256)), 6144),
        "torch": lambda: torch.linalg.svdvals(torch.from_numpy(A)),
    }
    before = reset_peak()
    works[name]()
    print(json.dumps({"extra": (peak_since_reset() - before) / A.nbytes}))


def batched() -> dict[str, Any]:
    """64 blocks of 768²."""
    blocks = torch.randn(64, 768, 768, generator=torch.Generator().manual_seed(0))
    times, answers = alternate(
        {"tightpass": lambda: np.stack(block_values(blocks)), "torch": lambda: torch.linalg.svdvals(blocks).numpy()}, 3
    )
    apart = float(
        np.abs(answers["tightpass"] - answers["torch"]).max()
        / (np.finfo("float32").eps * np.sqrt(768) * answers["torch"].max())
    )
    if apart > ALLOWED:
        raise RuntimeError(f"batched: {apart:.1f} eps·√N·σ₁ apart")
    faster = times["torch"]["median"] / times["tightpass"]["median"]
    print("batched", {k: f"{v['median']:.2f} s" for k, v in times.items()}, f"{faster:.2f}x", flush=True)
    return {"times": times, "faster_than_torch": faster, "apart_units": apart}


def residual(D: np.ndarray, U: Any, S: Any, Vh: Any) -> float:
    """The worst √(‖Av − σu‖² + ‖Aᵀu − σv‖²) relative to σ₁, in float64."""
    U, S, Vh = (np.asarray(part, dtype=np.float64) for part in (U, S, Vh))
    wide = D.astype(np.float64)
    return float(
        np.hypot(np.linalg.norm(wide @ Vh.T - U * S, axis=0), np.linalg.norm(wide.T @ U - Vh.T * S, axis=0)).max()
        / S.max()
    )


def leading() -> dict[str, Any]:
    """64 leading triplets of attention's Jacobian, 8 tokens of OPT-125M's shape, random weights, float32."""
    from scipy.sparse.linalg import svds as scipy_svds

    model = tp.load_model("opt-125m", dtype="float32", weights="random")
    J = tp.jacobian(tp.block(model, "attn", layer=0, tokens=TOKENS))
    D = J.dense().numpy()
    operator = J.to_scipy()
    twin = J.block.in_precision(torch.float64)  # the same weights and x
    J64 = Jacobian(twin.function(), twin.x, twin.structure, block=twin).to_scipy()

    def ours(A: Any) -> tuple[Any, Any, Any]:
        found = tp.svds(A, K, tol=TOL)
        return found.U, found.S, found.Vh

    works: dict[str, Callable[[], Any]] = {
        "tightpass, stored": lambda: ours(D),
        "tightpass, operator": lambda: ours(J),
        "PROPACK, stored": lambda: scipy_svds(D, K, solver="propack", tol=TOL),
        "PROPACK, operator": lambda: scipy_svds(operator, K, solver="propack", tol=TOL),
        "PROPACK, operator, float64": lambda: scipy_svds(J64, K, solver="propack", tol=TOL),
        "torch.svd_lowrank, 20 iterations": lambda: torch_lowrank(D),
    }
    works |= others(D)
    times, answers = alternate(works, 5)
    rows = {}
    for name in works:
        rows[name] = {"seconds": times[name], "residual": residual(D, *answers[name])}
        print(f"{name:40} {times[name]['median']:7.3f} s  residual {rows[name]['residual']:.1e}", flush=True)
    best = np.sort(answers["PROPACK, operator, float64"][1])[::-1]
    apart = float(np.abs(np.sort(np.asarray(answers["tightpass, stored"][1]))[::-1] - best).max() / best[0])
    if apart > 1e-5:
        raise RuntimeError(f"leading values differ from PROPACK's in float64 by {apart:.1e}")
    ratios = {
        where: times[f"PROPACK, {where}"]["median"] / times[f"tightpass, {where}"]["median"]
        for where in ("stored", "operator")
    }
    ratios["operator, PROPACK in float64"] = (
        times["PROPACK, operator, float64"]["median"] / times["tightpass, operator"]["median"]
    )
    print({k: f"{v:.2f}x" for k, v in ratios.items()}, f"values apart {apart:.1e}")
    return {
        "k": K,
        "tol": TOL,
        "shape": list(D.shape),
        "rows": rows,
        "faster_than_propack": ratios,
        "values_apart": apart,
    }


def torch_lowrank(D: np.ndarray) -> tuple[Any, Any, Any]:
    U, S, V = torch.svd_lowrank(torch.from_numpy(D), q=K + 10, niter=20)
    return U[:, :K], S[:K], V[:, :K].T


def others(D: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Randomized methods, where they are installed."""
    works: dict[str, Callable[[], Any]] = {}
    try:
        from sklearn.utils.extmath import randomized_svd

        for count in ("auto", 20):
            works[f"scikit-learn randomized_svd, {count}"] = lambda count=count: randomized_svd(
                D, K, n_iter=count, random_state=0
            )
    except ImportError:
        print("scikit-learn is not installed")
    try:
        from skerch.algorithms import ssvd

        def sketched() -> tuple[Any, Any, Any]:
            U, S, Vh = ssvd(torch.from_numpy(D), "cpu", torch.float32, 2 * K)
            return U[:, :K], S[:K], Vh[:K]

        works["skerch ssvd"] = sketched
    except ImportError:
        print("skerch is not installed")
    return works


def products() -> dict[str, Any]:
    """A·X and Aᵀ·Y with few columns, and rows of activations times weights, against torch."""
    cases = []
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        A = torch.randn(6144, 6144, dtype=dtype, generator=generator)
        for columns in (1, 16, 32, 64):
            X = torch.randn(6144, columns, dtype=dtype, generator=generator)
            cases.append(
                product_case(
                    f"A·X, {columns} columns", lambda A=A, X=X: A @ X, lambda A=A, X=X: skinny.product(A, X), dtype
                )
            )
            cases.append(
                product_case(
                    f"Aᵀ·Y, {columns} columns",
                    lambda A=A, X=X: A.T @ X,
                    lambda A=A, X=X: skinny.adjoint_product(A, X),
                    dtype,
                )
            )
        W = torch.randn(768, 2304, dtype=dtype, generator=generator)
        for rows in (8, 64, 128, 512):
            X = torch.randn(rows, 768, dtype=dtype, generator=generator)
            cases.append(
                product_case(
                    f"{rows} rows · (768 × 2304)", lambda X=X, W=W: X @ W, lambda X=X, W=W: skinny.product(X, W), dtype
                )
            )
    return {"cases": cases}


def product_case(name: str, library: Callable[[], Any], own: Callable[[], Any], dtype: torch.dtype) -> dict[str, Any]:
    times, answers = alternate({"torch": library, "tightpass": own}, 9)
    apart = float((answers["torch"] - answers["tightpass"]).abs().max() / answers["torch"].abs().max())
    if apart > 1e3 * torch.finfo(dtype).eps:
        raise RuntimeError(f"{name}: {apart:.1e} apart")
    faster = times["torch"]["median"] / times["tightpass"]["median"]
    print(
        str(dtype).removeprefix("torch."),
        name,
        {k: f"{v['median'] * 1e3:.2f} ms" for k, v in times.items()},
        f"{faster:.2f}x",
        flush=True,
    )
    return {"case": name, "dtype": str(dtype).removeprefix("torch."), "times": times, "faster": faster}


PARTS = {part.__name__: part for part in (small, large, stages, memory, batched, leading, products)}


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        peak(sys.argv[2])
        return
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        sys.exit(f"unknown parts: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    path: Path = RESULTS / "svd.json"
    document = json.loads(path.read_text()) if path.is_file() else {}
    document.pop("environment", None)
    for name in wanted:
        document[name] = PARTS[name]()
        save("svd", document)


if __name__ == "__main__":
    main()
