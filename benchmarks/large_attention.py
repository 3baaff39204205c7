"""Attention of OPT-125M's shape at 34 tokens, from model to verified spectrum, as a user types it.

    python benchmarks/large_attention.py

N = 26 112, float32, random weights, one layer: seconds, peak memory, and the command's own output as its log. The usual
way, `torch.linalg.svdvals` of the same matrix, is extrapolated from N = 12 288 (`benchmarks/svd.py`) by N³.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import RESULTS, save

import tightpass as tp

QUESTION = "--model opt-125m --weights random --block attn --layers 0 --tokens 34 --dtype float32 --discard-jacobian"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("tightpass")), "run", *QUESTION.split(), "--out", f"{folder}/run"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise RuntimeError(output)
        run = tp.open(f"{folder}/run")
        record = run.records[0]
        checked = tp.verify(f"{folder}/run")
        planned = json.loads(
            subprocess.run(
                [command[0], "plan", *QUESTION.split(), "--json"], capture_output=True, text=True, check=True
            ).stdout
        )["memory"]
    log = f"$ tightpass run {QUESTION}\n{output.replace(folder, 'DIR')}"
    (RESULTS / "large_attention.log").write_text(log)
    print(log, f"{seconds:.0f} s, {usage.ru_maxrss / 2**20:.2f} GiB (planned {planned / 2**30:.2f})", sep="\n")
    svd = json.loads((RESULTS / "svd.json").read_text())["large"]["cases"]
    usual = next(c["times"]["torch"]["median"] for c in svd if c["size"] == 12288) * (26112 / 12288) ** 3
    s = record.spectrum
    save(
        "large_attention",
        {
            "command": f"tightpass run {QUESTION}",
            "seconds": seconds,
            "stages": record.seconds,
            "peak_bytes": usage.ru_maxrss * 1024,
            "planned_bytes": planned,
            "method": s.method,
            "checks": s.checks,
            "verified": checked,
            "svd_error": [vars(part) for part in s.floor.parts],
            "sigma_1": float(s.values[0]),
            "usual_seconds_extrapolated": usual,
        },
    )


if __name__ == "__main__":
    main()
