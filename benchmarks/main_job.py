"""`tightpass run` as a user types it: wall time and peak memory, start-up included.

    python benchmarks/main_job.py

Each round is a fresh process and a fresh directory. Ranks are checked to be the same in every round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import save, summary

ROUNDS = 3
CASES = {
    "demo, mlp, 64 tokens": [],
    "demo, mlp, 64 tokens, float32": ["--dtype", "float32"],
    "demo, mlp, 256 tokens": ["--tokens", "256"],
    "demo, attn, 16 tokens": ["--block", "attn", "--tokens", "16"],
    "demo, one attn, 32 tokens": ["--block", "attn", "--tokens", "32", "--layers", "3"],
}


def once(arguments: list[str]) -> tuple[float, int, list]:
    """Seconds, peak bytes and ranks of one command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(Path(sys.executable).with_name("tightpass")),
            "run",
            *arguments,
            "--out",
            f"{folder}/run",
            "--json",
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        output, _ = process.stdout.read(), None
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise RuntimeError(f"{command} failed with status {status}")
        jobs = json.loads(output)["jobs"]
        ranks = [[j["job"], j["rank_low"], j["rank_high"], j["flag"], j["confidence"]] for j in jobs]
        return seconds, usage.ru_maxrss * 1024, ranks


def planned(arguments: list[str]) -> int:
    """The peak that `tightpass plan` predicts."""
    command = [str(Path(sys.executable).with_name("tightpass")), "plan", *arguments, "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["memory"]


def main() -> None:
    cases = []
    for name, arguments in CASES.items():
        rounds = [once(arguments) for _ in range(ROUNDS)]
        ranks = [r[2] for r in rounds]
        if any(r != ranks[0] for r in ranks):
            raise RuntimeError(f"{name}: the ranks differ between rounds")
        case = {
            "case": name,
            "command": " ".join(["tightpass run", *arguments]),
            "seconds": summary([r[0] for r in rounds]),
            "peak_bytes": summary([float(r[1]) for r in rounds]),
            "planned_bytes": planned(arguments),
            "ranks": ranks[0],
        }
        cases.append(case)
        print(
            name,
            f"{case['seconds']['median']:.1f} s",
            f"{case['peak_bytes']['median'] / 2**20:.0f} MiB (planned {case['planned_bytes'] / 2**20:.0f})",
            flush=True,
        )
    save("main_job", {"cases": cases})


if __name__ == "__main__":
    main()
