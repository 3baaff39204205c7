"""What every benchmark shares: environment, medians, fresh processes, results on disk."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path(__file__).parent / "results"


def environment(rates: bool = True) -> dict[str, Any]:
    """Processor, threads and versions, and the GEMM rates that all times are to be read against."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("tightpass", "torch", "numpy", "scipy", "transformers", "h5py")},
        **({"gemm_gflops": {str(t)[6:]: gemm_rate(t) for t in (torch.float32, torch.float64)}} if rates else {}),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def commit() -> str:
    """The commit that is measured, and whether files of it were changed; "unknown" outside of a clone."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=RESULTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def gemm_rate(dtype: torch.dtype, n: int = 2048, device: str = "cpu") -> float:
    """GFLOP/s of a square product, median of 5."""
    A = torch.randn(n, n, dtype=dtype, device=device)

    def work() -> None:
        A @ A
        if A.is_cuda:
            torch.cuda.synchronize()

    work()
    return round(2 * n**3 / timed(work, 5)["median"] / 1e9, 1)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def summary(samples: list[float]) -> dict[str, Any]:
    """Median, range and the samples themselves."""
    return {"median": statistics.median(samples), "low": min(samples), "high": max(samples), "samples": samples}


def timed(work: Callable[[], Any], rounds: int) -> dict[str, Any]:
    return summary([seconds(work) for _ in range(rounds)])


def interleaved(works: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Times several works in turn, so that a slow minute hits them all.

    Returns the times, and what each work answered in its warm-up.
    """
    samples: dict[str, list[float]] = {name: [] for name in works}
    answers = {name: work() for name, work in works.items()}
    for _ in range(rounds):
        for name, work in works.items():
            samples[name].append(seconds(work))
    return {name: summary(values) for name, values in samples.items()}, answers


def reset_peak() -> int:
    """Gives freed memory back and forgets the peak so far (Linux); returns resident bytes now."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def peak_since_reset() -> int:
    """Peak resident bytes since `reset_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """Runs `script` anew; its last line of output is a JSON document."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def save(name: str, document: dict[str, Any], rates: bool = True) -> None:
    """Writes results/NAME.json with the environment beside the numbers; where those are no times, without rates."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(rates), **document}, indent=1) + "\n")
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def read(name: str) -> dict[str, Any]:
    """results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())  # type: ignore[no-any-return]


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown; all columns but the first to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
