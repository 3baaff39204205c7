"""What it takes to start: processor time of commands that read, and of importing the package.

    python benchmarks/startup.py

Each round is a fresh process; medians of user and system time, which do not depend on how busy the machine is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import save, summary

ROUNDS = 7
ALLOWED = {"tightpass --version": 0.3, "tightpass show DIR": 1.5, "import tightpass": 0.5}


def cpu(command: list[str]) -> float:
    """User and system seconds of one process."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command} failed with status {status}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    tightpass = str(Path(sys.executable).with_name("tightpass"))
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        subprocess.run([tightpass, "run", "--out", run], check=True, stdout=subprocess.DEVNULL)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "tightpass --version": [tightpass, "--version"],
            "tightpass --help": [tightpass, "--help"],
            "tightpass show DIR": [tightpass, "show", run],
            "tightpass compare DIR DIR": [tightpass, "compare", run, run],
            "import tightpass": [sys.executable, "-c", "import tightpass"],
            "tightpass.open(DIR)": [sys.executable, "-c", "import sys, tightpass; tightpass.open(sys.argv[1])", run],
        }
        samples: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                samples[name].append(cpu(command))
    times = {name: summary(values) for name, values in samples.items()}
    save("startup", {"cpu_seconds": times, "allowed": ALLOWED})
    for name, limit in ALLOWED.items():
        print(f"{name}: {times[name]['median']:.2f} s, at most {limit} s are allowed")


if __name__ == "__main__":
    main()
