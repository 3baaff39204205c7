"""Faults planted in the CUDA kernels, each of which the tests on the emulated device have to catch.

    python mutants.py --compiler c++ --baseline libtightpass_baseline.a

A mutant is caught where the test fails, plain or under the thread sanitizer. Without any fault it has to pass.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from translate import translated

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "cuda"
UNITS = ("attention_blocks", "bisection", "bulge", "device", "rows")
FLAGS = {
    "plain": (("-O1",), "EMULATED_PLAIN"),
    "threads": (("-O1", "-g", "-fsanitize=thread"), "EMULATED_TSAN"),
}
INCLUDES = (f"-I{HERE / 'shim'}", f"-I{KERNELS}")
LIMIT = 120
"""Seconds; a mutant may also hang."""


@dataclass(frozen=True)
class Mutant:
    """A fault: `old`, the `which`-th of its kind in the kernel's source, becomes `new`; `by` says which build has to see it."""

    unit: str
    what: str
    old: str
    new: str
    parts: str
    by: str = "plain"
    which: int = 0

    def source(self) -> str:
        whole = (KERNELS / f"{self.unit}.cu").read_text(encoding="utf-8")
        pieces = whole.split(self.old)
        if len(pieces) < self.which + 2:
            raise SystemExit(f"{self.unit}.cu has no {self.old!r} any more: mutant '{self.what}' has to follow it")
        return self.old.join(pieces[: self.which + 1]) + self.new + self.old.join(pieces[self.which + 1 :])


BARRIER = "__syncthreads();"
MUTANTS = (
    Mutant("attention_blocks", "no barrier after the weights", BARRIER, "", "a"),
    Mutant("attention_blocks", "no barrier after the norm's shares", BARRIER, "", "a", which=1),
    Mutant("attention_blocks", "a tile's edge: one block too many", "if (s >= count) break;", "if (s > count) break;", "a"),
    Mutant("attention_blocks", "a tile's edge: one tile too few", "/ kTile;\n  if (tiles", "/ kTile - (op.tokens() > 8);\n  if (tiles", "a"),
    Mutant("rows", "the last columns left out", "j < d; j += kThreads) to[j] = through", "j < d - 1; j += kThreads) to[j] = through", "r"),
    Mutant("bisection", "no barrier before the bound", BARRIER, "", "b", by="threads"),
    Mutant("bulge", "no warp barrier before row[0] is written", "__syncwarp();", "", "b"),
    Mutant("bulge", "no barrier between the rows and the column", BARRIER, "", "b", by="threads", which=1),
    Mutant("bulge", "no barrier after the column", BARRIER, "", "b", which=2),
    Mutant("bulge", "no barrier before x becomes v", "__syncthreads();  // before", "//", "b", by="threads"),
    Mutant("bulge", "a weakened wait between bulges", "< k + 2)", "< k + 1)", "b", by="threads"),
    Mutant("bulge", "no fence after the wait", "__threadfence();", "", "b", by="threads"),
    Mutant("bulge", "no fence before the flag", "__threadfence();", "", "b", by="threads", which=1),
)  # fmt: skip


class Bench:
    """What all mutants share, compiled once: the other kernels, the emulated device and the test."""

    def __init__(self, compiler: str, baseline: str, folder: Path) -> None:
        self.compiler, self.baseline, self.folder = compiler, baseline, folder

    def compile(self, source: Path, build: str, name: str) -> Path:
        flags, sanitizer = FLAGS[build]
        if source.name == "emulator.cpp":  # is told of threads, and never instrumented
            flags = tuple(flag for flag in flags if "sanitize" not in flag)
        out = self.folder / f"{name}-{build}.o"
        command = [self.compiler, "-std=c++17", *flags, *INCLUDES, f"-D{sanitizer}", "-DTIGHTPASS_EMULATED", "-w"]
        subprocess.run([*command, "-c", str(source), "-o", str(out)], check=True)
        return out

    def unit(self, unit: str, build: str) -> Path:
        return self.mutated(unit, build, unit, (KERNELS / f"{unit}.cu").read_text(encoding="utf-8"))

    def mutated(self, unit: str, build: str, name: str, source: str) -> Path:
        made = self.folder / f"{name}-{build}.cpp"
        made.write_text(translated(source, str(KERNELS / f"{unit}.cu")), encoding="utf-8")
        return self.compile(made, build, name)

    def fails(self, objects: Sequence[Path], build: str, name: str, parts: str) -> bool:
        program = self.folder / f"{name}-{build}"
        flags = [flag for flag in FLAGS[build][0] if "sanitize" in flag]
        link = [self.compiler, *flags, *map(str, objects), self.baseline, "-fopenmp", "-pthread", "-o", str(program)]
        subprocess.run(link, check=True)
        level = "1" if build == "plain" else "0"
        try:
            done = subprocess.run(
                [str(program), level, parts, "1", "2"], capture_output=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return True
        return done.returncode != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiler", default="c++")
    parser.add_argument("--baseline", required=True, help="the processor's kernels")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        bench = Bench(args.compiler, args.baseline, Path(folder))
        places = {"test": HERE / "cuda_test.cpp", "emulator": HERE / "emulator.cpp"}
        shared = {(n, b): pool.submit(bench.compile, place, b, n) for n, place in places.items() for b in FLAGS}
        units = {(n, b): pool.submit(bench.unit, n, b) for n in UNITS for b in FLAGS}
        objects = {key: future.result() for key, future in (shared | units).items()}

        def caught(number: int) -> bool:
            mutant = MUTANTS[number]
            made = bench.mutated(mutant.unit, mutant.by, f"mutant-{number}", mutant.source())
            rest = [at for (name, build), at in objects.items() if build == mutant.by and name != mutant.unit]
            return bench.fails([made, *rest], mutant.by, f"mutant-{number}", mutant.parts)

        def sound(build: str) -> bool:
            return not bench.fails([at for (_, b), at in objects.items() if b == build], build, "whole", "arb")

        healthy = dict(zip(FLAGS, pool.map(sound, FLAGS), strict=True))
        found = list(pool.map(caught, range(len(MUTANTS))))
    for build, passes in healthy.items():
        print(f"{'passes' if passes else 'FAILS'}: {build}, without a fault")
    for mutant, was_caught in zip(MUTANTS, found, strict=True):
        print(f"{'caught' if was_caught else 'MISSED'}: {mutant.unit}.cu, {mutant.what} ({mutant.by})")
    print(f"{sum(found)} of {len(found)} mutants caught")
    sys.exit(0 if all(found) and all(healthy.values()) else 1)


if __name__ == "__main__":
    main()
